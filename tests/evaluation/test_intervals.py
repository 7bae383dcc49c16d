"""Intervals cover what they should, differences of equal models are found nowhere, seeds repeat."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from headstart import tasks
from headstart.evaluation import intervals as module
from headstart.evaluation.intervals import difference, intervals, paired_difference
from headstart.protocols import Task


def classes(size: int) -> Task:
    return tasks.fit("classification", list(range(size)))


def scored(rng: np.random.Generator, rows: int, size: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    targets = rng.integers(0, size, rows)
    logits = rng.normal(size=(rows, size))
    logits[np.arange(rows), targets] += sharpness
    made = np.exp(logits)
    return made / made.sum(1, keepdims=True), targets


def test_coverage_is_about_95_percent():
    rng = np.random.default_rng(0)
    task = classes(3)
    scores, targets = scored(rng, 200_000, 3, 1.0)
    truth = task.measure(scores, targets)
    names = ("accuracy", "macro_f1", "log_loss", "roc_auc")
    inside = dict.fromkeys(names, 0)
    runs = 300
    for seed in range(runs):
        drawn, labels = scored(rng, 150, 3, 1.0)
        found = intervals(task, drawn, labels, names=names, resamples=300, seed=seed)
        for name in names:
            interval = found[name]
            assert interval.low is not None and interval.high is not None
            inside[name] += interval.low <= truth[name] <= interval.high
    for name in names:
        assert 0.90 <= inside[name] / runs <= 0.985, (name, inside[name] / runs)


def test_the_interval_is_the_percentiles_of_resampled_rows():
    rng = np.random.default_rng(1)
    scores, targets = scored(rng, 120, 4, 1.0)
    task = classes(4)
    found = intervals(task, scores, targets, resamples=2000, seed=3)
    slow: dict[str, list[float]] = {"macro_f1": [], "roc_auc": []}
    for _ in range(300):
        rows = rng.integers(0, 120, 120)
        slow["macro_f1"].append(sk.f1_score(targets[rows], scores[rows].argmax(1), average="macro"))
    for _ in range(300):
        rows = rng.integers(0, 120, 120)
        once = np.eye(4)[targets[rows]]
        slow["roc_auc"].append(np.mean([sk.roc_auc_score(once[:, k], scores[rows, k]) for k in range(4)]))
    for name, draws in slow.items():
        low, high = np.quantile(draws, [0.025, 0.975])
        width = high - low
        assert found[name].low == pytest.approx(low, abs=0.2 * width)
        assert found[name].high == pytest.approx(high, abs=0.2 * width)
        assert found[name].low < found[name].value < found[name].high


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    scores, targets = scored(np.random.default_rng(2), 100, 3, 1.0)
    task = classes(3)
    once, again, other = (intervals(task, scores, targets, resamples=200, seed=s) for s in (5, 5, 6))
    assert once == again
    assert once["log_loss"] != other["log_loss"] and once["log_loss"].value == other["log_loss"].value


def test_chunks_do_not_change_the_draws(monkeypatch):
    scores, targets = scored(np.random.default_rng(2), 50, 3, 1.0)
    whole = intervals(classes(3), scores, targets, resamples=200, seed=1)
    monkeypatch.setattr(module, "CHUNK", 50 * 7)
    parts = intervals(classes(3), scores, targets, resamples=200, seed=1)
    for name, interval in whole.items():
        assert parts[name].low == pytest.approx(interval.low)
        assert parts[name].high == pytest.approx(interval.high)


def test_all_rows_right_still_leaves_doubt():
    targets = np.arange(40) % 2
    found = intervals(classes(2), np.eye(2)[targets] * 0.9 + 0.05, targets)
    assert found["accuracy"].low == pytest.approx(0.025 ** (1 / 40)) and found["accuracy"].high == 1.0
    assert found["macro_f1"].value == 1.0 and found["macro_f1"].low is None
    wrong = intervals(classes(2), np.eye(2)[1 - targets], targets)["accuracy"]
    assert wrong.low == 0.0 and wrong.high == pytest.approx(1 - 0.025 ** (1 / 40))


def test_undefined_metrics_are_left_out():
    found = intervals(classes(2), np.array([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3]]), np.zeros(3, int))
    assert "roc_auc" not in found and found["accuracy"].value == pytest.approx(2 / 3)


def test_costly_metrics_have_a_value_without_interval(monkeypatch):
    scores, targets = scored(np.random.default_rng(3), 200, 3, 1.0)
    monkeypatch.setattr(module, "WORK", 200 * 8)
    monkeypatch.setattr(module, "MOST_WORK", 200 * 8 * 150)
    found = intervals(classes(3), scores, targets)
    assert found["accuracy"].low is not None
    assert found["roc_auc"].low is None and found["roc_auc"].value > 0.5


def test_a_task_that_only_measures_is_resampled_directly():
    task = classes(3)

    class Plain(type(task)):  # type: ignore[misc]
        def weighted(self, scores, targets):
            return ()

        def measure(self, scores, targets):
            return {"accuracy": float((scores.argmax(1) == targets).mean())}

    scores, targets = scored(np.random.default_rng(4), 80, 3, 1.0)
    plain = Plain(task.labels, task.options)
    fast = intervals(task, scores, targets, names=("accuracy",), resamples=200, seed=1)
    assert intervals(plain, scores, targets, resamples=200, seed=1)["accuracy"].low == pytest.approx(
        fast["accuracy"].low
    )


def test_a_null_difference_is_rarely_significant():
    rng = np.random.default_rng(5)
    runs = 400
    hits = 0
    for seed in range(runs):
        ours, theirs = (rng.random((2, 120)) < 0.8).astype(float)
        found = paired_difference(ours, theirs, resamples=400, seed=seed)
        assert found["p"] is not None and found["low"] is not None
        assert found["low"] <= found["value"] <= found["high"]
        hits += found["p"] < 0.05
    assert 0.02 <= hits / runs <= 0.09


def test_a_real_difference_is_found_and_the_interval_covers_it():
    rng = np.random.default_rng(6)
    inside = 0
    for seed in range(200):
        hard = rng.random(300)
        ours, theirs = (hard < 0.9).astype(float), (hard < 0.8).astype(float)
        found = paired_difference(ours, theirs, resamples=300, seed=seed)
        assert found["p"] < 0.05
        inside += found["low"] <= 0.1 <= found["high"]
    assert inside / 200 > 0.9


def test_equal_models_differ_by_nothing():
    values = np.random.default_rng(7).random(50)
    assert paired_difference(values, values) == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_different_rows_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        paired_difference(np.zeros(3), np.zeros(4))


def test_difference_of_any_metric():
    rng = np.random.default_rng(8)
    good, targets = scored(rng, 300, 3, 2.5)
    poor = np.where(rng.random((300, 1)) < 0.5, good, rng.dirichlet([1, 1, 1], 300))
    task = classes(3)
    for metric in ("accuracy", "macro_f1", "roc_auc"):
        found = difference(task, good, poor, targets, metric=metric, resamples=300)
        expected = task.measure(good, targets)[metric] - task.measure(poor, targets)[metric]
        assert found["value"] == pytest.approx(expected) and found["low"] > 0 and found["p"] < 0.05
    same = difference(task, good, good, targets)
    assert same["value"] == 0 and same["p"] == 1.0


def test_the_calibration_error_lies_inside_its_interval() -> None:
    from headstart import tasks

    draws = np.random.default_rng(0)
    scores = draws.dirichlet(np.ones(3) * 0.3, size=60)
    targets = np.array([draws.choice(3, p=row) for row in scores])
    task = tasks.fit("classification", ["a", "b", "c"])
    found = intervals(task, scores, targets, names=("ece",))["ece"]
    assert found.low is not None and found.high is not None
    assert 0 <= found.low <= found.value <= found.high
