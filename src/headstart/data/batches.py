"""Batches of rows of like length, so that little of a batch is padding."""

from __future__ import annotations

import numpy as np

_POOL_BATCHES = 16


def by_length(
    lengths: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    groups: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Row numbers in batches, every row once; the same for the same seed and epoch.

    lengths: (N,), what each row costs. Rows are shuffled, cut into pools of 16 batches, ordered by length inside a
    pool and cut into batches, which are shuffled again: batches are even in length, epochs are not alike, and a
    row may meet any other. Without shuffling, rows keep their order and batches are mere slices.

    groups: (N,), such as the tasks of the rows. Each batch then has its share of every group: rows are ordered by
    their place among the lengths of their own group, so that the short of one stand with the short of the others.
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
        order_by = lengths[rows] if groups is None else _places(lengths[rows], groups[rows])
        rows = rows[np.argsort(order_by, kind="stable")]
        batches.extend(rows[at : at + batch_size] for at in range(0, len(rows), batch_size))
    return [batches[place] for place in rng.permutation(len(batches))]


def _places(lengths: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each row's place among the lengths of its group, in (0, 1)."""
    found = np.empty(len(lengths))
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        found[own[np.argsort(lengths[own], kind="stable")]] = (np.arange(len(own)) + 0.5) / len(own)
    return found


def by_task(
    lengths: np.ndarray,
    tasks: np.ndarray,
    batch_size: int,
    *,
    sampling: str,
    temperature: float,
    seed: int,
    epoch: int,
) -> list[np.ndarray]:
    """Row numbers of several tasks in batches; the same for the same seed and epoch.

    tasks: (N,), the task of each row. An epoch has N rows, of which a task of n rows gets a share proportional to n
    (sampling 'size', every row once), to n^(1/temperature) ('temperature'), or the same share as every other
    ('uniform', 'round_robin'). A task's rows are taken in turn from one epoch to the next, so that all are seen equally
    often. Batches hold every task in proportion; those of 'round_robin' hold one task each, and tasks take turns.
    """
    if sampling == "size":
        return by_length(lengths, batch_size, seed=seed, epoch=epoch, groups=tasks)
    own = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
    power = 1 / temperature if sampling == "temperature" else 0.0
    counts = _shares(np.array([len(rows) for rows in own], dtype=np.float64) ** power, len(tasks))
    drawn = [
        _in_turn(rows, count, (seed, number), epoch)
        for number, (rows, count) in enumerate(zip(own, counts.tolist(), strict=True))
    ]
    if sampling != "round_robin":
        rows = np.concatenate(drawn)
        plan = by_length(lengths[rows], batch_size, seed=seed, epoch=epoch, groups=tasks[rows])
        return [rows[batch] for batch in plan]
    plans = [[rows[batch] for batch in by_length(lengths[rows], batch_size, seed=seed, epoch=epoch)] for rows in drawn]
    return [plan[turn] for turn in range(max(map(len, plans))) for plan in plans if turn < len(plan)]


def _shares(weights: np.ndarray, total: int) -> np.ndarray:
    """`total` rows in proportion to the weights, by largest remainder; each gets at least one."""
    exact = total * weights / weights.sum()
    found: np.ndarray = np.maximum(np.floor(exact), 1).astype(np.int64)
    order = np.argsort(-(exact - np.floor(exact)), kind="stable")
    for place in range(total - int(found.sum())):
        found[order[place % len(order)]] += 1
    return found


def _in_turn(rows: np.ndarray, count: int, seed: tuple[int, int], epoch: int) -> np.ndarray:
    """The next `count` rows of an endless sequence of permutations, each epoch from where the last one ended."""
    start = epoch * count
    first, last = start // len(rows), (start + count - 1) // len(rows)
    drawn = np.concatenate([np.random.default_rng((*seed, lap)).permutation(rows) for lap in range(first, last + 1)])
    return drawn[start - first * len(rows) :][:count]


def by_budget(lengths: np.ndarray, most: int) -> list[np.ndarray]:
    """Row numbers in batches for inference, longest rows first, every row once: memory shows its peak at once.

    lengths: (N,), what each row costs, counted as 1 or more. A batch costs its rows times the longest of them, at most
    `most`; only a row that costs more by itself makes a batch that does. Every batch is as full as can be: a little
    padding costs less than more shapes of batches, for which libraries make kernels and keep memory.

    Put results back with the row numbers: `out[batch] = result`. Raises ValueError for a budget below 1.
    """
    if most < 1:
        raise ValueError(f"expected a budget of at least 1, received {most}")
    costs = np.maximum(np.asarray(lengths, np.int64), 1)
    order = np.argsort(-costs, kind="stable")
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        room = max(1, most // int(costs[order[start]]))
        batches.append(order[start : start + room])
        start += room
    return batches


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
