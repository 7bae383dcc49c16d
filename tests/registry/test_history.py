"""Who served before whom, whatever moment a process is killed at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headstart.registry import history

STEPS = st.lists(
    st.tuples(st.sampled_from(["promote", "rollback"]), st.integers(1, 4), st.booleans()), min_size=1, max_size=25
)


@given(STEPS)
def test_the_list_and_the_alias_say_who_was_before_even_when_writes_are_cut_off(
    steps: list[tuple[str, int, bool]],
) -> None:
    """Against a plain stack. A promotion that is cut off has written its list only, a rollback all but its list."""
    text = ""
    alias: int | None = None
    plain: list[int] = []
    for what, version, cut_off in steps:
        if what == "promote" and version != alias:
            text = history.write([*history.up_to(history.read(text), alias), version])
            if not cut_off:
                alias = version
                plain.append(version)
        elif what == "rollback" and alias is not None:
            served = history.up_to(history.read(text), alias)
            text = history.write(served)
            previous = history.before(served, alias, {1, 2, 3, 4})
            assert previous == (plain[-2] if len(plain) > 1 else None)
            if previous is None:
                continue
            below = served[:-1]
            alias = previous
            plain.pop()
            if not cut_off:
                text = history.write(history.up_to(below, previous))
        assert alias == (plain[-1] if plain else None)


def test_versions_that_are_gone_are_passed_over() -> None:
    assert history.before([1, 2, 3], 3, {1, 3}) == 1
    assert history.before([1, 2, 3], 3, {3}) is None
    assert history.before([], 3, {3}) is None


def test_a_champion_that_somebody_else_crowned_comes_after_what_is_known() -> None:
    assert history.up_to([1, 2], 7) == [1, 2, 7]
    assert history.before([1, 2], 7, {1, 2, 7}) == 2


def test_the_text_stays_within_what_mlflow_keeps() -> None:
    many = list(range(100_000, 103_000))
    text = history.write(many)
    assert len(text) < 5000 and history.read(text) == many[-history.KEPT :]
    assert history.read("") == []
