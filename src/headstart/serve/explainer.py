"""Explanations beside the answers: a thread of their own, one at a time, few in line, given up when nobody waits."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from headstart.errors import DataError, HeadstartError, SpecError
from headstart.explanation import attribution
from headstart.explanation.attribution import Explanation, Question
from headstart.serve.refusals import Refused, bad
from headstart.serve.served import Served

IN_LINE = 4
"""Explanations that are made or wait; one takes as long as dozens of answers, so more are answered with 429."""

WAY = 10
"""How much less of the processor the thread claims than those that answer, as a niceness: a tenth of a full core.

Not less: a thread that is put off while it holds the interpreter's lock puts off the answers too. At 19, on full cores,
they waited up to 0.9 seconds (benchmarks/explain/why.py).
"""


class _GivenUp(Exception):
    """Nobody waits for this explanation any more."""


def _step_back() -> None:
    if sys.platform == "linux":  # where niceness belongs to a thread, and those that it starts inherit it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WAY)


class Explainer:
    """Makes the explanations of one server."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain", initializer=_step_back)
        self._here = 0

    async def explain(self, served: Served, row: str | bytes, label: str | None, task: str | None) -> Explanation:
        """The explanation of a row that was checked. Raises Refused: 400, 429 when busy, 501 where there is none."""
        if served.unexplained is not None:
            raise Refused(501, served.unexplained)
        if self._here >= IN_LINE:
            raise Refused(429, "too many explanations are asked for; try again in 5 seconds", {"Retry-After": "5"})
        self._here += 1
        stop = threading.Event()
        try:
            question = await served.lane.encoding(_asked, served, row, label, task)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, _answered, question, stop)
        finally:
            stop.set()
            self._here -= 1

    def close(self) -> None:
        """Let the thread go; what still waits is given up."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _asked(served: Served, row: str | bytes, label: str | None, task: str | None) -> Question:
    try:
        return attribution.ask(served.bundle, row, label=label, task=task)
    except DataError:
        raise bad(f"row 0: it is damaged, or cannot be read as {served.modality}") from None
    except SpecError as error:
        raise bad(str(error)) from None
    except HeadstartError as error:
        raise Refused(501, str(error)) from None


def _answered(question: Question, stop: threading.Event) -> Explanation:
    def tell() -> None:
        if stop.is_set():
            raise _GivenUp

    return attribution.answer(question, tell=tell)
