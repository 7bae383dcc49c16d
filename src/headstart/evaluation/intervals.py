"""How sure a measured number is: percentile bootstrap over rows (Efron and Tibshirani 1993, section 13.3).

A resample is a count per row. Tasks offer their metrics as functions of such counts (`Task.weighted`), most of them
through sums over rows, so a thousand resamples are a few matrix products and rows are never copied.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from headstart.protocols import Task
    from headstart.values import Weighted

RESAMPLES = 1000
FEWEST = 100
"""Resamples below which percentiles mean too little to be given."""

WORK = 200_000_000
"""Elements that the resamples of one group of metrics may touch: a second or two."""

MOST_WORK = 10 * WORK
"""Elements that may be touched where only the fewest resamples are drawn, on very many rows."""

CHUNK = 2_000_000
"""Counts held in memory at a time."""

LEVEL = 0.95

BIASED = frozenset({"ece"})
"""Metrics that resampling inflates (a gap in absolute value grows with noise): their draws are moved to centre on the
value (Efron and Tibshirani 1993, section 10.6), but not below zero."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; `low` and `high` are None where the rows cannot say."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """`value`, `low` and `high`."""
        return {"value": self.value, "low": self.low, "high": self.high}


def intervals(
    task: Task,
    scores: np.ndarray,
    targets: np.ndarray,
    *,
    names: Collection[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """The task's metrics, or those of `names`, with their intervals; the same seed gives the same numbers.

    scores: (rows,K), targets as the task encodes them. Metrics that the rows leave undefined (ROC-AUC of a single
    class) are left out. A metric whose resamples would cost too much has a value without interval.
    """
    found: dict[str, Interval] = {}
    for group in _groups(task, scores, targets):
        wanted = [name for name in group.names if names is None or name in names]
        if wanted:
            found |= _of_group(group, wanted, len(targets), resamples, seed)
    return found


def difference(
    task: Task,
    ours: np.ndarray,
    theirs: np.ndarray,
    targets: np.ndarray,
    *,
    metric: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float | None]:
    """`value`, `low`, `high` and `p` of a metric's difference (ours - theirs) between two models on the same rows.

    Both are resampled together, so that what makes a row hard for both cancels. See `paired_difference` for p.
    """
    name = metric or task.metric
    pair = [
        next(g for g in _groups(task, scores, targets) if name in g.names)  # both models offer the same groups
        for scores in (ours, theirs)
    ]
    drawn = min(resamples, max(FEWEST, WORK // max(1, 2 * pair[0].work)))
    once = np.ones((1, len(targets)), dtype=np.float32)
    value = float((pair[0].compute(once)[name] - pair[1].compute(once)[name])[0])
    draws = [
        pair[0].compute(counts)[name] - pair[1].compute(counts)[name]
        for counts in _resampled(len(targets), drawn, seed)
    ]
    return paired(value, np.concatenate(draws))


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float | None]:
    """`value`, `low`, `high` and `p` of the mean difference between two figures of the same rows, each (rows,).

    p: two-sided, twice the share of resamples on the far side of zero, those at zero counting on both sides; 1 for
    two models that answer alike. Raises ValueError when the shapes differ.
    """
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"expected two figures of the same rows, received shapes {ours.shape} and {theirs.shape}")
    change = ours - theirs
    drawn = min(resamples, max(FEWEST, WORK // max(1, 4 * len(change))))
    draws = [counts @ change / len(change) for counts in _resampled(len(change), drawn, seed)]
    return paired(float(change.mean()), np.concatenate(draws))


def measured_draws(
    task: Task,
    scores: np.ndarray,
    targets: np.ndarray,
    *,
    metric: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, np.ndarray]:
    """A metric on the rows, and on each resample of them, (resamples,). Equal rows and seed draw the same resamples."""
    name = metric or task.metric
    group = next(g for g in _groups(task, scores, targets) if name in g.names)
    drawn = min(resamples, max(FEWEST, WORK // max(1, group.work)))
    once = np.ones((1, len(targets)), dtype=np.float32)
    draws = [group.compute(counts)[name] for counts in _resampled(len(targets), drawn, seed)]
    return float(group.compute(once)[name][0]), np.concatenate(draws)


def percentiles(draws: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % interval of resampled figures; None, None where they do not differ."""
    draws = draws[~np.isnan(draws)]
    if len(draws) < FEWEST or draws.min() == draws.max():
        return None, None
    low, high = np.quantile(draws, _edges())
    return float(low), float(high)


def paired(value: float, draws: np.ndarray) -> dict[str, float | None]:
    """`value`, `low`, `high` and `p` of a difference from its resamples (resamples,). See `paired_difference` for p."""
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return {"value": value, "low": None, "high": None, "p": None}
    low, high = np.quantile(draws, _edges())
    # One draw is added on each side, so that no finite number of resamples claims a p of zero.
    tail = (1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))) / (1 + len(draws))
    return {"value": value, "low": float(low), "high": float(high), "p": min(1.0, 2 * tail)}


def _of_group(group: Weighted, names: Sequence[str], rows: int, resamples: int, seed: int) -> dict[str, Interval]:
    once = group.compute(np.ones((1, rows), dtype=np.float32))
    drawn = min(resamples, max(FEWEST, WORK // max(1, group.work)))
    affordable = drawn * group.work <= MOST_WORK and rows > 1
    parts = [group.compute(counts) for counts in _resampled(rows, drawn, seed)] if affordable else []
    found = {}
    for name in names:
        value = float(once[name][0])
        if math.isnan(value):
            continue
        draws = np.concatenate([part[name] for part in parts]) if parts else np.zeros(0)
        draws = draws[~np.isnan(draws)]
        if name in BIASED and len(draws):
            draws = np.maximum(draws + (value - draws.mean()), 0.0)
        if len(draws) >= FEWEST and draws.min() < draws.max():
            low, high = np.quantile(draws, _edges())
            found[name] = Interval(value, float(low), float(high))
        elif name in group.shares and value in (0.0, 1.0):
            found[name] = _unanimous(value, rows)
        else:
            found[name] = Interval(value)
    return found


def _unanimous(value: float, rows: int) -> Interval:
    """The exact interval (Clopper and Pearson 1934) of a share when all rows agree and resampling sees no doubt."""
    reach = ((1 - LEVEL) / 2) ** (1 / rows)
    return Interval(value, reach, 1.0) if value == 1.0 else Interval(value, 0.0, 1 - reach)


def _edges() -> tuple[float, float]:
    return (1 - LEVEL) / 2, (1 + LEVEL) / 2


def _resampled(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Counts (b,rows) float32 that sum to `rows` each, `resamples` of them in chunks."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // max(1, rows))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(0, rows, (size, rows)) + rows * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float32)


def _groups(task: Task, scores: np.ndarray, targets: np.ndarray) -> Sequence[Weighted]:
    """What the task offers, else one slow group of all that it measures."""
    return task.weighted(scores, targets) or [_measured_anew(task, scores, targets)]


def _measured_anew(task: Task, scores: np.ndarray, targets: np.ndarray) -> Weighted:
    from headstart.values import Weighted

    rows = np.arange(len(targets))

    def compute(counts: np.ndarray) -> dict[str, np.ndarray]:
        chosen = [np.repeat(rows, count.astype(np.int64)) for count in counts]
        measured = [task.measure(scores[index], targets[index]) for index in chosen]
        return {name: np.array([m[name] for m in measured]) for name in measured[0]}

    return Weighted(tuple(task.measure(scores, targets)), 50 * scores.size, compute)
