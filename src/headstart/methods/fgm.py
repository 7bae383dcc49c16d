"""Adversarial training by one gradient step on the input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from headstart.attack import direction, shifted, slope, within
from headstart.methods._attack import AttackMethod, radius, still
from headstart.methods._checks import number
from headstart.protocols import Context
from headstart.values import Batch


@dataclass
class FGM(AttackMethod):
    """Trains also on the inputs moved one step in the direction that raises the loss most.

    Equation: L(x) + weight * L(x + d), d = eps * g / ||g||_2, g = the gradient of L in x. x is a row's token
    embeddings, its pixels or its wave, and the norm is taken over the whole row.

    Source: Miyato, Dai and Goodfellow 2017 (Adversarial Training Methods for Semi-Supervised Text Classification),
    section 3.

    Requires: nothing. Owns `backward`, so it excludes `pgd` and `freelb`.

    Shapes: d is (N,T,V) for texts, (N,C,H,W) for pictures, (N,S) for sounds; changed pixels stay in [0, 1].

    Neighbours: `pgd` takes several smaller steps. The direction is looked for without dropout and without moving
    BatchNorm statistics; the changed rows then train like any others, but leave running statistics to the clean ones.
    Three passes a micro-batch.

    Example: `--method fgm:eps=0.3`; `hs.methods.FGM(eps=0.3)`.

    Defaults: eps for texts is 0.3: the paper's 5 holds for embeddings of unit variance, those of BERT-like networks
    have a standard deviation of about 0.05. For pictures it is 0.5 for (3,32,32), the radius customary for CIFAR,
    growing with the square root of the number of values. For sounds it is a root mean square of 0.001, not tuned.
    weight = 1 is the paper's.

    eps: l2 length of a row's change; left out, as above. weight: of the changed rows' loss.
    """

    eps: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.eps is not None:
            number("fgm:eps", self.eps, 0, "such as eps=0.3", above=True)
        number("fgm:weight", self.weight, 0, "such as weight=1; leave the method out for none", above=True)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; it is remembered."""
        self.model_ = model
        return model

    def passes(self) -> float:
        """The gradient in the input, the clean rows, the changed rows."""
        return 3.0

    def backward(self, batch: Batch, loss_of: Callable[[Batch], Tensor], ctx: Context) -> Tensor:
        """Gradients of the sum of both losses; returns that sum."""
        model: Any = getattr(self, "model_", None)
        start = self.centre(model, batch)
        with ctx.quiet(model):
            gradient = slope(loss_of, batch, start)
        change = within(radius(self.eps, start, ctx, "l2") * direction(gradient, "l2"), batch).detach()
        clean = loss_of(batch)
        ctx.backward(clean)
        with still(model):
            adversarial = self.weight * loss_of(shifted(batch, change))
        ctx.backward(adversarial)
        return clean.detach() + adversarial.detach()
