"""Splits and samples: nothing is lost, nothing leaks, every class stays in training."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart import data
from headstart.data import splits
from headstart.spec import Spec

CLASSES = st.lists(st.sampled_from("abcde"), min_size=2, max_size=80)
SHARES = st.floats(0.02, 0.7)


@settings(max_examples=80, deadline=None)
@given(CLASSES, SHARES, st.integers(0, 5))
def test_by_class(labels: list[str], share: float, seed: int) -> None:
    classes = [(label,) for label in labels]
    keys = np.arange(len(labels), dtype=np.uint64)
    held = splits.hold_out(keys, share, np.random.default_rng(seed), classes)
    assert held.shape == (len(labels),) and held.dtype == bool
    kept = [label for label, out in zip(labels, held, strict=True) if not out]
    assert set(kept) == set(labels)
    for label in set(labels):
        total = labels.count(label)
        out = total - kept.count(label)
        assert abs(out - share * total) <= 1.0 + 1e-9 or out in (1, total - 1)
    if max(labels.count(label) for label in labels) >= 4:
        assert held.any()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("ab")), min_size=3, max_size=60), SHARES)
def test_equal_inputs_stay_together(rows: list[tuple[int, str]], share: float) -> None:
    keys = np.array([key for key, _ in rows], np.uint64)
    classes = [(label,) for _, label in rows]
    if len(set(keys.tolist())) < 2:
        return
    for given_classes in (classes, None):
        held = splits.hold_out(keys, share, np.random.default_rng(0), given_classes)
        assert not set(keys[held].tolist()) & set(keys[~held].tolist())
        assert (~held).any()
        if given_classes is not None:
            kept = {classes[row] for row in np.flatnonzero(~held)}
            assert kept == set(classes)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcd")), min_size=2, max_size=60), SHARES)
def test_every_one_of_several_labels_stays(labels: list[set[str]], share: float) -> None:
    classes = [tuple(sorted(names)) for names in labels]
    held = splits.hold_out(np.arange(len(labels), dtype=np.uint64), share, np.random.default_rng(0), classes)
    kept = {name for names, out in zip(classes, held, strict=True) if not out for name in names}
    assert kept == {name for names in classes for name in names}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=80), SHARES)
def test_groups_are_not_divided(groups: list[int], share: float) -> None:
    if len(set(groups)) < 2:
        return
    held = splits.hold_out_groups(groups, share, np.random.default_rng(0))
    sides = [{g for g, out in zip(groups, held, strict=True) if out == side} for side in (True, False)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=80), SHARES)
def test_later_rows_are_held_out(times: list[int], share: float) -> None:
    if len(set(times)) < 2:
        return
    stamps = np.array(times, np.float64)
    held = splits.hold_out_latest(stamps, share)
    assert stamps[held].min() > stamps[~held].max()
    # No other cut between two moments comes nearer to the share.
    cuts = [(stamps >= moment).sum() for moment in np.unique(stamps)[1:]]
    assert abs(held.sum() - share * len(times)) == min(abs(cut - share * len(times)) for cut in cuts)


def test_groups_that_hold_a_class_alone_stay_in_training() -> None:
    groups = [n // 5 for n in range(100)]
    classes = [("rare",) if n < 5 else ("ab"[n % 2],) for n in range(100)]
    for seed in range(5):
        held = splits.hold_out_groups(groups, 0.5, np.random.default_rng(seed), classes)
        assert not held[:5].any()


@settings(max_examples=60, deadline=None)
@given(CLASSES, st.integers(1, 6), st.integers(1, 6), st.floats(0.05, 1))
def test_samples_are_nested(labels: list[str], first: int, second: int, fraction: float) -> None:
    classes = [(label,) for label in labels]

    def sample(**asked: float) -> np.ndarray:
        return splits.subsample(len(labels), np.random.default_rng(7), classes=classes, **asked)  # type: ignore[arg-type]

    small, large = (sample(per_class=count) for count in sorted((first, second)))
    assert not (small & ~large).any()
    for label in set(labels):
        mine = np.array([other == label for other in labels])
        assert small[mine].sum() == min(min(first, second), mine.sum())
        assert sample(fraction=fraction)[mine].sum() == max(1, round(fraction * mine.sum()))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=40),
    st.none() | st.integers(1, 4),
    st.floats(0.05, 1),
)
def test_a_sample_has_every_class(labels: list[set[str]], per_class: int | None, fraction: float) -> None:
    classes = [tuple(sorted(names)) for names in labels]
    kept = splits.subsample(
        len(classes), np.random.default_rng(0), classes=classes, per_class=per_class, fraction=fraction
    )
    assert {n for row in np.flatnonzero(kept) for n in classes[row]} == {n for names in classes for n in names}


def test_enough_rows_of_each_of_several_labels() -> None:
    classes = [("a", "b"), ("a",), ("b",), ("c",), ()] * 10
    kept = splits.subsample(len(classes), np.random.default_rng(0), classes=classes, per_class=3)
    counts = {name: sum(name in classes[row] for row in np.flatnonzero(kept)) for name in "abc"}
    assert counts["c"] == 3 and counts["a"] >= 3 and counts["b"] >= 3
    assert kept.sum() <= 9


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 25), st.sampled_from(["a", "b", "", "A"])), min_size=4, max_size=60),
    st.floats(0, 0.4),
    st.none() | st.integers(1, 4),
    st.none() | st.floats(0.1, 1),
    st.integers(0, 3),
)
def test_rows_always_add_up(
    rows: list[tuple[int, str]], test_fraction: float, per_class: int | None, fraction: float | None, seed: int
) -> None:
    """Whatever is in the rows: each is in one part or counted as dropped, and no split made here leaks."""
    texts = [f"text {number}" if number else "" for number, _ in rows]
    spec = Spec.make(
        data={
            "on_bad_row": "skip",
            "test_fraction": test_fraction,
            **({"per_class": per_class} if per_class else {}),
            **({"fraction": fraction} if fraction else {}),
        },
        task={"name": "classification"},
        training={"seed": seed},
    )
    usable = [(text, label) for text, (_, label) in zip(texts, rows, strict=True) if text and label]
    try:
        loaded = data.from_memory(texts, [label for _, label in rows], spec=spec)
    except data_errors() as error:
        few = len({label for _, label in usable}) < 2 or len({text for text, _ in usable}) < 2
        assert few or "each class has a single input" in str(error), error
        return
    assert loaded.rows.adds_up
    assert loaded.rows.read == len(rows)
    parts = [part for part in (loaded.train, loaded.validation, loaded.test) if part is not None]
    numbers = np.concatenate([part.source_rows for part in parts])
    assert len(set(numbers.tolist())) == len(numbers) == loaded.rows.read - sum(loaded.rows.dropped.values())
    for place, part in enumerate(parts):
        assert all(rows[number - 1][1] == label for number, label in zip(part.source_rows, part.labels(), strict=True))
        for other in parts[:place]:
            assert not set(part.inputs()) & set(other.inputs())
    assert not [finding for finding in loaded.findings if finding.code == "leakage"]


def data_errors() -> type[Exception]:
    from headstart.errors import DataError

    return DataError
