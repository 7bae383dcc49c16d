"""How fast models answer on this machine: measured in turn, so that a busy moment meets all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.bundle import Bundle

ROWS = 64
"""Rows of the batch that is timed."""

ONES = 8
"""Rows that are timed by themselves in each turn."""

TURNS = 5
"""Turns that count; one before them warms up."""

NOISE = 0.02
"""How much slower than the first model another may be measured and still count as no slower."""


@dataclass(frozen=True)
class Speed:
    """latency_ms: of one row, the median. rows_per_second: of a batch, the median over turns.

    once, many: how many times as fast as the first model, one row and a batch: medians of the ratios within a turn.
    """

    latency_ms: float
    rows_per_second: float
    once: float
    many: float

    @property
    def gain(self) -> float:
        """The product of both ratios, 0 for a model that is slower than the first in either."""
        slower = min(self.once, self.many) < 1 - NOISE
        return 0.0 if slower else self.once * self.many


def in_turn(models: Mapping[str, Bundle], inputs: Sequence[Any], turns: int = TURNS) -> dict[str, Speed]:
    """Times from raw input to answer, encoding included; the first model is what the others are compared with."""
    batch = [inputs[i % len(inputs)] for i in range(ROWS)]
    once: dict[str, list[list[float]]] = {name: [] for name in models}
    many: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(turns + 1):
        for name, model in models.items():
            ones = [_seconds(model, [inputs[(turn * ONES + i) % len(inputs)]]) for i in range(ONES)]
            whole = _seconds(model, batch)
            if turn:
                once[name].append(ones)
                many[name].append(whole)
    first = next(iter(models))
    one = {name: [float(np.median(ones)) for ones in turn] for name, turn in once.items()}
    return {
        name: Speed(
            round(1000 * float(np.median([value for ones in once[name] for value in ones])), 3),
            round(len(batch) / float(np.median(many[name])), 1),
            round(_ratio(one[first], one[name]), 3),
            round(_ratio(many[first], many[name]), 3),
        )
        for name in models
    }


def fastest(speeds: Mapping[str, Speed]) -> str:
    """The name of the model that gains most and is slower than the first neither at one row nor at many."""
    return max(speeds, key=lambda name: speeds[name].gain)


def _ratio(first: Sequence[float], other: Sequence[float]) -> float:
    return float(np.median([a / b for a, b in zip(first, other, strict=True)]))


def _seconds(model: Bundle, inputs: Sequence[Any]) -> float:
    started = time.perf_counter()
    model.outputs(inputs)
    return time.perf_counter() - started
