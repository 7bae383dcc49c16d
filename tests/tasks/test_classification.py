"""Classification against the formulas written out, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from headstart import tasks
from headstart.errors import DataError, SpecError

LABELS = ["no", "yes", "maybe"]


def slow_loss(outputs, shares, *, smoothing=0.0, gamma=0.0, weights=None):
    """The docstring's formula, one term at a time, in double precision."""
    rows = []
    for row, share in zip(outputs.tolist(), shares.tolist(), strict=True):
        total = sum(math.exp(z) for z in row)
        loss = 0.0
        for k, z in enumerate(row):
            p = math.exp(z) / total
            t = (1 - smoothing) * share[k] + smoothing / len(row)
            loss -= (weights[k] if weights else 1.0) * t * (1 - p) ** gamma * math.log(p)
        rows.append(loss)
    return np.array(rows)


def numeric_gradient(function, at, step=1e-6):
    found = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        up, down = at.copy(), at.copy()
        up[place] += step
        down[place] -= step
        found[place] = (function(up).sum() - function(down).sum()) / (2 * step)
    return found


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 2.0, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balanced", ["none", "balanced"])
def test_loss_and_gradient_follow_the_formula(soft, gamma, smoothing, balanced):
    rng = np.random.default_rng(0)
    values = ["no"] * 6 + ["yes"] * 3 + ["maybe"]
    task = tasks.fit("classification", values, class_weights=balanced, label_smoothing=smoothing, focal_gamma=gamma)
    outputs = rng.normal(size=(5, 3)) * 2
    targets = torch.tensor([0, 1, 2, 1, 0])
    shares = torch.nn.functional.one_hot(targets, 3).double()
    if soft:
        shares = torch.tensor(rng.dirichlet([1, 1, 1], 5))
        targets = shares
    counts = [values.count(label) for label in task.labels]
    weights = [len(values) / (3 * count) for count in counts] if balanced == "balanced" else None
    options = {"smoothing": smoothing, "gamma": gamma, "weights": weights}
    z = torch.tensor(outputs, requires_grad=True)
    loss = task.loss(z, targets)
    assert loss.shape == (5,)
    np.testing.assert_allclose(loss.detach(), slow_loss(outputs, shares, **options), rtol=1e-10)
    loss.sum().backward()
    expected = numeric_gradient(lambda at: slow_loss(at, shares, **options), outputs)
    np.testing.assert_allclose(z.grad, expected, atol=1e-7)


VALUES = ["no"] * 6 + ["yes"] * 3 + ["maybe"]


def adjusted_loss(outputs, shares, *, tau=0.0, q=0.0, smoothing=0.0, weights=(1, 1, 1)):
    """The formulas of logit adjustment and of generalised cross-entropy; labels in the order maybe, no, yes."""
    priors = [0.1, 0.6, 0.3]
    rows = []
    for row, share in zip(outputs.tolist(), shares.tolist(), strict=True):
        raised = [math.exp(z) * prior**tau for z, prior in zip(row, priors, strict=True)]
        loss = 0.0
        for k, value in enumerate(raised):
            p = value / sum(raised)
            t = (1 - smoothing) * share[k] + smoothing / 3
            loss += weights[k] * t * ((1 - p**q) / q if q else -math.log(p))
        rows.append(loss)
    return np.array(rows)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("options", "slow"),
    [
        ({"logit_adjustment": 1.0}, {"tau": 1.0}),
        ({"logit_adjustment": 0.5, "label_smoothing": 0.1}, {"tau": 0.5, "smoothing": 0.1}),
        ({"gce_q": 0.7}, {"q": 0.7}),
        ({"gce_q": 1.0, "label_smoothing": 0.2}, {"q": 1.0, "smoothing": 0.2}),
        ({"gce_q": 0.3, "logit_adjustment": 2.0}, {"q": 0.3, "tau": 2.0}),
        ({"gce_q": 0.5, "class_weights": "balanced"}, {"q": 0.5, "weights": (10 / 3, 10 / 18, 10 / 9)}),
    ],
)
def test_losses_for_skewed_labels_follow_their_formulas(soft, options, slow):
    rng = np.random.default_rng(1)
    task = tasks.fit("classification", VALUES, **options)
    outputs = rng.normal(size=(5, 3)) * 2
    targets = torch.tensor([0, 1, 2, 1, 0])
    shares = torch.nn.functional.one_hot(targets, 3).double()
    if soft:
        targets = shares = torch.tensor(rng.dirichlet([1, 1, 1], 5))
    z = torch.tensor(outputs, requires_grad=True)
    loss = task.loss(z, targets)
    np.testing.assert_allclose(loss.detach(), adjusted_loss(outputs, shares, **slow), rtol=1e-6)
    loss.sum().backward()
    expected = numeric_gradient(lambda at: adjusted_loss(at, shares, **slow), outputs)
    np.testing.assert_allclose(z.grad, expected, atol=1e-6)


