"""Rows of several requests answered together: gathered briefly, grouped by length, each result to its own caller.

One task per model takes what waits, oldest first, cuts it into batches of similar length and runs them one after
another in a thread. While a batch runs, the next rows gather by themselves. When the network is idle, rows wait for
company only if the last batches had company, and never longer than `delay`: a lone caller is answered at once.

Where several models share the network, each is an owner with a queue of its own, and they take turns, row after row:
one that floods does not keep the others waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from headstart.serve.refusals import Busy

Row = TypeVar("Row")
Answer = TypeVar("Answer")

WINDOW = 4
"""How many batches' worth of rows are looked at together when rows of similar length are grouped."""


@dataclass(eq=False)
class _Job(Generic[Row, Answer]):
    """One request. taken: rows already given to a batch; left: rows without an answer."""

    rows: Sequence[Row]
    lengths: Sequence[int]
    done: asyncio.Future[list[Answer]]
    answers: list[Answer | None] = field(default_factory=list)
    taken: int = 0
    left: int = 0


_Place = tuple[_Job[Row, Answer], int]


def groups(lengths: Sequence[int], rows: int, cost: int, overhead: float = 0.0) -> list[list[int]]:
    """Places cut into batches of similar length: at most `rows` each, and at most `cost` of length with padding.

    Of all ways to cut the rows sorted by length, the cheapest, where a batch costs `overhead` and its length with
    padding: dynamic programming over the last batch. A single row longer than `cost` is a batch by itself. Batches come
    in the order of their oldest row.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    best = [0.0]  # of the first n rows in order
    starts: list[int] = []
    for end in range(1, len(order) + 1):
        options = []
        for start in range(end - 1, max(-1, end - 1 - rows), -1):
            padded = (end - start) * lengths[order[start]]
            if end - start > 1 and padded > cost:
                break
            options.append((best[start] + overhead + padded, start))
        least, start = min(options)
        best.append(least)
        starts.append(start)
    found: list[list[int]] = []
    end = len(order)
    while end:
        found.append(sorted(order[starts[end - 1] : end]))
        end = starts[end - 1]
    return sorted(found, key=lambda group: group[0])


class Pace:
    """What a batch costs in seconds, learned as batches are run: seconds = a + b length, the latest weighing most.

    prior: the `overhead` before batches of several lengths were seen. most: the highest that it may be.
    """

    KEPT = 0.97

    def __init__(self, prior: float, most: float) -> None:
        self._prior, self._most = prior, most
        self._sums = [0.0] * 5
        self.rate = 0.0

    def add(self, length: int, rows: int, seconds: float) -> None:
        """One batch: its length with padding, its rows, what it took."""
        new = (1.0, length, length * length, seconds, length * seconds)
        self._sums = [self.KEPT * old + value for old, value in zip(self._sums, new, strict=True)]
        rate = rows / max(1e-6, seconds)
        self.rate = rate if not self.rate else 0.8 * self.rate + 0.2 * rate

    @property
    def overhead(self) -> float:
        """a / b: the length that takes as long as starting a batch does."""
        count, x, xx, t, xt = self._sums
        spread = count * xx - x * x
        if count < 4 or spread <= 1e-3 * xx * count:
            return self._prior
        slope = (count * xt - x * t) / spread
        start = (t - slope * x) / count
        # Starting costs all there is where length does not matter, as on a large accelerator.
        return min(self._most, max(0.0, start) / slope) if slope > 1e-12 else self._most


def _closed(rows: Sequence[object]) -> Any:
    raise RuntimeError("this queue is closed")


class Batcher(Generic[Row, Answer]):
    """Gathers rows and answers them in batches.

    run: answers of a batch, one a row, called in `executor`. cost: of a batch, padding included. queue: rows that may
    wait, per owner. delay: seconds. watch: told the rows of every batch that was run.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Row]], Sequence[Answer]],
        executor: Executor,
        *,
        rows: int = 32,
        cost: int = 16_384,
        queue: int = 512,
        delay: float = 0.003,
        watch: Callable[[Sequence[Row]], None] = lambda rows: None,
    ) -> None:
        self._run: Callable[[Sequence[Row]], Sequence[Answer]] = run
        self._watch: Callable[[Sequence[Row]], None] = watch
        self._executor = executor
        self._rows, self._cost, self._queue, self._delay = rows, cost, queue, delay
        self._queues: dict[Hashable, deque[_Job[Row, Answer]]] = {}  # the owner whose turn is next comes first
        self._arrived = asyncio.Event()
        self._company = 1.0
        self._pace = Pace(cost / 64, cost)
        self._task: asyncio.Task[None] | None = None
        self._active = False
        self._waiting: Counter[Hashable] = Counter()

    @property
    def waiting(self) -> int:
        """Rows that wait or are answered, of all owners."""
        return self._waiting.total()

    def waiting_of(self, owner: Hashable) -> int:
        """Rows of one owner that wait or are answered."""
        return self._waiting[owner]

    @contextmanager
    def room(self, rows: int, owner: Hashable = None) -> Iterator[None]:
        """A place in the queue for this many rows, held until they are answered. Raises Busy when there is none."""
        if self._waiting[owner] + rows > self._queue:
            seconds = self.waiting / self._pace.rate if self._pace.rate else 1.0
            raise Busy(min(60, max(1, math.ceil(seconds))))
        self._waiting[owner] += rows
        try:
            yield
        finally:
            self._waiting[owner] -= rows
            if not self._waiting[owner]:
                del self._waiting[owner]

    async def submit(self, rows: Sequence[Row], lengths: Sequence[int], owner: Hashable = None) -> list[Answer]:
        """The answers of these rows, in their order. Raises what `run` raised on one of them, and on no other's.

        Cancelling the caller takes its rows out of the queue.
        """
        if not rows:
            return []
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        job = _Job[Row, Answer](rows, lengths, asyncio.get_running_loop().create_future())
        job.answers, job.left = [None] * len(rows), len(rows)
        self._queues.setdefault(owner, deque()).append(job)
        self._arrived.set()
        return await job.done

    async def close(self) -> None:
        """Answer what waits, then stop."""
        while self._queues or self.waiting or self._active:
            await asyncio.sleep(0.005)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        # Who made this queue holds it, and is held by it: the network would stay until the next collection of cycles.
        self._run, self._watch = _closed, _closed

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await self._gather()
            self._active = True
            window = self._take()
            if self._queues:
                self._arrived.set()
            else:
                self._arrived.clear()
            callers = len({id(job) for job, _ in window})
            self._company = max(float(callers), 0.5 * (self._company + callers), 1.0)
            lengths = [job.lengths[row] for job, row in window]
            running: asyncio.Task[None] | None = None
            for group in groups(lengths, self._rows, self._cost, self._pace.overhead):
                # The next batch waits in the executor already when one ends, however busy this loop is then.
                following = asyncio.create_task(self._answer([window[place] for place in group]))
                if running is not None:
                    await running
                running = following
            if running is not None:
                await running
            del window, running  # what waits here must not hold on to models that are let go
            self._active = False

    async def _gather(self) -> None:
        """Wait for as many callers as the last batches had, for `delay` at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._delay
        while (left := end - loop.time()) > 0:
            jobs = [job for queue in self._queues.values() for job in queue]
            if len(jobs) >= round(self._company) or sum(len(job.rows) - job.taken for job in jobs) >= self._rows:
                return
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _take(self) -> list[_Place[Row, Answer]]:
        """The oldest rows of each owner in turn, without those whose caller is gone."""
        window: list[_Place[Row, Answer]] = []
        while self._queues and len(window) < WINDOW * self._rows:
            owner, jobs = next(iter(self._queues.items()))
            job = jobs[0]
            if not job.done.done():
                window.append((job, job.taken))
                job.taken += 1
            if job.done.done() or job.taken == len(job.rows):
                jobs.popleft()
            del self._queues[owner]
            if jobs:
                self._queues[owner] = jobs
        return window

    async def _answer(self, group: Sequence[_Place[Row, Answer]]) -> None:
        group = [(job, row) for job, row in group if not job.done.done()]
        if not group:
            return
        loop = asyncio.get_running_loop()
        try:
            rows = [job.rows[row] for job, row in group]
            found, seconds = await loop.run_in_executor(self._executor, self._timed, rows)
            if len(found) != len(group):
                raise RuntimeError(f"{len(group)} rows went in and {len(found)} answers came out")
        except Exception as error:  # whatever a network raises belongs to the requests that were in it
            await self._apart(group, error)
            return
        longest = max(job.lengths[row] for job, row in group)
        self._pace.add(longest * len(group), len(group), seconds)
        self._watch(rows)
        for (job, row), answer in zip(group, found, strict=True):
            job.answers[row] = answer
            job.left -= 1
            if job.left == 0 and not job.done.done():
                job.done.set_result([each for each in job.answers if each is not None])

    def _timed(self, rows: Sequence[Row]) -> tuple[Sequence[Answer], float]:
        start = time.perf_counter()
        return self._run(rows), time.perf_counter() - start

    async def _apart(self, group: Sequence[_Place[Row, Answer]], error: Exception) -> None:
        """After a failure: each request by itself, so that the one at fault fails alone."""
        jobs = list(dict.fromkeys(job for job, _ in group))
        if len(jobs) == 1:
            if not jobs[0].done.done():
                jobs[0].done.set_exception(error)
            return
        for job in jobs:
            await self._answer([(each, row) for each, row in group if each is job])
