"""fp32 or bf16 for answers: passes forward alone, of a network as it is used."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from headstart import inference
from headstart.encoded import Encoded
from headstart.steps import costing
from headstart.steps.precision import ROWS, SHORTEST, Precision, compare, verdict

KINDS = ("fp32", "bf16")
"""Not bf16 weights: what methods left in a network may expect float32, and autocast is nearly as fast."""

NEAR = 0.02
"""How far outputs in bf16 may lie from those in float32 on the rows that are tried, as a share of the largest. Those of
MiniLM-L6 on Banking77 lie within 0.004, and 99.9 % of its labels are the same."""


def choose(model: nn.Module, rows: Encoded) -> Precision | None:
    """What these rows are answered in: fp32, unless bf16 is clearly faster here and answers nearly the same.

    None where they are too few to try it. The model is left as it was.
    """
    if len(rows) < costing.WORTH * 2 * len(KINDS) * ROWS:
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
    apart = (answers[found.name] - answers["fp32"]).abs().max() / answers["fp32"].abs().max().clamp_min(1e-12)
    if not apart <= NEAR:
        return Precision("fp32", f"{found.why}, but answers otherwise by {apart:.1%} of the largest output")
    return found


def _pass(model: nn.Module, rows: Encoded, index: np.ndarray, kind: str) -> tuple[float, Tensor]:
    """Seconds of taking these rows and answering them, and the raw outputs, (rows,K)."""
    device = next(model.parameters()).device
    started = time.perf_counter()
    with torch.inference_mode(), inference.running(device, kind):
        outputs = model(rows.batch(index.tolist()).to(device))[1].float().cpu()
    return time.perf_counter() - started, outputs
