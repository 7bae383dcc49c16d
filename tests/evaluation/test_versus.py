from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headstart.evaluation.versus import Answers, effects, holm, summarise
from headstart.tasks.classification import Classification

TASK = Classification.fit(["a", "b", "c"])
ROWS = 400


def answers(share: float, seed: int, rows: int = ROWS) -> Answers:
    """Scores that are right for this share of the rows; the same rows are hard for every arm."""
    targets = np.arange(rows) % 3
    hardness = np.random.default_rng(0).permutation(rows) + np.random.default_rng(seed + 1).normal(0, 5, rows)
    right = np.argsort(np.argsort(hardness)) < share * rows
    said = np.where(right, targets, (targets + 1) % 3)
    return Answers(np.eye(3)[said] * 0.8 + 0.1 * (np.eye(3)[said] == 0), targets)


def cell(arm: str, seed: int) -> dict[str, Any]:
    costs = {"seconds": 2.0 * seed, "cpu_seconds": 1.0, "peak_memory_bytes": 10.0}
    return {"arm": arm, "budget": "8", "seed": seed, "rows": 24, "trainable": 5, "total": 9, "bytes": 36, **costs}


def test_summary_is_the_mean_over_seeds_with_its_spread_and_interval() -> None:
    arms = {("one", "8"): {s: [answers(share, s)] for s, share in ((0, 0.70), (1, 0.80))}}
    (found,) = summarise(TASK, [cell("one", 0), cell("one", 1)], arms, same_rows=True)
    assert found["mean"] == pytest.approx(0.75) and found["sd"] == pytest.approx(math.sqrt(0.005))
    # The share of right answers is a binomial mean of correlated seeds: between the two extremes.
    wide = 1.96 * math.sqrt(0.75 * 0.25 / ROWS)
    assert 0.7 * wide < found["high"] - found["mean"] < 1.15 * wide
    assert found["seconds"] == 1.0 and found["bytes"] == 36


def test_folds_of_a_seed_are_measured_together() -> None:
    whole = answers(0.7, 0)
    folds = [Answers(whole.scores[k::2], whole.targets[k::2]) for k in (0, 1)]
    (found,) = summarise(TASK, [cell("one", 0)], {("one", "8"): {0: folds}}, same_rows=True)
    assert found["mean"] == pytest.approx(0.7) and found["sd"] is None


def test_pairing_sees_what_two_separate_intervals_do_not() -> None:
    arms = {
        ("ours", "8"): {s: [answers(0.78, s)] for s in range(3)},
        ("theirs", "8"): {s: [answers(0.75, s)] for s in range(3)},
    }
    (found,) = effects(TASK, "ours", arms, same_rows=True)
    assert found["value"] == pytest.approx(0.03) and found["wins"] == 3 and found["seeds"] == 3
    assert found["low"] > 0 and found["p"] < 0.05
    records = summarise(TASK, [cell(arm, 0) for arm in ("ours", "theirs")], arms, same_rows=True)
    assert records[0]["low"] < records[1]["high"], "the intervals of the two overlap"


def test_an_arm_against_its_equal_is_chance() -> None:
    arms = {("a", "8"): {0: [answers(0.7, 0)]}, ("b", "8"): {0: [answers(0.7, 0)]}}
    (found,) = effects(TASK, "a", arms, same_rows=True)
    assert found["value"] == 0 and found["p"] == 1.0 and found["wins"] == 0


def test_null_differences_are_seldom_called_significant() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for trial in range(60):
        targets = rng.integers(0, 3, 200)
        arms = {}
        for arm in ("a", "b"):
            said = np.where(rng.random(200) < 0.7, targets, (targets + 1) % 3)
            arms[arm, "8"] = {trial: [Answers(np.eye(3)[said], targets)]}
        (found,) = effects(TASK, "a", arms, same_rows=True)
        alarms += found["p"] < 0.05
    assert alarms <= 9  # 3 are expected; more than 9 has a probability below 0.002


def test_holm_against_the_table_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])  # type: ignore[comparison-overlap]
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
