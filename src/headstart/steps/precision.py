"""fp32 or bf16, by a short measurement: what a processor says that it can do does not tell how fast it does it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np
from torch import nn

from headstart.encoded import Encoded
from headstart.errors import SpecError
from headstart.spec import TrainingSpec
from headstart.steps import costing, graphing

TRIALS = 3
"""Rounds of timed steps, turn about, so that a busy moment meets all; the round in the middle counts."""

ROWS = 16
"""Rows of the batch that is tried, at most."""

FASTER = 1.2
"""bf16 rounds to 8 bits of mantissa: it must win by this factor, more than two timings of one thing differ."""

HOPELESS = 0.8
"""A kind that was less than this much as fast while warming up and again when first timed is not timed once more."""

SHORTEST = 0.01
"""Seconds of a step below which there is nothing to gain, and too little to tell two timings apart."""

HALVES = ("bf16", "bf16_weights")


@dataclass(frozen=True)
class Precision:
    """What forward passes run in, one of `casting.KINDS`, and why."""

    name: str = "fp32"
    why: str = ""


def choose(model: nn.Module, rows: Encoded, training: TrainingSpec, *, learned: int | None = None) -> Precision:
    """As asked; with `auto` what is fastest on the model's device: fp32, unless a kind of bf16 clearly is.

    learned: how many rows the run learns from, each as often as it does; a short run tries nothing.

    Times a step of a batch of usual length in each, without an update; the model is left as it was. Raises SpecError
    where bf16 weights are asked for and this network does not run with them.
    """
    if training.precision in ("fp32", "bf16"):
        return Precision(training.precision)
    batches = sorted(rows.plan(training, 0), key=lambda batch: int(np.max(rows.prepared.lengths[batch])))
    batch = batches[len(batches) // 2]
    auto = training.precision == "auto"
    graphs = auto and next(model.parameters()).device.type == "cuda" and training.cuda_graphs != "off"
    batch = batch if graphs else batch[:ROWS]
    # Passes with bf16 weights cannot be recorded, and beside recorded ones they would not be measured fairly.
    kinds = (["fp32", "bf16"] if graphs else ["fp32", *HALVES]) if auto else ["bf16_weights"]
    trial = (TRIALS + 1) * len(kinds) * len(batch)
    if auto and learned is not None and learned < costing.WORTH * trial:
        return Precision("fp32", "the run is too short to try bf16")
    was_training = model.training
    model.eval()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        for number in range(TRIALS + 1 if auto and not graphs else 1):  # a graph is timed several times by itself
            for kind in list(times):
                try:
                    times[kind].append(_seconds(model, rows, batch, kind, graphs=graphs))
                except Exception as error:  # what foreign code does with a type that it does not expect
                    if not auto:
                        raise SpecError(_refusal(error)) from None
                    if kind == "fp32":
                        raise
                    del times[kind]
            if number == 1 and all(_hopeless(times["fp32"], times[kind]) for kind in times if kind != "fp32"):
                break
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    if not auto:
        return Precision(training.precision)
    if not graphs:
        times = {kind: spent[1:] for kind, spent in times.items()}  # the first round warms up
    tried = [kind for kind in times if kind in HALVES]
    if not tried:
        return Precision("fp32", "bf16 does not run on this device")
    if min(times["fp32"]) < SHORTEST and not graphs:
        return Precision("fp32", "steps are too short to gain by bf16")
    gains = {
        kind: median(plain / half for plain, half in zip(times["fp32"], times[kind], strict=True)) for kind in tried
    }
    best = max(gains, key=lambda kind: gains[kind])
    said = "; ".join(_said(kind, gain) for kind, gain in gains.items())
    return Precision(best if gains[best] >= FASTER else "fp32", said)


def _hopeless(plain: list[float], half: list[float]) -> bool:
    return all(whole < HOPELESS * spent for whole, spent in zip(plain, half, strict=True))


def _seconds(model: nn.Module, rows: Encoded, batch: np.ndarray, kind: str, *, graphs: bool) -> float:
    """Both passes of a batch; where they can be recorded, what the GPU takes for them."""
    if graphs:
        found = graphing.seconds(model, rows.batch(batch.tolist()).to(next(model.parameters()).device), kind)
        if found is not None:
            return found
    return costing.once(model, rows, batch, precision=kind, backward=True)[1]


def _refusal(error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return (
        f"training.precision = 'bf16_weights' is not for this backbone with these methods, which expect float32 inside "
        f"({reason}): choose bf16, which casts operation by operation, or auto"
    )


def _said(kind: str, gain: float) -> str:
    named = {"bf16": "bf16", "bf16_weights": "bf16 with bf16 weights"}[kind]
    return (
        f"{named} is {gain:.1f} times as fast here" if gain >= 1 else f"{named} takes {1 / gain:.1f} times as long here"
    )
