"""fp32 or bf16, by a short measurement: what a processor says that it can do does not tell how fast it does it.

On a processor a product of matrices is timed first, for some milliseconds: where it is slower in bf16 no network will
be faster, and where it is much faster a trial is worth its time in shorter runs too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import numpy as np
import torch
from torch import nn

from headstart import products
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

HOPELESS, CLEAR = 0.8, 1.5
"""Where each kind of bf16 was less than this much as fast as fp32, or one more than that much, while warming up and
again when first timed, no more is timed."""

USUAL = 2
"""Rounds until that is so, usually."""

PROMISED = 3
"""Times as long as its trial a run must be where the product is `CLEAR` times as fast; otherwise `costing.WORTH`."""

PRODUCT = (512, 512, 2048)
"""Rows, width and width of the matrices: about those of a block on a batch of texts."""

SHORTEST = 0.01
"""Seconds of a step below which there is nothing to gain, and too little to tell two timings apart."""

HALVES = ("bf16", "bf16_weights")


@dataclass(frozen=True)
class Precision:
    """What forward passes run in, one of `casting.KINDS`, and why.

    apart: how far outputs lay from those in fp32 on the rows that were tried, as a share of the largest, where known.
    """

    name: str = "fp32"
    why: str = ""
    apart: float = 0.0


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
    gain = product() if auto and next(model.parameters()).device.type == "cpu" else 1.0
    if gain < HOPELESS:
        return hopeless(gain)
    worth = (PROMISED if gain > CLEAR else costing.WORTH) * USUAL * len(kinds) * len(batch)
    if auto and learned is not None and learned < worth:
        return Precision("fp32", "the run is too short to try bf16")
    was_training = model.training
    model.eval()
    try:
        if not auto:
            try:
                _seconds(model, rows, batch, kinds[0], graphs=False)
            except Exception as error:  # what foreign code does with a type that it does not expect
                raise SpecError(_refusal(error)) from None
            return Precision(training.precision)
        # A graph is timed several times by itself.
        times = compare(kinds, lambda kind: _seconds(model, rows, batch, kind, graphs=graphs), alone=graphs)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    return verdict(times, 0.0 if graphs else SHORTEST)


def compare(kinds: Sequence[str], spend: Callable[[str], float], *, alone: bool = False) -> dict[str, list[float]]:
    """Seconds of each kind, turn about, after a round that warms up; with `alone` one round is all.

    A kind that fails is left out, but for fp32, whose failure goes on. Ends early where there is no doubt.
    """
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(1 if alone else TRIALS + 1):
        for kind in list(times):
            try:
                times[kind].append(spend(kind))
            except Exception:
                if kind == "fp32":
                    raise
                del times[kind]
        if number == 1 and _decided(times):
            break
    return times if alone else {kind: spent[1:] for kind, spent in times.items()}


def verdict(times: Mapping[str, Sequence[float]], shortest: float) -> Precision:
    """The kind that won. shortest: seconds of a pass below which there is nothing to gain."""
    tried = [kind for kind in times if kind in HALVES]
    if not tried:
        return Precision("fp32", "bf16 does not run on this device")
    if min(times["fp32"]) < shortest:
        return Precision("fp32", "steps are too short to gain by bf16")
    gains = {
        kind: median(plain / half for plain, half in zip(times["fp32"], times[kind], strict=True)) for kind in tried
    }
    best = max(gains, key=lambda kind: gains[kind])
    said = "; ".join(_said(kind, gain) for kind, gain in gains.items())
    return Precision(best if gains[best] >= FASTER else "fp32", said)


@cache
def product() -> float:
    """How many times as fast as in fp32 this processor multiplies matrices in bf16: the median of five pairs."""
    rows, width, wide = PRODUCT
    pairs = [
        (torch.ones(rows, width, dtype=kind), torch.ones(wide, width, dtype=kind))
        for kind in (torch.float32, torch.bfloat16)
    ]
    gains: list[float] = []
    for _ in range(6):
        spent = []
        for left, right in pairs:
            started = time.thread_time()
            products.linear(left, right)
            spent.append(time.thread_time() - started)
        gains.append(spent[0] / spent[1])
    return median(gains[1:])  # the first warms up


def hopeless(gain: float) -> Precision:
    """fp32, since products in bf16 are only `gain` times as fast."""
    return Precision("fp32", f"a product of matrices takes {1 / gain:.1f} times as long in bf16 here")


def _decided(times: Mapping[str, Sequence[float]]) -> bool:
    if min(times["fp32"]) < 5 * SHORTEST:  # these cost little, and are easily mistaken
        return False
    gains = [[a / b for a, b in zip(times["fp32"], times[kind], strict=True)] for kind in times if kind != "fp32"]
    return all(max(gain) < HOPELESS for gain in gains) or any(min(gain) > CLEAR for gain in gains)


def _seconds(model: nn.Module, rows: Encoded, batch: np.ndarray, kind: str, *, graphs: bool) -> float:
    """Both passes of a batch; where they can be recorded, what the GPU takes for them."""
    if graphs:
        found = graphing.seconds(model, rows.batch(batch.tolist()).to(next(model.parameters()).device), kind)
        if found is not None:
            return found
    clock = costing.clock(next(model.parameters()).device)
    started = clock()
    costing.once(model, rows, batch, precision=kind, backward=True)
    return clock() - started


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
