"""Whether what a step keeps for its backward pass fits into memory, or must be computed again there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from headstart.encoded import Encoded
from headstart.errors import SpecError
from headstart.running import set_modes
from headstart.spec import TrainingSpec
from headstart.spec.notation import parse_size
from headstart.steps import casting, costing, recompute
from headstart.values import Batch, Choice

SAMPLE = 4
"""Rows of the longest batch that are weighed; memory grows with the rows, and all of them might not fit."""

SHARE = 0.9
"""Of the memory at hand that a plan may use: estimates are not exact, and others want some too."""

SAVES = 0.95
"""What gradient checkpointing keeps at most of what the plain network does, or it is not worth its time."""


@dataclass(frozen=True)
class Weighed:
    """Bytes that the longest batch keeps as it is chosen, and the choice."""

    kept: int
    choice: Choice


def choose(model: nn.Module, rows: Encoded, training: TrainingSpec, precision: str) -> Weighed:
    """Whether a stage is to use gradient checkpointing: as asked, or where its memory would not fit.

    model: a copy after the stage's surgery, with gradients switched on for what learns; its statistics may move.

    Raises SpecError when it is asked for and this network cannot be checkpointed.
    """
    batches = costing.batches(rows, training, backward=True)
    longest = max(batches, key=lambda index: len(index) * int(np.max(rows.prepared.lengths[index])))
    device = next(model.parameters()).device
    # The longest row of the batch among them, so that they are padded as the whole batch is.
    sample = longest[np.argsort(-rows.prepared.lengths[longest].astype(np.int64), kind="stable")][:SAMPLE]
    batch = rows.batch(sample.tolist()).to(device)
    set_modes(model, keep_stats=training.running_stats == "keep")
    with casting.running(model, precision):
        plain, again = recompute.kept_bytes(model, batch)
    plain, again = (size * len(longest) // len(sample) for size in (plain, again))
    if training.gradient_checkpointing == "off":
        return Weighed(plain, Choice(False))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    others = step_memory(trainable, total)
    free = at_hand(device, training.memory_limit)
    asked = training.gradient_checkpointing == "on"
    if not asked and (free is None or others + plain <= SHARE * free):
        return Weighed(plain, Choice(False))
    reason = _why_not(model, batch, precision, plain, again)
    if asked:
        if reason is not None:
            raise SpecError(
                f"training.gradient_checkpointing = 'on' cannot be had with this backbone and these methods: {reason}. "
                f"Leave it out, and make training.batch_size smaller, or set training.max_tokens, if memory is short"
            )
        return Weighed(again, Choice(True, "as asked"))
    need = f"a step needs about {_mib(others + plain)} of {_mib(free or 0)} at hand"
    if reason is not None:
        return Weighed(plain, Choice(False, f"{need}, and gradient checkpointing cannot be had: {reason}"))
    if others + again > SHARE * (free or 0):
        need += f", still {_mib(others + again)} with it"
    return Weighed(again, Choice(True, need))


def at_hand(device: torch.device, limit: str | None) -> int | None:
    """Bytes that may still be taken on the device: of the limit where one is set, else of what is free.

    None where the system does not tell.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        taken: int | None = torch.cuda.memory_allocated(device)
        found: int | None = free + idle
    else:
        taken, found = resident(), _free()
    if limit is None:
        return found
    left = max(0, parse_size(limit) - (taken or 0))
    return left if found is None else min(left, found)


def resident() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not tell (Linux does)."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def step_memory(trainable: int, total: int) -> int:
    """Bytes that training needs beside the weights and a batch: gradients, two moments, a copy of the weights."""
    return 12 * trainable + 4 * total


def _free(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the system, and the group of processes that this one is in, have left; None where neither tells."""
    found: list[int] = []
    try:
        lines = proc.read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass
    try:
        most, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        found += [max(0, int(most) - int(used))] if most != "max" else []
    except OSError:
        pass
    return min(found, default=None)


def _why_not(model: nn.Module, batch: Batch, precision: str, plain: int, again: int) -> str | None:
    if again > SAVES * plain:
        return f"it would keep {_mib(again)} of {_mib(plain)}"
    with casting.running(model, precision):
        return recompute.differs(model, batch)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
