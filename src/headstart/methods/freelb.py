"""Adversarial training that learns from every step of the search."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.attack import climb, cube, real, row_norms, shifted, within
from headstart.errors import MethodError
from headstart.methods._attack import AttackMethod, check_radius, norm_of, radius, still
from headstart.methods._checks import choice, number, whole
from headstart.methods._draws import rewound
from headstart.protocols import Context
from headstart.values import Batch


@dataclass
class FreeLB(AttackMethod):
    """Climbs to worse inputs and adds up the gradients of every step on the way.

    Equation: mean over t < K of L(x + d_t), with d_0 uniform in the ball and d_{t+1} = P(d_t + step * u(g_t)), g_t the
    gradient of L in x at x + d_t, which the pass that makes the parameters' gradient gives as well. P projects each row
    into the ball ||d|| <= eps; u(g) = g / ||g||_2 for `l2`, sign(g) for `linf`.

    Source: Zhu et al. 2020 (FreeLB), section 3, algorithm 1. As there, all K passes of a batch have the same dropout.

    Requires: nothing. Owns `backward`, so it excludes `fgm` and `pgd`.

    Shapes: d is (N,T,V) for texts, (N,C,H,W) for pictures; changed pixels stay in [0, 1].

    Neighbours: `pgd` throws away the gradients of its search and trains on the end of it and on the clean rows, at
    steps + 2 passes; this one costs `steps` and sees the clean rows only nearby. BatchNorm's running statistics are
    moved by the first pass alone.

    Example: `--method freelb:steps=3,eps=0.3`; `hs.methods.FreeLB(steps=3, eps=0.3)`.

    Defaults: steps = 3 is a usual K of the paper. Each value of d_0 is uniform within eps / sqrt(n), n the number of
    values of a row that are not padding, as in algorithm 1 (for linf within eps). norm and eps are those of `pgd`: l2
    and 0.3 for token embeddings, linf and 8/255 for pixels. step = 2.5 eps / steps as for `pgd`; the paper tunes eps
    and step for every task.

    eps: the ball's radius. steps: K. step: length of one. norm: auto, l2 or linf.
    """

    eps: float | None = None
    steps: int = 3
    step: float | None = None
    norm: str = "auto"

    def __post_init__(self) -> None:
        for name in ("eps", "step"):
            if getattr(self, name) is not None:
                number(f"freelb:{name}", getattr(self, name), 0, f"such as {name}=0.3", above=True)
        whole("freelb:steps", self.steps, 1, "such as steps=3")
        choice("freelb:norm", self.norm, ("auto", "l2", "linf"))

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; it is remembered. Raises MethodError for an l-infinity ball of unknown size."""
        check_radius("freelb", self.eps, self.norm, ctx)
        self.model_ = model
        return model

    def passes(self) -> float:
        """One a step: each makes its gradient in the parameters and in the input."""
        return float(self.steps)

    def backward(self, batch: Batch, loss_of: Callable[[Batch], Tensor], ctx: Context) -> Tensor:
        """Gradients of the mean loss over the steps; returns that mean."""
        model: Any = getattr(self, "model_", None)
        zeros = self.centre(model, batch)
        norm = norm_of(self.norm, ctx)
        eps = radius(self.eps, zeros, ctx, norm)
        step = self.step if self.step is not None else 2.5 * eps / self.steps
        change = self._start(zeros, eps, norm, batch, ctx)
        total = torch.zeros((), device=zeros.device)
        for t in range(self.steps):
            last = t == self.steps - 1
            change = change.detach().requires_grad_()
            with still(model) if t else nullcontext(), nullcontext() if last else rewound(model):
                loss = loss_of(shifted(batch, change)) / self.steps
            ctx.backward(loss)
            total = total + loss.detach()
            if change.grad is None:
                raise MethodError(
                    "this backbone ignores a shift of its input, so it cannot be attacked; leave the attack out"
                )
            if not last:
                change = climb(change.detach(), change.grad, step, eps, norm, batch)
        return total

    def _start(self, zeros: Tensor, eps: float, norm: str, batch: Batch, ctx: Context) -> Tensor:
        spot = cube(zeros, batch, ctx.generator)
        if norm == "l2":
            # The l2 length of ones is the root of their number.
            spot = spot / row_norms(real(zeros, batch), "l2").clamp_min(1.0)
        return within(eps * spot, batch)
