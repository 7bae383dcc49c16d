"""Which rows are held out, and which training rows are kept. Every draw comes from the generator that is handed in.

Rows with equal inputs stand on the same side of a split made here, so that a split never leaks by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import numpy as np

from headstart.data.facts import number
from headstart.errors import DataError

ENOUGH_PER_CLASS = 16
"""With fewer rows a class on average no validation rows are split off: one row a class says little and costs much."""
_ALWAYS_FROM = 4
_GROUP_TRIES = 50


def rarest(classes: Sequence[tuple[str, ...]]) -> np.ndarray:
    """One code per row, (N,) int64: its class, or of several labels the rarest; having none is a class too."""
    counts = Counter(name for names in classes for name in names)
    chosen = [min(names, key=lambda name: (counts[name], name)) if names else "" for names in classes]
    _, codes = np.unique(np.asarray(chosen, dtype=str), return_inverse=True)
    return np.asarray(codes, np.int64)


def hold_out(
    keys: np.ndarray, share: float, rng: np.random.Generator, classes: Sequence[tuple[str, ...]] | None = None
) -> np.ndarray:
    """A mask of rows to hold out, (N,) bool: by class where there are classes, at random otherwise.

    keys: (N,) uint64, equal for equal inputs. Every class keeps a row in training, so that none can be held out where
    each class has one input. Shares are of different inputs, spread over classes by largest remainder; a class of four
    or more inputs always gives one. Raises DataError where all inputs are equal.
    """
    _, first, unit = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise DataError("all inputs are equal, so no rows can be held out: give other rows for validation and test")
    if classes is None:
        wanted = np.array([min(max(1, round(share * len(first))), len(first) - 1)])
        mask = _ranks(np.zeros(len(first), np.int64), rng) < wanted[0]
        return np.asarray(mask[unit], bool)
    codes = rarest([classes[row] for row in first])
    counts = np.bincount(codes)
    mask = _ranks(codes, rng) < _allocate(counts, share)[codes]
    return np.asarray(_keep_every_class(mask, unit, classes)[unit], bool)


def _ranks(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each row's place in a random order of the rows of its own class, (N,) int64."""
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    ranks: np.ndarray = np.empty(len(codes), np.int64)
    ranks[order] = np.arange(len(codes)) - np.repeat(starts, counts)
    return ranks


def _allocate(counts: np.ndarray, share: float) -> np.ndarray:
    """How many of each class to hold out: largest remainder, leaving every class one."""
    exact = counts * share
    held: np.ndarray = np.floor(exact).astype(np.int64)
    held = np.maximum(held, (counts >= _ALWAYS_FROM).astype(np.int64))
    held = np.minimum(held, counts - 1)
    missing = max(1, round(share * counts.sum())) - held.sum()
    for code in np.argsort(-(exact - held), kind="stable"):
        if missing <= 0:
            break
        if held[code] + 1 < counts[code]:
            held[code] += 1
            missing -= 1
    return held


