"""A running average of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.methods._averaging import AveragingMethod
from headstart.methods._checks import number
from headstart.protocols import Context


@dataclass
class EMA(AveragingMethod):
    """Validates and keeps an exponential moving average of the weights instead of the last ones.

    Equation: a_t = d_t a_{t-1} + (1 - d_t) w_t after optimiser step t = 1, 2, ..., with d_t = min(decay, (1 + t) /
    (10 + t)) and a_0 the weights that step 1 produced.

    Source: Szegedy et al. 2016 (Rethinking Inception), section 8, evaluate such an average; averaging goes back to
    Polyak and Juditsky 1992. The warm-up of d is that of TensorFlow's ExponentialMovingAverage.

    Requires: nothing. Owns `weights`: what is validated and kept is the average, so nothing is left to do at the end.

    Shapes: one float32 copy of every learning parameter; buffers (BatchNorm statistics) are copied as they are.

    Neighbours: `soup` averages a few validated checkpoints, and combines with this one: it then averages averages.

    Example: `--method ema:decay=0.999`; `hs.methods.EMA(decay=0.999)`.

    Defaults: decay = 0.999 is the smaller of the two values that TensorFlow's documentation recommends; runs of a few
    hundred steps never reach it, because the warm-up rules them.

    decay: in [0, 1); larger is slower.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        number("ema:decay", self.decay, 0, "such as decay=0.999", high=1 - 1e-9)

    def share(self, ctx: Context) -> float:
        """1 - d_t."""
        return 1 - min(self.decay, (1 + self.steps_) / (10 + self.steps_))
