"""Batches of rows of like length, so that little of a batch is padding."""

from __future__ import annotations

import numpy as np

_POOL_BATCHES = 16


def by_length(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int, shuffle: bool = True) -> list[np.ndarray]:
    """Row numbers in batches, every row once; the same for the same seed and epoch.

    lengths: (N,), what each row costs. Rows are shuffled, cut into pools of 16 batches, ordered by length inside a
    pool and cut into batches, which are shuffled again: batches are even in length, epochs are not alike, and a
    row may meet any other. Without shuffling, rows keep their order and batches are mere slices.
    """
    count = len(lengths)
    if not shuffle:
        return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    rng = np.random.default_rng([seed, epoch, count])
    order = rng.permutation(count)
    pool = batch_size * _POOL_BATCHES
    batches: list[np.ndarray] = []
    for start in range(0, count, pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches.extend(rows[at : at + batch_size] for at in range(0, len(rows), batch_size))
    return [batches[place] for place in rng.permutation(len(batches))]


def in_order(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Row numbers in batches, longest rows first, for inference: memory shows its peak at once.

    Put results back with the row numbers: `out[batch] = result`.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def by_pairs(labels: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches in which nearly every row stands with another of its class, for losses that compare rows.

    labels: (rows,) class numbers. Rows of a class are paired up at random, pairs are shuffled, and single rows left
    over come last; every row exactly once, the same for the same seed and epoch.
    """
    draws = np.random.default_rng((seed, epoch))
    pairs: list[np.ndarray] = []
    single: list[np.ndarray] = []
    for label in np.unique(labels):
        rows = draws.permutation(np.flatnonzero(labels == label))
        even = len(rows) // 2 * 2
        pairs += np.split(rows[:even], even // 2) if even else []
        single.append(rows[even:])
    order = np.concatenate([*(pairs[i] for i in draws.permutation(len(pairs))), *single]).astype(np.int64)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
