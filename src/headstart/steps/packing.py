"""Whether rows of a batch are computed without their padding: where there is much of it, and it measured faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from headstart.encoded import Encoded
from headstart.errors import SpecError
from headstart.model import quiet
from headstart.running import set_modes
from headstart.spec import TrainingSpec
from headstart.steps import casting, costing
from headstart.steps.untouched import apart
from headstart.values import Batch, Choice

PADDING = 0.15
"""Share of padding from which packing is tried: with 12 % a whole run was no faster."""

STEPS = 10
"""What trying it takes, about, in steps."""

FASTER = 1.1
"""Packing must win by this factor."""

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "bf16_weights": 5e-2}
"""How far features and gradients of the rows that are tried may differ, as a share of the largest, by precision."""

Modes = Callable[[nn.Module], AbstractContextManager[Any]]

PAIRS = 3
TRIED = 8


def choose(
    model: nn.Module, rows: Encoded, training: TrainingSpec, precision: str, *, epochs: int | None = None,
    beyond: float = 1.0,
) -> Choice:  # fmt: skip
    """Whether a stage is to pack its rows: as asked, or where it pays.

    model: a copy after the stage's surgery, with gradients switched on for what learns. epochs: of the stage; a short
    one tries nothing. beyond: how many times as fast padded rows can be had otherwise, in a way that packed ones
    cannot go; where packing could not win more than that, it is not tried.

    Raises SpecError when it is asked for and this backbone cannot be packed.
    """
    if training.packing == "off":
        return Choice(False)
    batches = costing.batches(rows, training, backward=True)
    lengths = rows.prepared.lengths.astype(np.int64)
    room = sum(len(index) * int(lengths[index].max()) for index in batches)
    padding = 1 - sum(int(lengths[index].sum()) for index in batches) / max(1, room)
    asked = training.packing == "on"
    short = epochs is not None and epochs * len(batches) < costing.WORTH * STEPS
    if not asked and (short or padding < PADDING or (1 - padding) ** 2 * beyond >= 1):  # attention grows by the square
        return Choice(False)
    # A GPU's kernels draw numbers of their own, whatever is chosen.
    drawing = not asked and next(model.parameters()).device.type == "cpu"
    if (reason := _why_not(model, rows, precision, drawing=drawing)) is not None:
        if asked:
            raise SpecError(f"training.packing = 'on' cannot be had with this backbone and these methods: {reason}")
        return Choice(False)
    if asked:
        return Choice(True, "as asked")
    usual = sorted(batches, key=lambda index: int(lengths[index].sum()))[len(batches) // 2]
    ratios = []
    for number in range(PAIRS + 1):
        plain = _seconds(model, rows, usual, precision)
        with within(model):
            packed = _seconds(model, rows, usual, precision)
        ratios += [plain / packed] if number else []  # the first pair warms up
    model.zero_grad(set_to_none=True)
    gain = median(ratios)
    why = f"{padding:.0%} is padding, and a step without it is {gain:.2f} times as fast"
    return Choice(gain >= FASTER * beyond, why, gain)


def _seconds(model: nn.Module, rows: Encoded, index: np.ndarray, precision: str) -> float:
    clock = costing.clock(next(model.parameters()).device)
    started = clock()
    costing.once(model, rows, index, precision=precision, backward=True)
    return clock() - started


def within(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, rows are computed without their padding. Raises SpecError where the backbone cannot."""
    backbone: Any = model.backbone
    found: AbstractContextManager[None] | str = backbone.packed()
    if isinstance(found, str):
        raise SpecError(f"the rows of '{backbone.ref}' cannot be packed: {found}")
    return found


def _why_not(model: nn.Module, rows: Encoded, precision: str, *, drawing: bool) -> str | None:
    """Tries a few rows of different lengths: features and gradients must be those of padded rows.

    drawing: with dropout too. Timings differ from run to run, so what they choose may only differ by rounding.
    """
    backbone: Any = model.backbone
    if isinstance(reason := backbone.packed(), str):
        return reason
    order = np.argsort(rows.prepared.lengths, kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, TRIED).round().astype(int))]
    device = next(model.parameters()).device
    batch = rows.batch(picked.tolist()).to(device)
    for modes in (quiet, _drawing) if drawing else (quiet,):
        try:
            plain = _answers(model, batch, precision, modes)
            with within(model):
                packed = _answers(model, batch, precision, modes)
        except Exception as error:  # foreign code that is given what it does not expect
            return " ".join(str(error).split())[:200]
        if any(apart(one, other, TOLERANCE[precision]) for one, other in zip(plain, packed, strict=True)):
            return "packed rows do not give what padded ones give"
    return None


@contextmanager
def _drawing(model: nn.Module) -> Iterator[None]:
    """Inside, the model draws what it draws in training, from a seed of its own."""
    devices = [p.device for p in list(model.parameters())[:1] if p.device.type == "cuda"]
    before = [(module, module.training) for module in model.modules()]
    try:
        set_modes(model, keep_stats=True)
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            yield
    finally:
        for module, training in before:
            module.training = training


def _answers(model: nn.Module, batch: Batch, precision: str, modes: Modes) -> list[list[torch.Tensor | None]]:
    """Features, and the gradients of what learns."""
    learning = [p for p in model.parameters() if p.requires_grad]
    with modes(model), torch.enable_grad():
        with casting.running(model, precision):
            features, outputs = model(batch)
        found = torch.autograd.grad(outputs.float().square().mean(), learning, allow_unused=True)
    return [[features.pooled.float().detach()], list(found)]