def _keep_every_class(mask: np.ndarray, unit: np.ndarray, classes: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Move back inputs without which a class would be gone from training."""
    held = mask[unit]
    kept = {name for row in np.flatnonzero(~held).tolist() for name in classes[row]}
    mask = mask.copy()
    for row in np.flatnonzero(held).tolist():
        if mask[unit[row]] and not kept.issuperset(classes[row]):
            mask[unit[row]] = False
            kept.update(name for other in np.flatnonzero(unit == unit[row]).tolist() for name in classes[other])
    return mask


def hold_out_groups(
    groups: Sequence[Any], share: float, rng: np.random.Generator, classes: Sequence[tuple[str, ...]] | None = None
) -> np.ndarray:
    """A mask of rows to hold out, (N,) bool, that divides no group.

    Of several random choices the one that loses fewest classes from training and comes nearest to the share is taken.
    Raises DataError where there is only one group.
    """
    names, group = np.unique(np.asarray([str(value) for value in groups]), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"a split by group needs two groups or more, and every row has the same one ('{names[0]}')")
    sizes = np.bincount(group)
    codes = None if classes is None else rarest(classes)
    best: tuple[float, float] | None = None
    chosen = np.zeros(len(group), bool)
    for _ in range(_GROUP_TRIES):
        order = rng.permutation(len(names))
        filled = np.cumsum(sizes[order])[:-1]
        cut = int(np.argmin(np.abs(filled - share * len(group)))) + 1
        held = np.isin(group, order[:cut])
        lost = 0 if codes is None else len(np.unique(codes)) - len(np.unique(codes[~held]))
        score = (float(lost), abs(held.sum() - share * len(group)))
        if best is None or score < best:
            best, chosen = score, held
    return chosen


def hold_out_fold(
    units: Sequence[Any],
    fold: int,
    folds: int,
    rng: np.random.Generator,
    classes: Sequence[tuple[str, ...]] | None = None,
) -> np.ndarray:
    """A mask of the rows of one fold (from 1), (N,) bool; the folds of one seed are disjoint and cover all rows.

    units: (N,), rows of one unit (an input, a group) stay together. Units are dealt out class by class.
    Raises DataError where there are fewer units than folds.
    """
    _, first, unit = np.unique(np.asarray([str(u) for u in units]), return_index=True, return_inverse=True)
    if len(first) < folds:
        raise DataError(f"{folds} folds need {folds} different inputs (or groups) or more; there are {len(first)}")
    codes = np.zeros(len(first), np.int64) if classes is None else rarest([classes[row] for row in first])
    order = np.lexsort((_ranks(codes, rng), codes))
    dealt = np.empty(len(first), np.int64)
    dealt[order] = np.arange(len(first)) % folds
    return np.asarray((dealt == fold - 1)[unit], bool)


def hold_out_latest(times: np.ndarray, share: float) -> np.ndarray:
    """A mask of the latest rows, (N,) bool; rows of the same moment stay together.

    Raises DataError where every row has the same time.
    """
    moments, counts = np.unique(times, return_counts=True)
    if len(moments) < 2:
        raise DataError("a split by time needs two different times or more, and every row has the same one")
    later = np.cumsum(counts[::-1])[:-1]
    cut = int(np.argmin(np.abs(later - share * len(times)))) + 1
    return np.asarray(times >= moments[-cut])


def as_times(values: Sequence[Any], column: str, numbers: np.ndarray) -> np.ndarray:
    """Numbers, dates or ISO 8601 text as (N,) float64. Raises DataError naming the first other row."""
    found = np.empty(len(values), np.float64)
    kinds: dict[str, int] = {}
    for at, value in enumerate(values):
        moment = number(value) if not isinstance(value, date) else None
        kind = "number"
        if moment is None:
            moment, kind = _moment(value), "date"
        if moment is None:
            raise DataError(
                f"row {numbers[at]} has '{value}' in the time column '{column}': "
                f"expected numbers, or dates such as 2024-12-31 or 2024-12-31T18:30:00"
            )
        kinds.setdefault(kind, at)
        found[at] = moment
    if len(kinds) > 1:
        raise DataError(
            f"the time column '{column}' mixes numbers (row {numbers[kinds['number']]}) "
            f"and dates (row {numbers[kinds['date']]}): write all of them in one way"
        )
    return found


def _moment(value: Any) -> float | None:
    try:
        moment = value if isinstance(value, date) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    naive = moment.replace(tzinfo=None)
    shift = moment.utcoffset()
    return (naive - datetime(1970, 1, 1)).total_seconds() - (shift.total_seconds() if shift else 0.0)


def subsample(
    count: int,
    rng: np.random.Generator,
    *,
    classes: Sequence[tuple[str, ...]] | None,
    per_class: int | None = None,
    fraction: float | None = None,
) -> np.ndarray:
    """A mask of the training rows to keep, (N,) bool. With one seed, a smaller sample is part of a larger one.

    per_class: that many rows of each class, or all that it has. fraction: that share of each class, one row at least.
    Raises DataError for per_class without classes.
    """
    if classes is None:
        if per_class is not None:
            raise DataError("data.per_class needs classes, and the targets are numbers: use data.fraction")
        codes = np.zeros(count, np.int64)
    else:
        codes = rarest(classes)
    sizes = np.bincount(codes)
    wanted = sizes if fraction is None else np.maximum(1, np.round(fraction * sizes)).astype(np.int64)
    ranks = _ranks(codes, rng)  # one order for both limits, so that together they leave every class a row
    if classes is None or all(len(names) == 1 for names in classes):
        return np.asarray(ranks < np.minimum(wanted, per_class or count)[codes], bool)
    keep = np.asarray(ranks < wanted[codes], bool)
    if per_class is not None:
        keep &= _enough_of_each(classes, keep, per_class, rng)
    return _with_every_class(keep, classes)


def _enough_of_each(
    classes: Sequence[tuple[str, ...]], among: np.ndarray, per_class: int, rng: np.random.Generator
) -> np.ndarray:
    """Several labels a row: in random order, keep a row while one of its labels has too few."""
    keep = np.zeros(len(classes), bool)
    seen: Counter[str] = Counter()
    for row in rng.permutation(len(classes)).tolist():
        if among[row] and any(seen[name] < per_class for name in classes[row]):
            keep[row] = True
            seen.update(classes[row])
    return keep


def _with_every_class(keep: np.ndarray, classes: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Take back the first row of each class that a sample has lost."""
    kept = {name for row in np.flatnonzero(keep).tolist() for name in classes[row]}
    for row in np.flatnonzero(~keep).tolist():
        if not kept.issuperset(classes[row]):
            keep[row] = True
            kept.update(classes[row])
    return keep
