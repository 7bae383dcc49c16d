"""What a run is going to do, worked out and printed before anything is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from headstart.encoded import Encoded
from headstart.protocols import EXCLUSIVE, Method, overrides
from headstart.spec import TrainingSpec

STEPS = 300
"""Optimiser steps that a run of few rows should have: with them a fresh head and low rates have time to move."""

EPOCHS = (5, 50)
"""Fewest and most epochs that the plan chooses by itself."""

HOOKS = (
    "rows",
    "adapt",
    "groups",
    "stream",
    "transform",
    "penalty",
    "prior",
    "backward",
    "gradients",
    "after_step",
    "finish",
)

LEARNING_RATE = {"text": 1e-4, "image": 3e-4, "audio": 1e-4}
"""For the whole backbone, by modality: starting points that were not tuned."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: who learns, in which order hooks run, what it costs. Sizes in bytes, times in seconds."""

    name: str
    methods: tuple[str, ...]
    hooks: Mapping[str, tuple[str, ...]]
    epochs: int
    steps: int
    learning_rate: float
    passes_per_step: float
    trainable: int
    total: int
    precision: str
    seconds: float | None
    memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """The whole run."""

    task: str
    modality: str
    backbone: str
    labels: int
    rows: Mapping[str, Any]
    stages: tuple[StagePlan, ...]
    said: tuple[str, ...] = ()
    findings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = self.rows
        lines = [f"Plan: {self.task} on {self.modality}, {self.labels} outputs, backbone {self.backbone}"]
        dropped = ", ".join(f"{count} {reason}" for reason, count in rows["dropped"].items()) or "0"
        lines.append(
            f"  rows       {rows['read']} read = {rows['trained']} to train + {rows['validated']} to validate "
            f"+ {rows['tested']} to test + {rows['unlabelled']} unlabelled + dropped ({dropped})"
        )
        for stage in self.stages:
            lines += _stage_lines(stage)
        lines += [f"  data       {sentence}" for sentence in self.said]
        lines += [f"  finding    {sentence}" for sentence in self.findings]
        return "\n".join(lines)


def _stage_lines(stage: StagePlan) -> list[str]:
    share = 100 * stage.trainable / max(1, stage.total)
    head = f"  stage      {stage.name}: {', '.join(stage.methods) or 'everything learns'}"
    if not stage.steps:
        work = "solved exactly on frozen features"
    else:
        work = f"{stage.epochs} epochs, {stage.steps} steps, rate {stage.learning_rate:g}, {stage.precision}"
        if stage.passes_per_step != 1:
            work += f", {stage.passes_per_step:g} passes a step"
    lines = [head, f"             {work}"]
    memory = f"{stage.memory_bytes / 2**20:,.0f} MiB for them"
    cost = f"learns {stage.trainable:,} of {stage.total:,} parameters ({share:.1f} %), {memory}"
    lines.append(f"             {cost}" + (f", about {_duration(stage.seconds)}" if stage.seconds is not None else ""))
    order = [f"{hook}: {' > '.join(names)}" for hook, names in stage.hooks.items()]
    if order:
        lines.append(f"             {'; '.join(order)}")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def choose_epochs(training: TrainingSpec, rows: int) -> int:
    """The user's epochs, else enough for `STEPS` steps within `EPOCHS`."""
    if training.epochs is not None:
        return training.epochs
    steps = math.ceil(rows / (training.batch_rows * training.accumulate))
    return min(max(EPOCHS[0], math.ceil(STEPS / max(1, steps))), EPOCHS[1])


def choose_rate(training: TrainingSpec, methods: Mapping[str, Method], modality: str) -> float:
    """The user's learning rate, else what the methods suggest, else the modality's."""
    if training.learning_rate is not None:
        return training.learning_rate
    suggested = [rate for m in methods.values() if (rate := m.learning_rate(modality)) is not None]
    return suggested[0] if suggested else LEARNING_RATE.get(modality, 1e-4)


def choose_device(name: str) -> torch.device:
    """The named device, or a GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_bf16(precision: str, device: torch.device) -> bool:
    """Whether to train in bf16 autocast: as asked, else where the device multiplies bf16 matrices natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(amx and amx())


def measure(model: nn.Module, rows: Encoded, training: TrainingSpec, *, bf16: bool, backward: bool) -> float:
    """Seconds a row, from one warm-up and one timed batch of rows of middling length; the model is left as it was."""
    order = rows.prepared.lengths.argsort(kind="stable")
    size = min(training.batch_rows, len(order))
    middle = max(0, len(order) // 2 - size // 2)
    batch = rows.batch(order[middle : middle + size].tolist())
    device = next(model.parameters()).device
    batch = batch.to(device)
    was_training = model.training
    model.eval()
    started = 0.0
    for timed in (False, True):
        if timed:
            started = time.perf_counter()
        with torch.set_grad_enabled(backward), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            outputs = model(batch)[1]
        if backward:
            outputs.float().square().mean().backward()
            model.zero_grad(set_to_none=True)
    model.train(was_training)
    return (time.perf_counter() - started) / size


def describe_stage(
    name: str,
    methods: Mapping[str, Method],
    training: TrainingSpec,
    *,
    rows: int,
    epochs: int,
    rate: float,
    trainable: int,
    total: int,
    bf16: bool,
    row_seconds: float | None,
) -> StagePlan:
    """A stage's plan from what was chosen for it."""
    exact = training.optimizer == "lbfgs"
    steps = 0 if exact else epochs * math.ceil(rows / (training.batch_rows * training.accumulate))
    passes = math.prod(method.passes() for method in methods.values())
    hooks = {
        hook: tuple(label for label, method in methods.items() if overrides(method, hook))
        for hook in dict.fromkeys((*HOOKS, *EXCLUSIVE))
    }
    seconds = None if row_seconds is None else row_seconds * rows * (1 if exact else epochs * passes)
    return StagePlan(
        name=name,
        methods=tuple(methods),
        hooks={hook: names for hook, names in hooks.items() if names},
        epochs=0 if exact else epochs,
        steps=steps,
        learning_rate=rate,
        passes_per_step=passes,
        trainable=trainable,
        total=total,
        precision="bf16" if bf16 and not exact else "fp32",
        seconds=seconds,
        # Weights of everything; gradients and two moments of what learns.
        memory_bytes=4 * total + 12 * trainable,
    )
