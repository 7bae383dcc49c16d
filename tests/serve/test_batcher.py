"""Rows of many callers in shared batches: every caller gets its own answers, whatever else goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.serve.batcher import Batcher, Pace, groups
from headstart.serve.refusals import Busy

BAD = -1


class Network:
    """Squares numbers; fails on `BAD` like a network that meets a row that it cannot take."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, rows: Sequence[int]) -> list[int]:
        self.gate.wait(5)
        self.batches.append(list(rows))
        if BAD in rows:
            raise ValueError("bad row")
        return [row * row for row in rows]


def with_batcher(test: Any, **options: Any) -> Any:
    """Run `test(batcher, network)` in an event loop; at the end nothing waits."""

    async def main() -> Any:
        network = Network()
        with ThreadPoolExecutor(1) as executor:
            batcher: Batcher[int, int] = Batcher(network, executor, **{"delay": 0.0, **options})
            try:
                return await test(batcher, network)
            finally:
                network.gate.set()
                await batcher.close()
                assert batcher.waiting == 0

    return asyncio.run(main())


OVERHEAD = st.sampled_from([0.0, 1.0, 40.0, 1e6])


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 9), st.integers(1, 900), OVERHEAD)
def test_groups_hold_every_place_once_within_the_budgets(
    lengths: list[int], rows: int, cost: int, overhead: float
) -> None:
    found = groups(lengths, rows, cost, overhead)
    assert sorted(place for group in found for place in group) == list(range(len(lengths)))
    for group in found:
        assert len(group) <= rows
        assert len(group) == 1 or len(group) * max(lengths[place] for place in group) <= cost
    assert [group[0] for group in found] == sorted(group[0] for group in found)


def price(lengths: list[int], cut: list[list[int]], overhead: float) -> float:
    return sum(overhead + len(group) * max(lengths[place] for place in group) for group in cut)


