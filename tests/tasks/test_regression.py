"""Regression against the formulas written out, scikit-learn and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from headstart import tasks
from headstart.errors import DataError, SpecError


def test_the_loss_is_the_square_on_standardised_targets():
    values = [100.0, 300.0, 200.0, 1000.0]
    task = tasks.fit("regression", values)
    mean, std = np.mean(values), np.std(values)
    outputs = torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    expected = [(0.5 - (100 - mean) / std) ** 2, (-1 - (1000 - mean) / std) ** 2]
    torch.testing.assert_close(task.loss(outputs, torch.tensor([[100.0], [1000.0]])), torch.tensor(expected).double())


def test_huber_is_the_square_near_and_linear_far():
    task = tasks.fit("regression", [-1.0, 1.0], huber=1.0)
    losses = task.loss(torch.tensor([[0.5], [3.0]]), torch.zeros(2, 1))
    torch.testing.assert_close(losses, torch.tensor([0.25, 2 * 3.0 - 1.0]))


def test_an_ideal_head_gives_scores_in_the_targets_own_units():
    values = [[1e6, -3.0], [3e6, -1.0], [2e6, 0.0]]
    task = tasks.fit("regression", values, labels=["price", "stars"])
    truth = task.encode(values)
    outputs = (truth.double() - torch.tensor(task.mean)) / torch.tensor(task.std)
    torch.testing.assert_close(task.scores(outputs), truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(task.loss(outputs, truth), torch.zeros(3).double())
    assert task.scores(outputs, 5.0).tolist() == task.scores(outputs).tolist()
    decoded = task.decode(truth.numpy())
    assert decoded.prediction[0] == [1e6, -3.0] and list(decoded.scores) == ["predicted_price", "predicted_stars"]
    assert tasks.fit("regression", [1, 2]).decode(np.array([[1.5]])).prediction == [1.5]


def test_metrics_are_scikit_learns_and_scipys():
    rng = np.random.default_rng(0)
    truth = np.round(rng.normal(50, 10, (80, 2)), 0)
    given = truth + rng.normal(0, 5, (80, 2)) * [1, 3]
    task = tasks.fit("regression", truth.tolist(), labels=["x", "y"])
    found = task.measure(given, truth)
    for k, label in enumerate("xy"):
        t, g = truth[:, k], given[:, k]
        assert found[f"rmse_{label}"] == pytest.approx(sk.root_mean_squared_error(t, g))
        assert found[f"mae_{label}"] == pytest.approx(sk.mean_absolute_error(t, g))
        assert found[f"r2_{label}"] == pytest.approx(sk.r2_score(t, g))
        assert found[f"spearman_{label}"] == pytest.approx(stats.spearmanr(t, g).statistic)
    for name in ("rmse", "mae", "r2", "spearman"):
        assert found[name] == pytest.approx((found[f"{name}_x"] + found[f"{name}_y"]) / 2)
    assert set(tasks.fit("regression", [1, 2]).measure(given[:, :1], truth[:, :1])) == {"rmse", "mae", "r2", "spearman"}


def test_counting_a_row_twice_is_having_it_twice():
    rng = np.random.default_rng(1)
    truth = np.round(rng.normal(0, 3, (40, 1)))
    given = np.round(truth + rng.normal(0, 2, (40, 1)))
    task = tasks.fit("regression", truth[:, 0].tolist())
    counts = rng.integers(0, 4, (3, 40)).astype(np.float32)
    for b in range(3):
        rows = np.repeat(np.arange(40), counts[b].astype(int))
        expected = task.measure(given[rows], truth[rows])
        for group in task.weighted(given, truth):
            for name, values in group.compute(counts).items():
                assert values[b] == pytest.approx(expected[name]), name


def test_metrics_of_constant_truth_leave_the_undefined_undefined():
    task = tasks.fit("regression", [1, 2])
    found = task.measure(np.array([[1.0], [2.0]]), np.array([[3.0], [3.0]]))
    assert math.isnan(found["r2"]) and math.isnan(found["spearman"]) and found["mae"] == 1.5


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0, "many"], "row 1: expected a number"),
        ([1.0, None], "row 1: expected a number"),
        ([1.0, math.inf], "row 1: expected a finite number"),
        ([[1, 2], [3]], "row 1: expected 2 numbers, received 1"),
        ([2, 2, 2], "nothing to learn"),
        ([], "received none"),
    ],
)
def test_values_that_are_not_numbers_are_refused(values, says):
    with pytest.raises(DataError, match=says):
        tasks.fit("regression", values)


def test_numbers_as_text_and_numpy_values_are_read():
    task = tasks.fit("regression", ["1.5", np.float32(2.5), 3])
    assert task.encode(["1.5"]).tolist() == [[1.5]] and task.labels == ("value",)


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": "balanced"},
        {"label_smoothing": 0.1},
        {"focal_gamma": 2.0},
        {"gce_q": 0.7},
        {"huber": -1},
        {"delta": 1},
    ],
)
def test_options_about_labels_are_refused(options):
    with pytest.raises(SpecError):
        tasks.fit("regression", [1, 2], **options)
    neutral = tasks.fit("regression", [1, 2], class_weights="none", label_smoothing=0.0, focal_gamma=0.0)
    assert neutral.greater_is_better is False and neutral.better(0.1, 0.2)


def test_json_round_trip_and_mix():
    task = tasks.fit("regression", [[1, 2], [3, 5]], huber=0.5, metric="r2")
    again = tasks.from_json(task.to_json())
    assert again == task and again.greater_is_better
    mixed = task.mix(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([1, 0]), torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(mixed, torch.tensor([[2.0, 4.0], [3.0, 6.0]]))


def test_wrongness_and_scatter():
    task = tasks.fit("regression", [0.0, 10.0])
    name, values = task.wrongness(np.array([[1.0], [5.0]]), np.array([[3.0], [5.0]]))
    assert name == "error" and values.tolist() == [2.0, 0.0]
    pairs = task.details(np.arange(1000.0)[:, None], np.arange(1000.0)[:, None])["scatter"]["value"]
    assert len(pairs) == 300 and pairs[0] == [0.0, 0.0] and pairs[-1] == [999.0, 999.0]