def test_answers_are_made_without_the_adjustment_and_its_priors_are_saved():
    task = tasks.fit("classification", VALUES, logit_adjustment=1.0)
    outputs = torch.tensor([[0.1, 0.0, -1.0]])
    torch.testing.assert_close(task.scores(outputs), torch.softmax(outputs, 1))
    assert task.to_json()["priors"] == [0.1, 0.6, 0.3]
    assert tasks.from_json(task.to_json()) == task
    # The loss is that of the class shares: even outputs cost each class -log of its share.
    flat = task.loss(torch.zeros(3, 3), torch.arange(3))
    torch.testing.assert_close(flat, -torch.tensor([0.1, 0.6, 0.3]).log())


def test_a_class_without_rows_is_not_ruled_out_by_its_prior():
    task = tasks.fit("classification", ["a"] * 8 + ["b"], labels=["a", "b", "c"], logit_adjustment=1.0)
    assert task.priors == (0.8, 0.1, 0.1)
    assert torch.isfinite(task.loss(torch.zeros(1, 3), torch.tensor([2]))).all()


def test_a_hopeless_row_pulls_less_under_generalised_cross_entropy():
    outputs = torch.tensor([[8.0, 0.0, 0.0]], requires_grad=True)
    slopes = {}
    for q in (0.0, 0.7):
        task = tasks.fit("classification", LABELS, gce_q=q)
        (slopes[q],) = torch.autograd.grad(task.loss(outputs, torch.tensor([1])).sum(), outputs)
    p = float(torch.softmax(outputs.detach(), 1)[0, 1])
    torch.testing.assert_close(slopes[0.7], p**0.7 * slopes[0.0])
    far = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    tasks.fit("classification", LABELS, gce_q=0.7).loss(far, torch.tensor([1])).sum().backward()
    assert torch.isfinite(far.grad).all()


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_effective_weights_follow_the_paper(beta):
    task = tasks.fit("classification", VALUES, class_weights="effective", effective_beta=beta)
    inverse = [1 / sum(beta**i for i in range(count)) for count in (1, 6, 3)]  # the sum that (1 - b^n) / (1 - b) is
    np.testing.assert_allclose(task.weights, [3 * value / sum(inverse) for value in inverse])
    assert tasks.from_json(task.to_json()) == task
    with_empty = tasks.fit("classification", VALUES, class_weights="effective", labels=["maybe", "no", "yes", "none"])
    assert with_empty.weights[3] == 1.0 and sum(with_empty.weights[:3]) == pytest.approx(3)


def test_a_record_from_before_these_options_is_read():
    record = tasks.fit("classification", LABELS, focal_gamma=1.0).to_json()
    for key in ("priors", "gce_q", "logit_adjustment", "effective_beta"):
        del record[key]
    assert tasks.from_json(record) == tasks.fit("classification", LABELS, focal_gamma=1.0)


def test_loss_without_options_is_torchs_cross_entropy():
    task = tasks.fit("classification", LABELS, label_smoothing=0.2)
    outputs, targets = torch.randn(7, 3), torch.randint(0, 3, (7,))
    expected = torch.nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(task.loss(outputs, targets), expected)


def test_focal_gradient_is_finite_for_a_certain_answer():
    task = tasks.fit("classification", LABELS, focal_gamma=0.5)
    outputs = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    task.loss(outputs, torch.tensor([0])).sum().backward()
    assert torch.isfinite(outputs.grad).all()


def test_balanced_classes_weigh_the_same_in_total():
    task = tasks.fit("classification", ["a"] * 90 + ["b"] * 10, class_weights="balanced")
    targets = task.encode(["a"] * 90 + ["b"] * 10)
    losses = task.loss(torch.zeros(100, 2), targets)
    torch.testing.assert_close(losses[:90].sum(), losses[90:].sum())
    torch.testing.assert_close(losses.mean(), torch.tensor(math.log(2)))


