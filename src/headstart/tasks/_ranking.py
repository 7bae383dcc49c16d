"""Rank statistics of weighted rows: the scores are sorted once, every resample only counts.

Shapes: rows = R, distinct scores = G, resamples = B. `counts` (B,R) says how often a resample holds each row.
"""

from __future__ import annotations

import numpy as np


class Ranking:
    """One column of scores (R,), sorted, with equal scores in one group."""

    def __init__(self, scores: np.ndarray) -> None:
        self.order = np.argsort(scores, kind="stable")
        ordered = scores[self.order]
        changes = np.ones(len(ordered), dtype=bool)
        changes[1:] = ordered[1:] != ordered[:-1]
        self.starts = np.flatnonzero(changes)
        self.group = np.empty(len(ordered), dtype=np.int64)
        self.group[self.order] = np.cumsum(changes) - 1

    def sums(self, counts: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Counts per group of equal scores, lowest score first: (B,G). `chosen` (R,) leaves other rows out."""
        ordered = counts[:, self.order].astype(np.float64)
        if chosen is not None:
            ordered *= chosen[self.order]
        # Where no two scores are equal, each row is a group of its own.
        return ordered if len(self.starts) == len(self.order) else np.add.reduceat(ordered, self.starts, axis=1)

    def midranks(self, counts: np.ndarray) -> np.ndarray:
        """The rank of each row among the resampled rows, ties sharing their mean rank: (B,R)."""
        sums = self.sums(counts)
        ranks = np.cumsum(sums, axis=1) - sums / 2 + 0.5
        return ranks[:, self.group]


def areas(counts: np.ndarray, ranking: Ranking, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision of one column, each (B,); nan without both kinds of row.

    The first is the chance that a positive row scores above a negative one, ties counting half; the second the mean,
    over positive rows, of the precision among the rows that score at least as high.
    """
    rows = ranking.order[positive[ranking.order]]
    groups, starts = np.unique(ranking.group[rows], return_index=True)
    if not len(rows):
        return np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    # All that is asked for is asked where there are positives, which of many classes are few of the rows.
    every = ranking.sums(counts)
    so_far = np.cumsum(every, axis=1)
    every, up_to = every[:, groups], so_far[:, groups]
    positives = np.add.reduceat(counts[:, rows].astype(np.float64), starts, axis=1)
    hit = np.cumsum(positives, axis=1)
    total, rest = hit[:, -1], so_far[:, -1] - hit[:, -1]
    below = (up_to - every) - (hit - positives)
    at_least = so_far[:, -1:] - up_to + every
    hits = total[:, None] - hit + positives
    with np.errstate(divide="ignore", invalid="ignore"):
        roc = (positives * (below + (every - positives) / 2)).sum(1) / (total * rest)
        precision = np.where(at_least > 0, hits / np.where(at_least > 0, at_least, 1.0), 0.0)
        average = (positives * precision).sum(1) / total
    defined = (total > 0) & (rest > 0)
    return np.where(defined, roc, np.nan), np.where(defined, average, np.nan)


def macro_areas(counts: np.ndarray, rankings: list[Ranking], positive: np.ndarray) -> dict[str, np.ndarray]:
    """`roc_auc` and `average_precision`, each (B,): the mean over columns that have both kinds of row.

    positive: (R,K) bool.
    """
    found = np.array([areas(counts, ranking, positive[:, k]) for k, ranking in enumerate(rankings)])
    return {"roc_auc": mean_defined(found[:, 0]), "average_precision": mean_defined(found[:, 1])}


def mean_defined(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis of what is not nan; nan where nothing is."""
    defined = ~np.isnan(values)
    count = defined.sum(0)
    total = np.where(defined, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def rank_correlation(counts: np.ndarray, left: Ranking, right: Ranking) -> np.ndarray:
    """Spearman's correlation (B,): Pearson's of midranks; nan where one side is constant."""
    a, b = left.midranks(counts), right.midranks(counts)
    middle = (counts.sum(1, keepdims=True) + 1) / 2
    a, b = a - middle, b - middle
    spread = (counts * a * a).sum(1) * (counts * b * b).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, (counts * a * b).sum(1) / np.sqrt(spread), np.nan)
