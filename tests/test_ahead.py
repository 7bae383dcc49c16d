"""Batches taken in the background: the same ones, errors in their place, no thread left, and only where it pays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from headstart import ahead
from headstart.ahead import TRIED, Ahead, behind
from headstart.errors import DataError, HeadstartError
from headstart.steps.ways import Ways
from method_runs import same, train, weights
from tiny import TinyRows, make_loop, make_rows


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "headstart-batches"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is moved by hand."""
    now = [0.0]
    monkeypatch.setattr(ahead.time, "perf_counter", lambda: now[0])
    return now


def test_the_order_stays() -> None:
    assert list(behind(lambda number: number * number, range(50))) == [number * number for number in range(50)]
    assert not threads()


def test_the_background_has_one_thread_and_leaves_others_theirs() -> None:
    def of_another() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for inside in behind(lambda number: torch.get_num_threads(), range(3)):
            assert inside == 1 and torch.get_num_threads() == 2
        assert torch.get_num_threads() == of_another() == 2
    finally:
        torch.set_num_threads(before)


def test_no_more_wait_than_may() -> None:
    """Two wait, and a third may be at hand while it finds no room."""
    taken: list[int] = []
    batches = behind(lambda number: taken.append(number) or number, range(50))  # type: ignore[func-returns-value]
    assert next(batches) == 0
    for _ in range(100):
        if len(taken) >= ahead.DEPTH + 2:
            break
        threading.Event().wait(0.01)
    threading.Event().wait(0.05)
    assert len(taken) <= ahead.DEPTH + 2
    batches.close()
    assert not threads()


def test_an_error_comes_in_its_place() -> None:
    def take(number: int) -> int:
        if number == 3:
            raise DataError("row 3 is broken")
        return number

    seen: list[int] = []
    with pytest.raises(DataError, match="row 3 is broken"):
        for number in behind(take, range(6)):
            seen.append(number)
    assert seen == [0, 1, 2] and not threads()


def run(setting: str, clock: list[float], taking: float, stepping: float, hidden: float) -> tuple[Ahead, list[int]]:
    """Take 40 batches in a pretended world in which the background hides this share of the taking."""
    found = Ahead(setting)
    seen: list[int] = []

    def take(number: int) -> int:
        if threading.current_thread() is threading.main_thread():
            clock[0] += taking
        return number

    for number in found.over(take, range(40)):
        seen.append(number)
        clock[0] += stepping + (taking * (1 - hidden) if TRIED <= number < 2 * TRIED else 0.0)
    return found, seen


@pytest.mark.parametrize(
    ("taking", "hidden", "on", "said"),
    [
        (0.5, 0.9, True, "taking a batch is 33% of a step, which is 1.43 times as fast"),
        (0.5, -0.1, False, "taking a batch is 33% of a step, and the background made it no faster"),
        (0.01, 1.0, False, ""),
    ],
)
def test_auto_keeps_what_was_faster(taking: float, hidden: float, on: bool, said: str, clock: list[float]) -> None:
    found, seen = run("auto", clock, taking, 1.0, hidden)
    assert found.on is on and found.why.startswith(said) and bool(found.why) == bool(said)
    assert seen == list(range(40)) and not threads()


@pytest.mark.parametrize("setting", ["on", "off"])
def test_what_is_asked_for_is_done(setting: str, clock: list[float]) -> None:
    found, seen = run(setting, clock, 0.5, 1.0, 1.0)
    assert found.on is (setting == "on") and seen == list(range(40)) and not threads()


def where(setting: str) -> tuple[list[bool], dict[str, Tensor]]:
    """Whether each batch was taken by another thread, and the weights at the end of a run."""
    rows, seen = make_rows(), []
    inner: Callable[[Sequence[int]], dict[str, Any]] = rows.prepared.take

    def take(index: Sequence[int]) -> dict[str, Any]:
        seen.append(threading.current_thread() is not threading.main_thread())
        return inner(index)

    rows.prepared.take = take  # type: ignore[method-assign]
    loop = make_loop(rows=rows, batch_size=8, prefetch=setting)
    return seen, weights(train(loop))


def test_a_run_ends_with_the_same_weights() -> None:
    (plain, expected), (hidden, found) = where("off"), where("on")
    assert not any(plain) and all(hidden) and len(plain) == len(hidden)
    assert same(expected, found) and not threads()


def test_nothing_is_left_when_a_run_fails() -> None:
    loop = make_loop(batch_size=8, prefetch="on", learning_rate=1e30)
    with pytest.raises(HeadstartError, match="the loss is"):
        loop.train()
    assert not threads()


def test_a_row_that_cannot_be_read_stops_the_run_with_its_message() -> None:
    rows = make_rows()

    class Broken(TinyRows):
        def take(self, index: Sequence[int]) -> dict[str, Tensor]:
            raise DataError("row 7 is damaged")

    broken = Broken(rows.prepared.rows)
    loop = make_loop(rows=type(rows)(broken, rows.targets, rows.weight, rows.origin), prefetch="on")
    loop.ways = Ways()
    with pytest.raises(DataError, match="row 7 is damaged"):
        loop.train()
    assert not threads() and torch.is_grad_enabled()
