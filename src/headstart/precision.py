"""fp32 or bf16, by a short measurement: what a processor says that it can do does not tell how fast it does it."""

from __future__ import annotations

from statistics import median

import numpy as np
from torch import nn

from headstart import planning
from headstart.encoded import Encoded
from headstart.planning import Precision
from headstart.spec import TrainingSpec

TRIALS = 3
"""Pairs of timed steps, turn about, so that a busy moment meets both; the pair in the middle counts."""

ROWS = 16
"""Rows of the batch that is tried, at most."""

FASTER = 1.2
"""bf16 rounds to 8 bits of mantissa: it must win by this factor, more than two timings of one thing differ."""

SHORTEST = 0.01
"""Seconds of a step below which there is nothing to gain, and too little to tell two timings apart."""


def choose(model: nn.Module, rows: Encoded, training: TrainingSpec) -> Precision:
    """What is faster on the model's device: fp32, unless bf16 clearly is.

    Times a step of a batch of usual length in both, without an update; the model is left as it was.
    """
    batches = sorted(rows.plan(training, 0), key=lambda batch: int(np.max(rows.prepared.lengths[batch])))
    batch = batches[len(batches) // 2][:ROWS]
    was_training = model.training
    model.eval()
    try:
        pairs = [_pair(model, rows, batch) for _ in range(TRIALS + 1)][1:]  # the first warms up
    except RuntimeError:
        return Precision(False, "bf16 does not run on this device")
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    if min(plain for plain, _ in pairs) < SHORTEST:
        return Precision(False, "steps are too short to gain by bf16")
    times = median(plain / half for plain, half in pairs)
    said = f"bf16 is {times:.1f} times as fast here" if times >= 1 else f"bf16 takes {1 / times:.1f} times as long here"
    return Precision(times >= FASTER, said)


def _pair(model: nn.Module, rows: Encoded, batch: np.ndarray) -> tuple[float, float]:
    """Seconds of a step in fp32 and of one in bf16."""
    plain, half = (planning.once(model, rows, batch, bf16=bf16, backward=True)[1] for bf16 in (False, True))
    return plain, half
