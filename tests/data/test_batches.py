"""Batches hold every row once, and rows of like length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.data import by_budget, by_length, by_pairs

LENGTHS = st.lists(st.integers(1, 300), min_size=0, max_size=300).map(lambda values: np.array(values, np.int32))


@settings(max_examples=80, deadline=None)
@given(LENGTHS, st.integers(1, 40), st.integers(0, 3), st.booleans())
def test_every_row_once(lengths: np.ndarray, size: int, epoch: int, shuffle: bool) -> None:
    batches = by_length(lengths, size, seed=1, epoch=epoch, shuffle=shuffle)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    assert all(0 < len(batch) <= size for batch in batches)
    assert len(batches) == -(-len(lengths) // size)


def test_the_same_for_seed_and_epoch_only() -> None:
    lengths = np.random.default_rng(0).integers(1, 99, 500)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(by_length(lengths, 16, seed=seed, epoch=epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) != order(2, 3)


def test_little_padding() -> None:
    """Padding of a tenth of what plain shuffling gives; batches are not in order of length."""
    lengths = np.random.default_rng(0).integers(1, 200, 4000)

    def padding(batches: list[np.ndarray]) -> float:
        return float(sum(lengths[batch].max() * len(batch) for batch in batches) - lengths.sum()) / lengths.sum()

    batches = by_length(lengths, 32, seed=0, epoch=0)
    plain = np.array_split(np.random.default_rng(0).permutation(4000), 125)
    assert padding(batches) < padding(plain) / 10
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_without_shuffling_rows_keep_their_order() -> None:
    batches = by_length(np.array([5, 1, 9, 2, 7]), 2, seed=0, epoch=0, shuffle=False)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(1, 2000))
def test_a_budget_is_kept_and_every_row_is_there_once(lengths: np.ndarray, most: int) -> None:
    batches = by_budget(lengths, most)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    assert all(len(batch) for batch in batches)
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= most for batch in batches)
    order = lengths[np.concatenate(batches)] if batches else lengths
    assert (np.diff(order.astype(int)) <= 0).all(), "longest first"
    again = by_budget(lengths, most)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    assert all((len(batch) + 1) * lengths[batch].max() > most for batch in batches[:-1]), "all but the last are full"


def test_batches_have_few_shapes_and_hardly_any_padding() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 15, 3000).astype(np.int32)
    batches = by_budget(lengths, 1024)
    assert len({int(lengths[batch].max()) * len(batch) for batch in batches}) < len(batches) / 1.2
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    by_rows = sum(int(chunk.max()) * len(chunk) for chunk in np.array_split(np.sort(lengths), 3000 // 64))
    assert padded < 1.06 * lengths.sum() < by_rows


def test_longest_first_within_a_budget() -> None:
    lengths = np.array([3, 9, 1, 7, 9, 0], np.uint8)
    batches = by_budget(lengths, 18)
    assert [batch.tolist() for batch in batches] == [[1, 4], [3, 0], [2, 5]]
    answers = np.empty(6)
    for batch in batches:
        answers[batch] = lengths[batch]
    assert (answers == lengths).all()
    assert [batch.tolist() for batch in by_budget(lengths[:2], 2)] == [[1], [0]], "long rows stand alone"
    assert by_budget(lengths[:0], 5) == []


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a budget of at least 1, received 0"):
        by_budget(np.array([1, 2]), 0)


def test_pairs_of_a_class() -> None:
    labels = np.array([0, 1, 0, 1, 0, 2, 2, 1, 1])
    batches = by_pairs(labels, 4, seed=0, epoch=0)
    rows = np.concatenate(batches)
    assert sorted(rows.tolist()) == list(range(9))
    assert all(labels[rows[at]] == labels[rows[at + 1]] for at in range(0, 8, 2))
