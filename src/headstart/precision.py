"""fp32 or bf16, by a short measurement: what a processor says that it can do does not tell how fast it does it."""

from __future__ import annotations

import numpy as np
from torch import nn

from headstart import planning
from headstart.encoded import Encoded
from headstart.planning import Precision
from headstart.spec import TrainingSpec

TRIALS = 3
"""Timed steps of each; the fastest counts, since other work on the machine only ever makes a step slower."""

ROWS = 16
"""Rows of the batch that is tried, at most."""

FASTER = 1.2
"""bf16 rounds to 8 bits of mantissa: it must win by this factor, more than two timings of one thing differ."""


def choose(model: nn.Module, rows: Encoded, training: TrainingSpec) -> Precision:
    """What is faster on the model's device: fp32, unless bf16 clearly is.

    Times a step of a batch of usual length in both, without an update; the model is left as it was.
    """
    batches = sorted(rows.plan(training, 0), key=lambda batch: int(np.max(rows.prepared.lengths[batch])))
    batch = batches[len(batches) // 2][:ROWS]
    was_training = model.training
    model.eval()
    try:
        plain, half = _fastest(model, rows, batch, bf16=False), _fastest(model, rows, batch, bf16=True)
    except RuntimeError:
        return Precision(False, "bf16 does not run on this device")
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    times = plain / half
    said = f"bf16 is {times:.1f} times as fast here" if times >= 1 else f"bf16 takes {1 / times:.1f} times as long here"
    return Precision(times >= FASTER, said)


def _fastest(model: nn.Module, rows: Encoded, batch: np.ndarray, *, bf16: bool) -> float:
    """Seconds of the fastest step after one that warms up."""
    return min(planning.once(model, rows, batch, bf16=bf16, backward=True)[1] for _ in range(TRIALS + 1))
