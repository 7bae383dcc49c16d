"""Whether the rows of a step go through the network at once, or in parts one after the other, to the same step.

On a CPU what many pictures leave between two layers is far larger than its caches, and parts that fit are faster. The
gradient is the same sum, added up in another order. Both ways are timed on the first steps themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import nn

from headstart.values import Batch

ROWS = 16
"""Rows of a part. For EfficientNet-lite0 8 and 16 were as fast, at 224 pixels faster than 32, at 128 as fast as 32."""

PAIRS = 3
"""Steps that are timed in either way, turn about, after one of each to warm up."""

FASTER = 1.1
"""Parts must win by this factor."""


@dataclass
class Parts:
    """What was found. setting: `training.parts`. why: what was seen, once something was. on: whether parts are made.

    A step is cut only where its rows do not meet: not in a BatchNorm that takes statistics of the batch, and not in a
    method, for which `apart` speaks. Where the network draws (dropout), nothing is cut either: it would draw other
    numbers, and what a timing chooses may only differ by rounding. A draw by anything else ends the trial.
    """

    setting: str = "auto"
    apart: bool = False
    why: str = ""
    on: bool = False
    paces: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    """Seconds a row, at once and in parts, of the steps so far."""

    def cut(self, model: nn.Module, window: list[Batch]) -> list[Batch]:
        """The micro-batches of a step, in parts where that is faster, or is to be tried."""
        trying = self._open and len(self.paces[1]) < len(self.paces[0])
        if not (self.on or trying) or _must_be_whole(model):
            return window
        return [part for batch in window for part in _parts(batch)]

    @contextmanager
    def timed(self, window: list[Batch], *, cut: bool) -> Iterator[None]:
        """Around the passes of a step. cut: whether its rows were cut."""
        if not self._open:
            yield
            return
        rows, state = sum(map(len, window)), torch.get_rng_state()
        started = time.perf_counter()
        yield
        spent = (time.perf_counter() - started) / max(1, rows)
        if not torch.equal(state, torch.get_rng_state()):
            self.setting = "off"
            return
        if cut or any(len(batch) > ROWS and _fixed(batch) for batch in window):
            self.paces[cut].append(spent)
        if len(self.paces[1]) > PAIRS:
            whole, parts = (each[1:] for each in self.paces)
            gain = median(one / other for one, other in zip(whole, parts, strict=False))
            self.on = gain >= FASTER
            self.why = f"a step whose rows go through the network {ROWS} at a time is {gain:.2f} times as fast"

    @property
    def _open(self) -> bool:
        return self.setting == "auto" and self.apart and not self.why


def cuts(model: nn.Module, batch: Batch) -> bool:
    """Whether the rows of such a batch may go through this network in parts, as it stands now."""
    return _fixed(batch) and not _must_be_whole(model)


def _fixed(batch: Batch) -> bool:
    """Rows without a length, since a budget of tokens is what cuts the others, and not to be mixed in the network."""
    return "attention_mask" not in batch.inputs and batch.mix is None


def _parts(batch: Batch) -> list[Batch]:
    if len(batch) <= ROWS or not _fixed(batch):
        return [batch]
    return [batch.part(slice(start, start + ROWS)) for start in range(0, len(batch), ROWS)]


def _must_be_whole(model: nn.Module) -> bool:
    """Whether a BatchNorm takes statistics of the batch, or something draws (dropout, stochastic depth), just now."""
    for module in model.modules():
        if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
            return True
        share = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "drop_prob", 0.0)
        if module.training and share:
            return True
    return False
