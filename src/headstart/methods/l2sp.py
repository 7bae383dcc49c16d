"""A pull towards the pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.methods._checks import number
from headstart.protocols import Context, Method


@dataclass
class L2SP(Method):
    """Pulls the backbone's weights towards their starting point, and the head's towards zero.

    Equation: (weight / 2) * ||w - w0||^2 over the backbone's learning parameters w with starting values w0, plus
    (beta / 2) * ||v||^2 over the head's parameters v.

    Source: Li, Grandvalet and Davoine 2018 (Explicit Inductive Bias for Transfer Learning), section 3.

    Requires: backbone parameters that learn and were there at the start. With `lora`, `adapter` or `freeze:probe`
    none is, the pull is zero, and the run says so.

    Shapes: two scalars, `l2sp` and, where beta is not 0, `l2sp_head`, added once per optimiser step.

    Neighbours: `freeze` is the limit of a large weight. The optimiser's own weight decay pulls towards zero and works
    against this; `training.weight_decay=0` leaves the pull of the paper.

    Example: `--method l2sp:weight=0.01`; `hs.methods.L2SP(0.01)`.

    Defaults: 0.01 for both is what thuml's transfer library uses; the paper chooses the weight on validation rows.

    weight: alpha of the paper. beta: the head's strength; 0 leaves the head alone.
    """

    weight: float = 0.01
    beta: float = 0.01

    def __post_init__(self) -> None:
        number("l2sp:weight", self.weight, 0, "such as weight=0.01; leave the method out for none", above=True)
        number("l2sp:beta", self.beta, 0, "such as beta=0.01; 0 leaves the head alone")

    def prior(self, model: nn.Module, ctx: Context) -> dict[str, Tensor]:
        """`l2sp` and `l2sp_head`. Parameters added by surgery have no starting point and are not pulled."""
        whole: Any = model
        pairs = [(p, ctx.start[p]) for p in whole.backbone.parameters() if p.requires_grad and p in ctx.start]
        zero = torch.zeros((), device=next(model.parameters()).device)
        found = {"l2sp": _half_square([p - start.to(p.device) for p, start in pairs], self.weight, zero)}
        if self.beta:
            found["l2sp_head"] = _half_square([p for p in whole.head.parameters() if p.requires_grad], self.beta, zero)
        return found


def _half_square(tensors: list[Tensor], strength: float, zero: Tensor) -> Tensor:
    """strength / 2 * the sum of squares, in float32."""
    return zero + sum((strength / 2 * t.float().square().sum() for t in tensors), start=zero)
