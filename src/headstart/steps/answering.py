"""fp32 or bf16 for answers: passes forward alone, of a network as it is used, with the predictions of fp32.

bf16 has 8 bits of mantissa, so outputs come out a little otherwise. A row whose prediction hangs on so little is
answered again in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from headstart import inference
from headstart.encoded import Encoded
from headstart.protocols import Task
from headstart.steps import costing, precision
from headstart.steps.precision import PROMISED, ROWS, SHORTEST, USUAL, Precision, compare, verdict

KINDS = ("fp32", "bf16")
"""Not bf16 weights: what methods left in a network may expect float32, and autocast is nearly as fast."""

FEWEST, FEW = (worth * USUAL * len(KINDS) * ROWS for worth in (PROMISED, costing.WORTH))
"""Rows that are worth a trial where products of matrices are `precision.CLEAR` times as fast in bf16, and otherwise."""

NEAR = 0.05
"""How far outputs in bf16 may lie from those in float32 on the rows that are tried, as a share of the largest; those of
MiniLM-L6 on Banking77 lie within 0.004, those of EfficientNet-lite0 on photos within 0.035."""

WARY = 4
"""Times that difference: a margin below it may be due to rounding. Both of two outputs may be off, and on other rows by
more than on those that were tried."""


def choose(model: nn.Module, rows: Encoded) -> Precision | None:
    """What these rows are answered in: fp32, unless bf16 is clearly faster here and answers nearly the same.

    None where they are too few to try it. The model is left as it was.
    """
    if len(rows) < FEWEST:
        return None
    gain = precision.product() if next(model.parameters()).device.type == "cpu" else 1.0
    if gain < precision.HOPELESS:
        return precision.hopeless(gain)
    if gain <= precision.CLEAR and len(rows) < FEW:
        return None
    lengths = np.asarray(rows.prepared.lengths)
    index = np.argsort(lengths, kind="stable")[len(rows) // 2 :][:ROWS]
    answers: dict[str, Tensor] = {}

    def spend(kind: str) -> float:
        seconds, answers[kind] = _pass(model, rows, index, kind)
        return seconds

    was_training = model.training
    model.eval()
    try:
        times = compare(KINDS, spend)
    finally:
        model.train(was_training)
    found = verdict(times, SHORTEST)
    if found.name == "fp32":
        return found
    apart = float((answers[found.name] - answers["fp32"]).abs().max() / answers["fp32"].abs().max().clamp_min(1e-12))
    if not apart <= NEAR:
        return Precision("fp32", f"{found.why}, but answers otherwise by {apart:.1%} of the largest output")
    return replace(found, apart=apart)


def outputs(model: nn.Module, rows: Encoded, task: Task, found: Precision) -> np.ndarray:
    """The head's raw outputs, (rows,K) float32, in this precision, with the predictions of fp32 (`sure`)."""
    made = inference.outputs(model, rows, precision=found.name)
    return sure(made, rows, task, found, lambda some: inference.outputs(model, some))


def sure(
    made: np.ndarray, rows: Encoded, task: Task, found: Precision, again: Callable[[Encoded], np.ndarray]
) -> np.ndarray:
    """Outputs (rows,K) as made in this precision, those of rows that it may predict otherwise made again in fp32.

    again: the outputs in fp32 of some rows.
    """
    if found.name == "fp32" or not found.apart or not made.size:
        return made
    margin = task.margin(made)
    first = np.argsort(margin, kind="stable")[:ROWS]
    if not np.isfinite(margin[first]).any():
        return made
    # The nearest are answered again in any case: they tell how far these outputs, by this head, are off.
    certain = again(rows.some(first))
    apart = max(float(np.abs(certain - made[first]).max()), found.apart * float(np.abs(made).max()))
    made[first] = certain
    doubtful = np.setdiff1d(np.flatnonzero(margin < WARY * apart), first)
    if len(doubtful):
        made[doubtful] = again(rows.some(doubtful))
    return made


def _pass(model: nn.Module, rows: Encoded, index: np.ndarray, kind: str) -> tuple[float, Tensor]:
    """Seconds of taking these rows and answering them, and the raw outputs, (rows,K)."""
    device = next(model.parameters()).device
    clock = costing.clock(device)
    started = clock()
    with torch.inference_mode(), inference.running(device, kind):
        outputs = model(rows.batch(index.tolist()).to(device))[1].float().cpu()
    return clock() - started, outputs
