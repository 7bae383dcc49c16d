"""Models are timed in turn, and the choice never falls on one that is slower."""

from __future__ import annotations

from typing import Any

import numpy as np

from headstart.compression import timing
from headstart.compression.timing import Speed, fastest, in_turn


class Clock:
    """Time that passes only when a model answers."""

    def __init__(self) -> None:
        self.now = 0.0


class Timed:
    def __init__(self, name: str, clock: Clock, asked: list[tuple[str, int]], start: float, each: float) -> None:
        self.name, self.clock, self.asked, self.start, self.each = name, clock, asked, start, each

    def outputs(self, inputs: list[Any]) -> np.ndarray:
        self.asked.append((self.name, len(inputs)))
        self.clock.now += self.start + self.each * len(inputs)
        return np.zeros((len(inputs), 2))


def test_models_are_asked_in_turn_and_compared_with_the_first(monkeypatch: Any) -> None:
    clock, asked = Clock(), []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    models: Any = {
        "first": Timed("first", clock, asked, 0.010, 0.002), "other": Timed("other", clock, asked, 0.004, 0.001)
    }  # fmt: skip
    found = in_turn(models, ["a", "b", "c"], turns=2)
    one_turn = [*[("first", 1)] * 8, ("first", 64), *[("other", 1)] * 8, ("other", 64)]
    assert asked == one_turn * 3
    assert found["first"] == Speed(12.0, round(64 / 0.138, 1), 1.0, 1.0)
    assert found["other"] == Speed(5.0, round(64 / 0.068, 1), 2.4, round(0.138 / 0.068, 3))


def test_the_fastest_is_slower_at_nothing() -> None:
    start = Speed(10, 100, 1.0, 1.0)
    assert fastest({"start": start, "batches": Speed(12, 400, 0.8, 4.0)}) == "start"
    assert fastest({"start": start, "noise": Speed(10, 99, 0.99, 0.99)}) == "start"
    assert fastest({"start": start, "a": Speed(5, 150, 2.0, 1.5), "b": Speed(9, 250, 1.1, 2.5)}) == "a"