def test_labels_are_ordered_numbers_by_value_and_numbers_of_any_type_are_one_label():
    task = tasks.fit("classification", [10, 9.0, "1", np.int64(9)])
    assert task.labels == ("1", "9", "10")
    assert task.encode([9, "9", 10.0]).tolist() == [1, 1, 2]
    assert tasks.fit("classification", ["b", "a", "10"]).labels == ("10", "a", "b")


def test_given_labels_fix_the_set_and_its_order():
    task = tasks.fit("classification", ["a", "a"], labels=["c", "a", "b"])
    assert task.labels == ("c", "a", "b")
    assert task.encode(["b"]).tolist() == [2]


def test_unknown_labels_are_listed_with_the_nearest_known_one():
    task = tasks.fit("classification", ["card_arrival", "top_up"])
    with pytest.raises(DataError) as caught:
        task.encode(["top_up", "card_arival", "zebra", "card_arival"])
    message = str(caught.value)
    assert "'card_arival' (row 1; did you mean 'card_arrival'?)" in message
    assert "'zebra' (row 2" in message and "2 unknown" in message


@pytest.mark.parametrize("empty", [None, "", "  ", float("nan")])
def test_an_empty_label_is_refused_with_its_row(empty):
    with pytest.raises(DataError, match="row 1 has no label"):
        tasks.fit("classification", ["a", empty])


@pytest.mark.parametrize("values", [[], ["a"], ["a", "a"]])
def test_one_class_is_refused(values):
    with pytest.raises(DataError, match="at least two"):
        tasks.fit("classification", values)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"class_weights": "some"}, "none"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": True}, "label_smoothing"),
        ({"focal_gamma": -1}, "focal_gamma"),
        ({"focal_gama": 1}, "did you mean 'focal_gamma'"),
        ({"gce_q": 1.5}, "gce_q"),
        ({"gce_q": True}, "gce_q"),
        ({"logit_adjustment": -1}, "logit_adjustment"),
        ({"class_weights": "effective", "effective_beta": 1.0}, "effective_beta"),
        ({"effective_beta": 0.9}, "belongs to task.class_weights=effective"),
        ({"gce_q": 0.7, "focal_gamma": 2.0}, "contradict each other"),
        ({"logit_adjustment": 1.0, "class_weights": "balanced"}, "twice"),
        ({"logit_adjustment": 1.0, "class_weights": "effective"}, "twice"),
        ({"metric": "acuracy"}, "did you mean 'accuracy'"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(SpecError, match=says):
        tasks.fit("classification", LABELS, **options)


def test_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'classification'"):
        tasks.fit("clasification", LABELS)


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_json_round_trip(metric):
    task = tasks.fit(
        "classification", LABELS, class_weights="balanced", label_smoothing=0.1, focal_gamma=1.5, metric=metric
    )
    again = tasks.from_json(task.to_json())
    assert again == task and again.to_json() == task.to_json()
    assert again.greater_is_better is (metric == "accuracy")
    assert again.better(0.2, 0.1) is (metric == "accuracy")


def test_scores_and_decode():
    task = tasks.fit("classification", LABELS)
    outputs = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    scores = task.scores(outputs, 2.0)
    torch.testing.assert_close(scores, torch.softmax(outputs / 2, -1))
    decoded = task.decode(scores.numpy())
    assert task.labels == ("maybe", "no", "yes")
    assert decoded.prediction == ["no", "maybe"]
    assert list(decoded.scores) == ["probability_maybe", "probability_no", "probability_yes"]
    np.testing.assert_allclose(sum(decoded.scores.values()), 1, rtol=1e-6)


def test_mix_makes_shares_and_its_loss_is_the_mixture_of_losses():
    task = tasks.fit("classification", LABELS)
    targets, partner = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    share = torch.tensor([0.7, 1.0, 0.25])
    mixed = task.mix(targets, partner, share)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed[0], torch.tensor([0.7, 0.3, 0.0]))
    outputs = torch.randn(3, 3)
    expected = share * task.loss(outputs, targets) + (1 - share) * task.loss(outputs, targets[partner])
    torch.testing.assert_close(task.loss(outputs, mixed), expected)
    torch.testing.assert_close(task.mix(mixed, partner, torch.ones(3)), mixed)


