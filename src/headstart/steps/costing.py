"""What rows cost on this machine, measured on a few batches: seconds of steps and answers, bytes kept in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart import inference, parts
from headstart.encoded import Encoded
from headstart.heads import probe
from headstart.protocols import Task
from headstart.running import set_modes
from headstart.spec import TrainingSpec
from headstart.steps import casting
from headstart.values import Batch

WORTH = 10
"""How many times what trying another way of computing takes a run must take, before it is tried by itself."""

TIMED = 3
"""Batches that are timed for an estimate, from short to long; one where all rows are of one length."""

TIMED_NUMBERS = 2**22
"""Numbers of a timed update, at most: more than caches hold."""

TIMED_ROWS = 16
"""Rows of a timed batch of inference, where its rows have no length."""

TIMED_TOKENS = 1024
"""Tokens of a timed batch of inference, padding included: whole batches of a small set would be all of its rows."""


@dataclass(frozen=True)
class Costs:
    """What rows cost, measured. step: seconds a row, forward and backward; answer: forward alone. kept: bytes that the
    longest batch keeps between the two. first: seconds more that a row takes the first time, when it is read. update:
    seconds of a step's update. bottom: seconds a row of what is computed once a run, which is not in the others.
    """

    step: float
    answer: float
    kept: int = 0
    first: float = 0.0
    update: float = 0.0
    bottom: float = 0.0


def measure(
    model: nn.Module,
    rows: Encoded,
    training: TrainingSpec,
    *,
    precision: str,
    backward: bool,
    step: AbstractContextManager[Any] | None = None,
    bottom: Callable[[Batch], Batch] | None = None,
    apart: bool = False,
) -> Costs:
    """What rows cost, from `TIMED` batches of the first epoch after one untimed batch; the model is left as it was.

    The batches stand for equally many others, from short to long, so padding and long rows count as often as they
    occur. Without `backward` they are those of inference. Steps draw dropout, and move no statistics of BatchNorm.
    step: how steps are made. bottom: computes of a batch what the run computes once, for steps that start from there.
    apart: whether the run cuts its steps into parts where that is faster.
    """
    found = batches(rows, training, backward=backward)
    padded = np.array([len(batch) * int(rows.prepared.lengths[batch].max()) for batch in found])
    order = np.argsort(padded, kind="stable")
    timed = TIMED if len(np.unique(rows.prepared.lengths)) > 1 else 1
    was_training = model.training
    model.eval()
    kept, seconds, answers, below, done, reading, read = 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0
    with ExitStack() as stack:
        stack.enter_context(step or nullcontext())
        stack.enter_context(torch.random.fork_rng())
        stack.callback(model.train, was_training)
        if backward:
            set_modes(model, keep_stats=True)
        stack.callback(model.zero_grad, set_to_none=True)
        # The longest comes first: it warms up, and shows the largest amount that waits for the backward pass.
        longest = found[order[-1]] if backward else _some(rows, found[order[-1]])
        how: dict[str, Any] = {"precision": precision, "backward": backward, "bottom": bottom}
        kept = once(model, rows, longest, weigh=True, **how)[2]
        for group in np.array_split(order, min(timed, len(order))):
            whole_batch = found[group[len(group) // 2]]
            batch = whole_batch if backward else _some(rows, whole_batch)
            if next(model.parameters()).device.type == "cuda":  # a shape's first pass records it, or chooses kernels
                once(model, rows, batch, **how)
            reading += _reading(rows, batch)
            read += len(batch)
            forward, whole, _ = once(model, rows, batch, **how)
            if bottom is not None:  # it is computed as answers are, in batches of theirs
                some = _some(rows, batch)
                below += _bottom(model, rows, some, bottom, precision)[1] * len(whole_batch) / len(some) * len(group)
            stands_for = len(whole_batch) / len(batch) * len(group)
            answers += forward * stands_for
            seconds += whole * stands_for
            done += len(batch) * stands_for
        if backward and apart:
            seconds /= _gain(model, rows, found[order[-1]], how)
    update = _update(model) if backward else 0.0
    return Costs(seconds / done, answers / done, kept, reading / read, update, below / done)


def _bottom(
    model: nn.Module, rows: Encoded, index: np.ndarray, bottom: Callable[[Batch], Batch], precision: str
) -> tuple[Batch, float]:
    """The batch with what is computed once, and the seconds of taking its rows and computing that."""
    device = next(model.parameters()).device
    started = time.perf_counter()
    with torch.no_grad(), casting.running(model, precision):
        batch = bottom(rows.batch(index.tolist()).to(device))
    _wait(device)
    return batch, time.perf_counter() - started


def _gain(model: nn.Module, rows: Encoded, index: np.ndarray, how: dict[str, Any]) -> float:
    """How many times as fast a step is whose rows go through in parts; 1 where a run would not cut it."""
    if len(index) <= parts.ROWS:
        return 1.0
    pieces = [index[start : start + parts.ROWS] for start in range(0, len(index), parts.ROWS)]
    whole, cut = (sum(once(model, rows, piece, **how)[1] for piece in each) for each in ([index], pieces))
    return whole / cut if whole >= parts.FASTER * cut else 1.0


def _update(model: nn.Module) -> float:
    """Seconds that clipping and AdamW take for what learns: its time goes with the numbers, so some are enough."""
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not learning:
        return 0.0
    some = nn.Parameter(torch.zeros(min(learning, TIMED_NUMBERS), device=next(model.parameters()).device))
    some.grad = torch.zeros_like(some)
    optimiser, spent = torch.optim.AdamW([some], fused=some.device.type in ("cpu", "cuda") or None), 0.0
    for _ in range(2):  # the first makes the moments
        started = time.perf_counter()
        nn.utils.clip_grad_norm_([some], 1.0)
        optimiser.step()
        _wait(some.device)
        spent = time.perf_counter() - started
    return spent * learning / some.numel()


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


def batches(rows: Encoded, training: TrainingSpec, *, backward: bool) -> list[np.ndarray]:
    """The batches that are computed at a time: of the first epoch, in parts of `max_tokens`, or of inference."""
    found = rows.plan(training, 0) if backward else inference.plan(rows)
    if backward and training.max_tokens is not None:
        sizes = [max(1, training.max_tokens // int(rows.prepared.lengths[batch].max())) for batch in found]
        pairs = zip(found, sizes, strict=True)
        found = [batch[at : at + size] for batch, size in pairs for at in range(0, len(batch), size)]
    return found


def once(
    model: nn.Module,
    rows: Encoded,
    index: np.ndarray,
    *,
    precision: str,
    backward: bool,
    weigh: bool = False,
    bottom: Callable[[Batch], Batch] | None = None,
) -> tuple[float, float, int]:
    """Seconds of taking a batch and its forward pass, and of both passes; with `weigh` the bytes kept in between.

    bottom: computes what the passes start from, and is not timed.
    """
    device = next(model.parameters()).device
    kept = None if bottom is None else _bottom(model, rows, index, bottom, precision)[0]
    started = time.perf_counter()
    batch = rows.batch(index.tolist()).to(device) if kept is None else kept
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def seen(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    weighing = torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor) if weigh else nullcontext()
    with torch.set_grad_enabled(backward), casting.running(model, precision), weighing:
        loss = model(batch)[1].float().square().mean()
    _wait(device)
    forward = time.perf_counter() - started
    if backward and loss.requires_grad:
        loss.backward()
        _wait(device)
    return forward, time.perf_counter() - started, sum(sizes.values())


def clock(device: torch.device) -> Callable[[], float]:
    """What two ways are timed by: on a processor the seconds that it spent, which other programs do not lengthen."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def head(
    width: int,
    rows: Encoded,
    validation: Encoded | None,
    task: Task,
    training: TrainingSpec,
    answer: Callable[[], float],
    most: int,
) -> float:
    """Seconds that a fresh head's start on frozen features, (rows,width), is going to take, on at most `most` rows.

    The pass over the rows is in it, but for an exact probe, whose own time that is. answer: seconds of a row in it,
    asked for only where there is one.
    """
    targets, exact = rows.targets, training.optimizer == "lbfgs"
    if targets is None or not (exact or training.head == "probe"):
        return 0.0
    extra = (training.name_rows or 0) * task.outputs
    solving = probe.expected(width, targets if exact else targets[:most], task, crossed=validation is None, extra=extra)
    return solving + (0.0 if exact else answer() * (len(rows) + len(validation or ())))
