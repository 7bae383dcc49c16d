"""Taking the next batches in the background while a step runs, where taking them is a good part of a step.

The batches are the same, in the same order; what fails while one is taken is raised where it would have been used.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")

TRIED = 6
"""Batches that are timed one after the other, and then as many in the background, before one of the two is kept."""

SHARE = 0.03
"""Of the time of a step and its batch, what taking the batch must take for the background to be tried."""

DEPTH = 2
"""Batches that wait at most: memory grows by as many."""


@dataclass
class Ahead:
    """How batches are taken. setting: `training.prefetch`. why: what was seen, once something was."""

    setting: str = "auto"
    why: str = ""
    on: bool = False

    def over(self, take: Callable[[T], U], items: Sequence[T]) -> Generator[U, None, None]:
        """`take` of each item in order. Close it when it is not used up, so that no thread is left."""
        start = 0
        self.on = self.setting == "on"
        if self.setting == "auto" and len(items) > 2 * TRIED:
            taking, alone = yield from _timed(map(take, items[:TRIED]))
            start = TRIED
            if taking > SHARE * alone:
                together = items[TRIED : 2 * TRIED]
                _, both = yield from _timed(behind(take, together))
                start = 2 * TRIED
                self.on = both < alone
                said = f"taking a batch is {taking / alone:.0%} of a step"
                self.why = said + (
                    f", which is {alone / both:.2f} times as fast with batches taken in the background"
                    if self.on
                    else ", and the background made it no faster"
                )
        rest = items[start:]
        yield from behind(take, rest) if self.on else map(take, rest)


def _timed(items: Iterable[U]) -> Generator[U, None, tuple[float, float]]:
    """Passes the items on; seconds spent in taking them, and in all."""
    taking, begun = 0.0, time.perf_counter()
    iterator = iter(items)
    try:
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return taking, time.perf_counter() - begun
            taking += time.perf_counter() - started
            yield item
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def behind(take: Callable[[T], U], items: Sequence[T]) -> Generator[U, None, None]:
    """`take` of each item in order, by a thread that is up to `DEPTH` ahead and ends with the generator.

    Its operations run on that thread alone. A team of its own would wait, spinning, on the cores that the steps run on:
    steps on pictures took 1.4 times as long with it. torch counts threads for each thread, and has a default for new
    ones, which is what it was when the generator ends.
    """
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(DEPTH)
    stop = threading.Event()
    threads = torch.get_num_threads()

    def put(ended: bool, value: Any) -> None:
        while not stop.is_set():
            try:
                return waiting.put((ended, value), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        torch.set_num_threads(1)
        try:
            for item in items:
                if stop.is_set():
                    return
                put(False, take(item))
        except BaseException as error:  # raised by whoever asks for the batch
            put(True, error)
        else:
            put(True, None)

    thread = threading.Thread(target=work, name="headstart-batches", daemon=True)
    thread.start()
    try:
        while True:
            ended, value = waiting.get()
            if ended:
                if value is not None:
                    raise value
                return
            yield value
    finally:
        stop.set()
        thread.join()
        torch.set_num_threads(threads)
