"""What a run is going to do, worked out and printed before anything is spent."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart import inference
from headstart.encoded import Encoded
from headstart.protocols import EXCLUSIVE, Method, overrides
from headstart.running import has_statistics
from headstart.spec import TrainingSpec

STEPS = 300
"""Optimiser steps that a run of few rows should have: with them a fresh head and low rates have time to move."""

TIMED = 3
"""Batches that are timed for an estimate, from short to long."""

REPORT_BYTES = 70 * 2**20
"""What measuring and reporting load beside the model, as measured on a probe of texts."""

TIMED_ROWS = 16
"""Rows of a timed batch of inference, where its rows have no length."""

TIMED_TOKENS = 1024
"""Tokens of a timed batch of inference, padding included: whole batches of a small set would be all of its rows."""

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
class Costs:
    """What rows cost, measured. step: seconds a row, forward and backward; answer: forward alone. kept: bytes that the
    longest batch keeps between the two. first: seconds more that a row takes the first time, when it is read.
    """

    step: float
    answer: float
    kept: int = 0
    first: float = 0.0


@dataclass(frozen=True)
class Precision:
    """Whether forward passes run in bf16 autocast, and why. Weights, losses and updates are float32 in both."""

    bf16: bool
    why: str = ""

    @property
    def name(self) -> str:
        """`bf16` or `fp32`."""
        return "bf16" if self.bf16 else "fp32"


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


def measure(model: nn.Module, rows: Encoded, training: TrainingSpec, *, bf16: bool, backward: bool) -> Costs:
    """What rows cost, from `TIMED` batches of the first epoch after one untimed batch; the model is left as it was.

    The batches stand for equally many others, from short to long, so padding and long rows count as often as they
    occur. Without `backward` they are those of inference. The update itself is not timed.
    """
    batches = rows.plan(training, 0) if backward else inference.plan(rows)
    if backward and training.max_tokens is not None:
        sizes = [max(1, training.max_tokens // int(rows.prepared.lengths[batch].max())) for batch in batches]
        pairs = zip(batches, sizes, strict=True)
        batches = [batch[at : at + size] for batch, size in pairs for at in range(0, len(batch), size)]
    padded = np.array([len(batch) * int(rows.prepared.lengths[batch].max()) for batch in batches])
    order = np.argsort(padded, kind="stable")
    was_training = model.training
    model.eval()
    kept, seconds, answers, done, reading, read = 0, 0.0, 0.0, 0.0, 0.0, 0
    try:
        # The longest comes first: it warms up, and shows the largest amount that waits for the backward pass.
        longest = batches[order[-1]] if backward else _some(rows, batches[order[-1]])
        kept = once(model, rows, longest, bf16=bf16, backward=backward, weigh=True)[2]
        for group in np.array_split(order, min(TIMED, len(order))):
            whole_batch = batches[group[len(group) // 2]]
            batch = whole_batch if backward else _some(rows, whole_batch)
            reading += _reading(rows, batch)
            read += len(batch)
            forward, whole, _ = once(model, rows, batch, bf16=bf16, backward=backward)
            stands_for = len(whole_batch) / len(batch) * len(group)
            answers += forward * stands_for
            seconds += whole * stands_for
            done += len(batch) * stands_for
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    return Costs(seconds / done, answers / done, kept, reading / read)


def _some(rows: Encoded, batch: np.ndarray) -> np.ndarray:
    """The first rows of a batch of inference, enough to time it by."""
    if rows.prepared.budget is None:
        return batch[:TIMED_ROWS]
    return batch[: max(1, TIMED_TOKENS // int(rows.prepared.lengths[batch].max()))]


def _reading(rows: Encoded, batch: np.ndarray) -> float:
    """Seconds that taking these rows costs beyond what it costs once more: pictures are decoded once and kept."""
    started = time.perf_counter()
    rows.batch(batch.tolist())
    between = time.perf_counter()
    rows.batch(batch.tolist())
    return max(0.0, 2 * between - started - time.perf_counter())


def once(
    model: nn.Module, rows: Encoded, index: np.ndarray, *, bf16: bool, backward: bool, weigh: bool = False
) -> tuple[float, float, int]:
    """Seconds of taking a batch and its forward pass, and of both passes; with `weigh` the bytes kept in between."""
    device = next(model.parameters()).device
    started = time.perf_counter()
    batch = rows.batch(index.tolist()).to(device)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def seen(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    weighing = torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor) if weigh else nullcontext()
    with torch.set_grad_enabled(backward), torch.autocast(device.type, torch.bfloat16, enabled=bf16), weighing:
        loss = model(batch)[1].float().square().mean()
    _wait(device)
    forward = time.perf_counter() - started
    if backward and loss.requires_grad:
        loss.backward()
        _wait(device)
    return forward, time.perf_counter() - started, sum(sizes.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def resident() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not tell (Linux does)."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def epoch_seconds(costs: Costs, rows: int, validated: int, passes: float) -> float:
    """Seconds of an epoch: `passes` times over the training rows, once over those that validate."""
    return costs.step * rows * passes + costs.answer * validated


def most_memory(stages: Sequence[StagePlan]) -> int:
    """Bytes that the hungriest stage needs beside the weights: gradients, moments, a batch, a copy of the weights.

    A probe needs the copy too, when its bundle is loaded again to be proven; all need the libraries of the report.
    """
    each = ((12 * stage.trainable + (stage.batch_bytes or 0)) * bool(stage.steps) + 4 * stage.total for stage in stages)
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
) -> StagePlan:
    """A stage's plan from what was chosen for it. validated: rows that are answered after each epoch.

    start: seconds that it takes to give the head its start.
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
            seconds = epochs * epoch_seconds(costs, rows, validated, passes)
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
        precision="fp32" if exact else precision.name,
        precision_why="" if exact else precision.why,
        seconds=seconds,
        # Weights of everything; gradients and two moments of what learns.
        memory_bytes=4 * total + 12 * trainable,
        batch_bytes=costs.kept if costs is not None and not exact else None,
        stats_kept=training.running_stats == "keep",
    )
