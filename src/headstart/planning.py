"""What a run is going to do, worked out and printed before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from headstart.protocols import EXCLUSIVE, Method, overrides
from headstart.running import has_statistics
from headstart.spec import TrainingSpec
from headstart.steps.costing import Costs
from headstart.steps.memory import step_memory
from headstart.steps.precision import Precision

STEPS = 300
"""Optimiser steps that a run of few rows should have: with them a fresh head and low rates have time to move."""


REPORT_BYTES = 70 * 2**20
"""What measuring and reporting load beside the model, as measured on a probe of texts."""


EPOCHS = (5, 50)
"""Fewest and most epochs that the plan chooses by itself."""

KEPT_STEPS = 500
"""Optimiser steps up to which BatchNorm keeps its pretrained statistics: about as long as the longest run in which
keeping them was measured (benchmarks, "Statistics of BatchNorm")."""

KEPT_RATE = 1e-4
"""For the whole backbone while it keeps them: activations then grow with the weights, and 3e-4 cost 10 points on photos
that look like those of pretraining."""

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
    """One stage: who learns, in which order hooks run, what it costs. Sizes in bytes, times in seconds.

    memory_bytes: weights, gradients and moments. batch_bytes: what a step keeps of its longest batch, where measured.
    """

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
    batch_bytes: int | None = None
    precision_why: str = ""
    stats_kept: bool = False
    """Whether BatchNorm keeps its pretrained statistics."""
    ways: tuple[str, ...] = ()
    """How steps are made otherwise than plainly, and why."""


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
    memory_bytes: int | None = None
    """The peak that is expected of the process; None where nothing was measured."""

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
        work += f" in {stage.precision}" if stage.precision != "fp32" else ""
        work += f" ({stage.precision_why})" if stage.precision_why else ""
    else:
        work = f"{stage.epochs} epochs, {stage.steps} steps, rate {stage.learning_rate:g}, {stage.precision}"
        work += f" ({stage.precision_why})" if stage.precision_why else ""
        if stage.stats_kept:
            work += ", statistics of BatchNorm kept"
        if stage.passes_per_step != 1:
            work += f", {stage.passes_per_step:g} passes a step"
    lines = [head, f"             {work}"]
    memory = f"{stage.memory_bytes / 2**20:,.0f} MiB for them"
    if stage.batch_bytes:
        memory += f" and {stage.batch_bytes / 2**20:,.0f} MiB for a batch"
    cost = f"learns {stage.trainable:,} of {stage.total:,} parameters ({share:.1f} %), {memory}"
    lines.append(f"             {cost}" + (f", about {_duration(stage.seconds)}" if stage.seconds is not None else ""))
    lines += [f"             {sentence}" for sentence in stage.ways]
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


def rows_learned(stages: Iterable[TrainingSpec], rows: int) -> int:
    """How many rows stages with these settings learn from, each as often as they do; exact solving does not count."""
    return rows * sum(choose_epochs(training, rows) for training in stages if training.optimizer != "lbfgs")


def choose_rate(training: TrainingSpec, methods: Mapping[str, Method], modality: str) -> float:
    """The user's learning rate, else what the methods suggest, else the modality's (kept statistics: a lower one)."""
    if training.learning_rate is not None:
        return training.learning_rate
    suggested = [rate for m in methods.values() if (rate := m.learning_rate(modality)) is not None]
    usual = KEPT_RATE if training.running_stats == "keep" else LEARNING_RATE.get(modality, 1e-4)
    return suggested[0] if suggested else usual


def choose_stats(
    training: TrainingSpec, methods: Mapping[str, Method], model: nn.Module, rows: int, *, pretrained: bool
) -> TrainingSpec:
    """The same settings with `running_stats` decided: the user's, else kept in a run of at most `KEPT_STEPS` steps.

    Statistics of batches change what the head was solved on, and a short run does not make up for it. They are updated
    where there are none to keep (no BatchNorm, no pretrained weights) or a method needs those of the batches.
    """
    if training.running_stats != "auto":
        return training
    steps = choose_epochs(training, rows) * math.ceil(rows / (training.batch_rows * training.accumulate))
    asked = any("run.statistics" in method.requires() for method in methods.values())
    keep = pretrained and not asked and has_statistics(model) and steps <= KEPT_STEPS
    return training.model_copy(update={"running_stats": "keep" if keep else "update"})


def choose_device(name: str) -> torch.device:
    """The named device, or a GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def epoch_seconds(costs: Costs, rows: int, validated: int, passes: float) -> float:
    """Seconds of an epoch: `passes` times over the training rows, once over those that validate."""
    return costs.step * rows * passes + costs.answer * validated


def most_memory(stages: Sequence[StagePlan]) -> int:
    """Bytes that the hungriest stage needs beside the weights.

    A probe needs a copy of them too, when its bundle is loaded again to be proven; all need the report's libraries.
    """
    each = (
        step_memory(stage.trainable, stage.total) + (stage.batch_bytes or 0) if stage.steps else 4 * stage.total
        for stage in stages
    )
    return REPORT_BYTES + max(each, default=0)


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
    precision: Precision,
    costs: Costs | None,
    validated: int = 0,
    start: float = 0.0,
    versions: int = 1,
    ways: Sequence[str] = (),
) -> StagePlan:
    """A stage's plan from what was chosen for it. validated: rows that are answered after each epoch.

    start: seconds that it takes to give the head its start. versions: of each row, of which a bottom is computed once.
    """
    exact = training.optimizer == "lbfgs"
    steps = 0 if exact else epochs * math.ceil(rows / (training.batch_rows * training.accumulate))
    passes = math.prod(method.passes() for method in methods.values())
    hooks = {
        hook: tuple(label for label, method in methods.items() if overrides(method, hook))
        for hook in dict.fromkeys((*HOOKS, *EXCLUSIVE))
    }
    seconds = None
    if costs is not None:
        seconds = costs.answer * (rows + validated)
        if not exact:
            seconds = epochs * epoch_seconds(costs, rows, validated, passes) + steps * costs.update
            seconds += costs.answer * validated  # of the weights that are kept
            seconds += costs.bottom * (versions * rows + validated)
        seconds += costs.first * (rows + validated) + start
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
        precision=precision.name,
        precision_why=precision.why,
        seconds=seconds,
        # Weights of everything; gradients and two moments of what learns.
        memory_bytes=4 * total + 12 * trainable,
        batch_bytes=costs.kept if costs is not None and not exact else None,
        stats_kept=training.running_stats == "keep",
        ways=tuple(ways),
    )