def sample(seed, rows=200, size=4, ties=False):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, size, rows)
    logits = rng.normal(size=(rows, size))
    logits[np.arange(rows), targets] += 1
    if ties:
        logits = np.round(logits)
    scores = np.exp(logits)
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32), targets


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_are_scikit_learns(ties):
    scores, targets = sample(3, ties=ties)
    task = tasks.fit("classification", list(range(4)))
    found = task.measure(scores, targets)
    answers = scores.argmax(1)
    once = np.eye(4)[targets]
    expected_log_loss = -np.log(scores[np.arange(len(targets)), targets].astype(float)).mean()
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(targets, answers))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(targets, answers, average="macro"))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(targets, answers, average="micro"))
    assert found["log_loss"] == pytest.approx(expected_log_loss)
    assert found["roc_auc"] == pytest.approx(
        np.mean([sk.roc_auc_score(once[:, k], scores[:, k]) for k in range(4)]), rel=1e-9
    )
    assert found["average_precision"] == pytest.approx(
        np.mean([sk.average_precision_score(once[:, k], scores[:, k]) for k in range(4)]), rel=1e-9
    )


def test_metrics_skip_classes_that_do_not_occur():
    scores, targets = sample(4, rows=60)
    keep = targets != 3
    scores, targets = scores[keep], targets[keep]
    task = tasks.fit("classification", list(range(4)))
    found = task.measure(scores, targets)
    once = np.eye(4)[targets]
    assert found["roc_auc"] == pytest.approx(np.mean([sk.roc_auc_score(once[:, k], scores[:, k]) for k in range(3)]))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(targets, scores.argmax(1), average="macro"))
    alone = task.measure(scores[targets == 0], targets[targets == 0])
    assert math.isnan(alone["roc_auc"]) and not math.isnan(alone["macro_f1"])


def test_calibration_error_is_the_mean_gap_over_fifteen_bins():
    scores, targets = sample(5)
    confidence, right = scores.max(1).astype(float), scores.argmax(1) == targets
    expected = 0.0
    for k in range(15):
        chosen = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if chosen.any():
            expected += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    task = tasks.fit("classification", list(range(4)))
    assert task.measure(scores, targets)["ece"] == pytest.approx(expected)
    assert task.details(scores, targets)["calibration"]["ece"] == pytest.approx(expected)


def test_counting_a_row_twice_is_having_it_twice():
    scores, targets = sample(6, rows=50, ties=True)
    task = tasks.fit("classification", list(range(4)))
    counts = np.random.default_rng(0).integers(0, 3, (2, 50)).astype(np.float32)
    for b in range(2):
        rows = np.repeat(np.arange(50), counts[b].astype(int))
        expected = task.measure(scores[rows], targets[rows])
        for group in task.weighted(scores, targets):
            for name, values in group.compute(counts).items():
                assert values[b] == pytest.approx(expected[name], rel=1e-6), name


def test_details_are_scikit_learns():
    scores, targets = sample(7)
    task = tasks.fit("classification", ["a", "b", "c", "d", "never"])
    scores = np.concatenate([scores, np.zeros((200, 1), np.float32)], axis=1)
    found = task.details(scores, targets)
    answers = scores.argmax(1)
    assert found["confusion"]["counts"] == sk.confusion_matrix(targets, answers, labels=range(5)).tolist()
    precision, recall, f1, support = sk.precision_recall_fscore_support(targets, answers, labels=range(4))
    for k, record in enumerate(found["per_class"][:4]):
        assert record["label"] == "abcd"[k] and record["support"] == support[k]
        assert record["precision"] == pytest.approx(precision[k])
        assert record["recall"] == pytest.approx(recall[k])
        assert record["f1"] == pytest.approx(f1[k])
    assert found["per_class"][4] == {"label": "never", "precision": None, "recall": None, "f1": None, "support": 0}
    top = found["confusion"]["top"]
    assert [t["count"] for t in top] == sorted((t["count"] for t in top), reverse=True)
    first = top[0]
    row = found["confusion"]["counts"]["abcd".index(first["truth"])]
    assert row["abcd".index(first["prediction"])] == first["count"]
    assert first["share"] == pytest.approx(first["count"] / sum(row))


def test_wrongness_is_the_probability_of_a_wrong_answer():
    task = tasks.fit("classification", ["a", "b"])
    name, values = task.wrongness(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
    assert name == "probability" and values.tolist() == [0.0, 0.9]
    assert task.truth(np.array([0, 1])) == ["a", "b"]
