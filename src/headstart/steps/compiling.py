"""The blocks of a network as torch.compile makes them, where that measured faster over the whole run.

Blocks are compiled one by one, so equal ones are compiled once, and hooks on them are called as ever. Sizes are left
open (`dynamic`), dropout draws what it draws without a compiler, and what is not trained (validation, passes without
gradients) is not compiled. A block that a method looks into, and everything after a failure of the compiler, runs
plainly: a compiler that is missing or wrong about a network costs speed, never a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from headstart.inside import Forward, plain, replaced
from headstart.steps.untouched import untouched
from headstart.values import Batch, Choice

Around = Callable[[], AbstractContextManager[Any]]

LONG = 20 * 60.0
"""Seconds that a run must be expected to take before it is tried at all: a network of six equal blocks was compiled in
60 s, one of seven different ones in ten minutes."""

SHARE = 0.05
"""Of the expected time, what compiling may take before it is given up; the block that is being compiled is finished."""

PAIRS = 3
"""Steps in pairs for each batch that is tried, plain and compiled, turn about."""

FASTER = 1.05
"""A compiled step must win by this factor: two timings of one thing differ by as much."""


@dataclass
class Compiled:
    """Compiled forwards by block. failed: why the compiler was given up, after which blocks run plainly."""

    forwards: dict[nn.Module, Forward] = field(default_factory=dict)
    failed: str = ""

    def add(self, block: nn.Module) -> None:
        """From now on this block is compiled, when it is first trained."""
        compile_: Any = torch.compile
        self.forwards[block] = compile_(block.forward, dynamic=True, options={"fallback_random": True})

    def within(self) -> AbstractContextManager[None]:
        """Inside, the blocks run compiled."""
        return replaced(list(self.forwards), lambda block, forward: partial(self._run, block, forward))

    def _run(self, block: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if self.failed or not torch.is_grad_enabled() or not plain(list(block.modules())[1:]):
            return forward(*args, **kwargs)
        try:
            return self.forwards[block](*args, **kwargs)
        except Exception as error:  # compilers fail in many ways; what is wrong without one fails again below
            self.failed = " ".join(str(error).split())[:200] or type(error).__name__
            return forward(*args, **kwargs)


def all_of(blocks: Sequence[nn.Module]) -> Compiled:
    """Every block that learns, compiled; those in which nothing does are often not run at all."""
    found = Compiled()
    for block in blocks:
        if any(p.requires_grad for p in block.parameters()):
            found.add(block)
    return found


def choose(
    model: nn.Module, batches: Sequence[Batch], seconds: float, around: Around
) -> tuple[Compiled | None, Choice]:
    """Whether a run that is expected to take `seconds` is faster with compiled blocks, and what they are then.

    batches: a short, a usual and a long one. around: makes the context of a pass.
    model: in the modes of training; random numbers, statistics and gradients are left as they were.
    """
    found, started = Compiled(), time.perf_counter()
    backbone: Any = model.backbone
    with untouched(model):
        for block in backbone.blocks:
            if not any(p.requires_grad for p in block.parameters()):
                continue
            found.add(block)
            with found.within():
                _step(model, batches[-1], around)
            spent = time.perf_counter() - started
            if found.failed:
                return None, Choice(False, f"blocks cannot be compiled here: {found.failed}")
            if spent > SHARE * seconds:
                said = f"compiling took more than {spent:.0f} s of a run of about {seconds:.0f} s, and was given up"
                return None, Choice(False, said)
        with found.within():
            for batch in batches:
                _step(model, batch, around)
        warm = time.perf_counter() - started
        plainly = compiled = 0.0
        for _ in range(PAIRS):
            for batch in batches:
                plainly += _step(model, batch, around)
                with found.within():
                    compiled += _step(model, batch, around)
    gain = plainly / compiled
    on = not found.failed and gain >= FASTER and seconds / gain + warm < seconds
    said = f"a compiled step is {gain:.2f} times as fast, and compiling took {warm:.0f} s of about {seconds:.0f} s"
    return (found if on else None), Choice(on, said)


def _step(model: nn.Module, batch: Batch, around: Around) -> float:
    """Seconds of a forward and a backward pass."""
    started = time.perf_counter()
    with around():
        loss = model(batch)[1].float().square().mean()
    loss.backward()
    if loss.device.type == "cuda":
        torch.cuda.synchronize(loss.device)
    return time.perf_counter() - started