def every_cut(lengths: list[int], rows: int, cost: int) -> Iterator[list[list[int]]]:
    """All ways to cut the rows, sorted by length, into batches within the budgets."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for marks in product([False, True], repeat=max(0, len(order) - 1)):
        cut = [order[:1]]
        for mark, place in zip(marks, order[1:], strict=True):
            if mark:
                cut.append([place])
            else:
                cut[-1].append(place)
        if all(len(g) == 1 or (len(g) <= rows and len(g) * lengths[g[0]] <= cost) for g in cut):
            yield cut


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 5), st.integers(1, 200), OVERHEAD)
def test_groups_are_the_cheapest_of_all_cuts(lengths: list[int], rows: int, cost: int, overhead: float) -> None:
    least = min(price(lengths, cut, overhead) for cut in every_cut(lengths, rows, cost))
    assert price(lengths, groups(lengths, rows, cost, overhead), overhead) == pytest.approx(least)


def test_groups_put_similar_lengths_together() -> None:
    assert groups([100, 3, 98, 2], 4, 1000, 10) == [[0, 2], [1, 3]]
    assert groups([100, 3, 98, 2], 4, 1000, 500) == [[0, 1, 2, 3]]
    assert groups([1, 1, 1], 4, 1000, 1) == [[0, 1, 2]]


def test_the_pace_finds_what_starting_a_batch_costs() -> None:
    pace = Pace(7.0, 1000.0)
    assert pace.overhead == 7.0
    for length in (10, 200, 60, 10, 400):
        pace.add(length, 2, 0.02 + 0.0005 * length)
    assert pace.overhead == pytest.approx(40.0)
    same = Pace(7.0, 1000.0)
    for _ in range(9):
        same.add(7, 7, 0.1)
    assert same.overhead == 7.0 and same.rate == pytest.approx(70)
    flat = Pace(7.0, 1000.0)
    for length in (10, 200, 60, 10, 400):
        flat.add(length, 2, 0.02)
    assert flat.overhead == 1000.0


REQUEST = st.tuples(
    st.lists(st.one_of(st.integers(0, 1000), st.just(BAD)), max_size=9),
    st.booleans(),
    st.integers(0, 3),
)


@given(st.lists(REQUEST, max_size=14), st.integers(1, 5), st.integers(1, 2000), st.sampled_from([0.0, 0.002]))
def test_answers_in_company_are_the_answers_alone(
    requests: list[tuple[list[int], bool, int]], rows: int, cost: int, delay: float
) -> None:
    """Random mixes of sizes, bad rows and callers that go away: the others get what they would get by themselves."""

    async def test(batcher: Batcher[int, int], network: Network) -> None:
        async def call(values: list[int], pause: int) -> list[int]:
            for _ in range(pause):
                await asyncio.sleep(0)
            with batcher.room(len(values)):
                return await batcher.submit(values, [max(1, value) for value in values])

        tasks = [asyncio.create_task(call(values, pause)) for values, _, pause in requests]
        await asyncio.sleep(0)
        for task, (_, leaves, _) in zip(tasks, requests, strict=True):
            if leaves:
                task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for (values, leaves, _), answer in zip(requests, found, strict=True):
            if leaves:
                assert isinstance(answer, asyncio.CancelledError) or answer == [v * v for v in values]
            elif BAD in values:
                assert isinstance(answer, ValueError)
            else:
                assert answer == [value * value for value in values]

    with_batcher(test, rows=rows, cost=cost, queue=1000, delay=delay)


def test_rows_that_wait_while_the_network_is_busy_share_a_batch() -> None:
    async def test(batcher: Batcher[int, int], network: Network) -> None:
        network.gate.clear()
        tasks = [asyncio.create_task(batcher.submit([n], [1])) for n in range(6)]
        await asyncio.sleep(0.01)
        network.gate.set()
        assert await asyncio.gather(*tasks) == [[n * n] for n in range(6)]
        assert max(map(len, network.batches)) > 1

    with_batcher(test)


def test_a_lone_caller_does_not_wait_for_company() -> None:
    """With a delay of an hour, it would never be answered if it did."""

    async def test(batcher: Batcher[int, int], network: Network) -> None:
        for n in range(5):
            assert await asyncio.wait_for(batcher.submit([n], [1]), 10) == [n * n]

    with_batcher(test, delay=3600.0)


def test_callers_that_come_together_are_waited_for() -> None:
    async def test(batcher: Batcher[int, int], network: Network) -> None:
        async def call(n: int) -> None:
            for _ in range(4):
                await batcher.submit([n], [1])

        await asyncio.gather(*(call(n) for n in range(8)))
        assert len(network.batches) <= 6

    with_batcher(test, delay=0.5)


def test_a_row_that_was_cancelled_is_never_run() -> None:
    async def test(batcher: Batcher[int, int], network: Network) -> None:
        network.gate.clear()
        first = asyncio.create_task(batcher.submit([1], [1]))
        await asyncio.sleep(0.01)
        second, third = (asyncio.create_task(batcher.submit([n], [1])) for n in (2, 3))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0)
        network.gate.set()
        assert await first == [1] and await third == [9]
        assert 2 not in [row for batch in network.batches for row in batch]

    with_batcher(test)


def test_a_full_queue_is_refused_with_a_time_and_takes_rows_again_later() -> None:
    async def test(batcher: Batcher[int, int], network: Network) -> None:
        with batcher.room(3), pytest.raises(Busy) as refused, batcher.room(2):
            pass
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        with batcher.room(4):
            assert await batcher.submit([2], [1]) == [4]

    with_batcher(test, queue=4)


def test_closing_answers_what_waits() -> None:
    async def test(batcher: Batcher[int, int], network: Network) -> None:
        network.gate.clear()
        tasks = [asyncio.create_task(batcher.submit([n] * 5, [1] * 5)) for n in range(7)]
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        network.gate.set()
        await closing
        assert await asyncio.gather(*tasks) == [[n * n] * 5 for n in range(7)]

    with_batcher(test, rows=2)


def test_a_network_that_loses_a_row_is_an_error_and_not_a_hang() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher: Batcher[int, int] = Batcher(lambda rows: rows[1:], executor, delay=0.0)
            with pytest.raises(RuntimeError, match="1 rows went in and 0 answers came out"):
                await batcher.submit([1], [1])
            await batcher.close()

    asyncio.run(main())


def test_an_owner_that_floods_does_not_keep_the_others_waiting() -> None:
    async def test(batcher: Batcher[int, int], network: Network) -> None:
        network.gate.clear()
        flood = asyncio.create_task(batcher.submit(list(range(100)), [1] * 100, "many"))
        await asyncio.sleep(0.01)  # the first batches of the flood are under way
        few = [asyncio.create_task(batcher.submit([1000 + n], [1], name)) for n, name in enumerate("ab")]
        await asyncio.sleep(0.01)
        network.gate.set()
        await asyncio.gather(*few)
        assert not flood.done()
        assert await flood == [row * row for row in range(100)]
        order = [row for batch in network.batches for row in batch]
        assert order.index(1000) <= 20 and order.index(1001) <= 20  # a window of 16 was taken before they came
        assert [row for row in order if row < 100] == list(range(100))

    with_batcher(test, rows=4)


def test_each_owner_has_a_queue_of_its_own() -> None:
    async def test(batcher: Batcher[int, int], network: Network) -> None:
        with batcher.room(3, "a"), batcher.room(2, "b"):
            assert (batcher.waiting, batcher.waiting_of("a"), batcher.waiting_of("c")) == (5, 3, 0)
            with pytest.raises(Busy), batcher.room(2, "a"):
                pass
            with batcher.room(2, "b"):
                assert batcher.waiting_of("b") == 4
        assert not batcher._waiting

    with_batcher(test, queue=4)


def test_the_next_batch_waits_in_the_executor_while_one_runs() -> None:
    """The network goes on at once when a batch ends, even if the event loop has other things to do then."""

    async def test(batcher: Batcher[int, int], network: Network) -> None:
        network.gate.clear()
        asked = asyncio.gather(batcher.submit([1, 2, 3], [5, 5, 5]), batcher.submit([4, 5, 6], [9, 9, 9]))
        for _ in range(20):
            await asyncio.sleep(0)
        queue: Any = batcher._executor
        assert network.batches == [] and queue._work_queue.qsize() == 1
        network.gate.set()
        assert await asked == [[1, 4, 9], [16, 25, 36]]
        assert sorted(map(len, network.batches)) == [2, 2, 2], "each still of its own size, one after another"

    with_batcher(test, rows=2)
