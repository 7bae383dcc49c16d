"""Several labels a row, against the formulas written out, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from headstart import tasks
from headstart.errors import DataError, SpecError

ROWS = [["a", "b"], ["a"], [], ["c", "a"], ["b"], ["a"]]


def slow_loss(outputs, targets, *, smoothing=0.0, gamma=0.0, weights=None):
    rows = []
    for row, truth in zip(outputs.tolist(), targets.tolist(), strict=True):
        terms = []
        for k, (z, t) in enumerate(zip(row, truth, strict=True)):
            p = 1 / (1 + math.exp(-z))
            s = (1 - smoothing) * t + smoothing / 2
            a, b = weights[k] if weights else (1.0, 1.0)
            terms.append(-a * s * (1 - p) ** gamma * math.log(p) - b * (1 - s) * p**gamma * math.log(1 - p))
        rows.append(sum(terms) / len(terms))
    return np.array(rows)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balanced", ["none", "balanced"])
def test_loss_follows_the_formula(gamma, smoothing, balanced):
    task = tasks.fit("multilabel", ROWS, class_weights=balanced, label_smoothing=smoothing, focal_gamma=gamma)
    outputs = np.random.default_rng(0).normal(size=(6, 3)) * 2
    targets = task.encode(ROWS)
    weights = [(6 / 8, 6 / 4), (6 / 4, 6 / 8), (6 / 2, 6 / 10)] if balanced == "balanced" else None
    expected = slow_loss(outputs, targets, smoothing=smoothing, gamma=gamma, weights=weights)
    z = torch.tensor(outputs, requires_grad=True)
    np.testing.assert_allclose(task.loss(z, targets).detach(), expected, rtol=1e-7)
    assert torch.autograd.gradcheck(lambda at: task.loss(at, targets.double()), z)


@pytest.mark.parametrize(("q", "tau"), [(0.7, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_losses_for_skewed_labels_follow_their_formulas(q, tau):
    task = tasks.fit("multilabel", ROWS, gce_q=q, logit_adjustment=tau)
    outputs = np.random.default_rng(0).normal(size=(6, 3)) * 2
    targets = task.encode(ROWS)
    priors = targets.mean(0).tolist()
    expected = []
    for row, truth in zip(outputs.tolist(), targets.tolist(), strict=True):
        terms = []
        for z, t, prior in zip(row, truth, priors, strict=True):
            odds = math.exp(z) * (prior / (1 - prior)) ** tau
            p = odds / (1 + odds)
            right = p if t else 1 - p
            terms.append((1 - right**q) / q if q else -math.log(right))
        expected.append(sum(terms) / 3)
    z = torch.tensor(outputs, requires_grad=True)
    np.testing.assert_allclose(task.loss(z, targets).detach(), expected, rtol=1e-6)
    assert torch.autograd.gradcheck(lambda at: task.loss(at, targets.double()), z)
    assert tasks.from_json(task.to_json()) == task


def test_effective_weights_hold_for_each_side_of_a_label():
    task = tasks.fit("multilabel", ROWS, class_weights="effective", effective_beta=0.9)
    for (have, lack), n in zip(task.weights, task.encode(ROWS).sum(0).tolist(), strict=True):
        a, b = (1 / sum(0.9**i for i in range(int(count))) for count in (n, 6 - n))
        assert (have, lack) == pytest.approx((2 * a / (a + b), 2 * b / (a + b)))


def test_a_label_on_every_row_is_not_ruled_out_by_its_prior():
    task = tasks.fit("multilabel", [["a"], ["a", "b"], ["a"]], logit_adjustment=1.0)
    assert torch.isfinite(task.loss(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))).all()


def test_cells_and_lists_are_the_same():
    task = tasks.fit("multilabel", ["a|b", "a", "", "c | a", None])
    assert task.labels == ("a", "b", "c")
    assert task.encode(["a|b", ["b", "a"], "", None, ("c",)]).tolist() == [
        [1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1],
    ]  # fmt: skip
    assert tasks.fit("multilabel", ["a;b", "c"], separator=";").labels == ("a", "b", "c")


def test_what_is_not_labels_is_refused():
    with pytest.raises(DataError, match=r"row 1: expected a list of labels.*received int"):
        tasks.fit("multilabel", [["a"], 3])
    with pytest.raises(DataError, match="none"):
        tasks.fit("multilabel", ["", []])
    with pytest.raises(DataError, match="did you mean 'sport'"):
        tasks.fit("multilabel", ["sport|news"]).encode(["sprt"])
    with pytest.raises(SpecError, match="did you mean 'macro_f1'"):
        tasks.fit("multilabel", ROWS, metric="macrof1")


def test_json_round_trip_and_decode():
    task = tasks.fit("multilabel", ROWS, class_weights="balanced", focal_gamma=1.0)
    assert tasks.from_json(task.to_json()) == task
    scores = np.array([[0.9, 0.6, 0.1], [0.1, 0.2, 0.3]])
    decoded = task.decode(scores)
    assert decoded.prediction == [["a", "b"], []]
    np.testing.assert_array_equal(decoded.scores["probability_b"], scores[:, 1])
    assert task.truth(np.array([[0, 1, 1]])) == [["b", "c"]]
    torch.testing.assert_close(
        task.scores(torch.tensor([[1.0, 0.0, -2.0]]), 2.0), torch.sigmoid(torch.tensor([[0.5, 0.0, -1.0]]))
    )


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(1)
    truth = (rng.random((150, 4)) < [0.5, 0.3, 0.1, 0.0]).astype(np.float32)
    scores = np.round(np.clip(0.6 * truth + 0.5 * rng.random((150, 4)), 0.01, 0.99), 2)
    task = tasks.fit("multilabel", [["a", "b", "c", "d"]])
    found = task.measure(scores, truth)
    answers = scores > 0.5
    assert found["micro_f1"] == pytest.approx(sk.f1_score(truth, answers, average="micro"))
    assert found["subset_accuracy"] == pytest.approx(sk.accuracy_score(truth, answers))
    assert found["hamming_loss"] == pytest.approx(sk.hamming_loss(truth, answers))
    seen = [k for k in range(4) if truth[:, k].any() or answers[:, k].any()]
    assert found["macro_f1"] == pytest.approx(np.mean([sk.f1_score(truth[:, k], answers[:, k]) for k in seen]))
    assert found["roc_auc"] == pytest.approx(np.mean([sk.roc_auc_score(truth[:, k], scores[:, k]) for k in range(3)]))
    expected = np.mean([sk.average_precision_score(truth[:, k], scores[:, k]) for k in range(3)])
    assert found["average_precision"] == pytest.approx(expected)
    losses = [sk.log_loss(truth[:, k], scores[:, k], labels=[0, 1]) for k in range(4)]
    assert found["log_loss"] == pytest.approx(np.mean(losses))
    details = task.details(scores, truth)
    assert details["calibration"]["ece"] == pytest.approx(found["ece"])
    assert [c["support"] for c in details["per_class"]] == truth.sum(0).tolist()


def test_wrongness_is_the_probability_of_the_worst_decision():
    task = tasks.fit("multilabel", [["a", "b"]])
    _, values = task.wrongness(np.array([[0.9, 0.2], [0.9, 0.1]]), np.array([[1, 0], [1, 1]], dtype=np.float32))
    np.testing.assert_allclose(values, [0.0, 0.9])


def test_mix():
    task = tasks.fit("multilabel", [["a", "b"]])
    mixed = task.mix(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0]), torch.tensor([0.75, 1.0]))
    torch.testing.assert_close(mixed, torch.tensor([[0.75, 0.25], [0.0, 1.0]]))
