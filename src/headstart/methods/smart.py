"""Answers shall be smooth around each row, and change little from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from headstart.attack import ascend, inside, shifted
from headstart.methods._attack import AttackMethod, check_radius, norm_of, radius, still
from headstart.methods._checks import choice, number, whole
from headstart.methods._distance import of_task, symmetric
from headstart.methods._draws import of_batch, rewound
from headstart.methods._rows import weighted
from headstart.protocols import Context
from headstart.values import View


@dataclass
class Smart(AttackMethod):
    """Makes the answer to each row agree with that to the worst row nearby, and with that of the weights so far.

    Equation: weight * mean_i max_{||d_i|| <= eps} l(f(x_i), f(x_i + d_i)) + proximal * mean_i l(f(x_i), a(x_i)), with
    l(P, Q) = KL(P || Q) + KL(Q || P), f the network and a the same network with averaged weights, a <- momentum * a +
    (1 - momentum) * f after every step. The maximum is looked for by `steps` projected gradient steps from a random
    point. With several labels a row l is the mean over labels of that of one Bernoulli distribution each; for
    regression it is the squared difference.

    Source: Jiang et al. 2020 (SMART), sections 3.1 (the smoothness) and 3.2 (the proximal point with momentum).

    Requires: nothing; no label is read.

    Shapes: d is (N,T,V) for texts, (N,C,H,W) for pictures; changed pixels stay in [0, 1]; outputs (N,K) -> two scalars.

    Neighbours: `vat` finds its direction by power iteration, charges one of the two divergences and learns from rows
    without labels too; `pgd` searches for a higher loss of the label. As a penalty it composes with every owner of
    `backward`; in passes without dropout, with which they search, it is 0. All passes around a row have the same
    dropout and batch statistics, and none moves running statistics. `proximal` keeps a copy of the parameters.

    Example: `--method smart:weight=5,eps=0.3`; `hs.methods.Smart(weight=5.0)`.

    Defaults: weight = 1 is the smallest of the paper's choices 1, 3 and 5 for lambda_s, proximal = 1 is its mu, and
    steps = 1 its number of ascents (section 4). momentum = 0.99 is what it takes for the first tenth of the updates;
    it goes on with 0.999, too slow for runs of a few hundred. norm, eps and the step of 2.5 eps / steps are those of
    `pgd`: l2 and 0.3 for token embeddings, linf and 8/255 for pixels; the paper's 1e-5 is too small to measure.

    eps: the ball's radius. weight: of the smoothness. steps: of the ascent. norm: auto, l2 or linf. proximal: of the
    second term; 0 leaves it and the copy out. momentum: of the averaged weights, in [0, 1).
    """

    eps: float | None = None
    weight: float = 1.0
    steps: int = 1
    norm: str = "auto"
    proximal: float = 1.0
    momentum: float = 0.99

    def __post_init__(self) -> None:
        if self.eps is not None:
            number("smart:eps", self.eps, 0, "such as eps=0.3", above=True)
        number("smart:weight", self.weight, 0, "such as weight=1; leave the method out for none", above=True)
        whole("smart:steps", self.steps, 1, "such as steps=1")
        choice("smart:norm", self.norm, ("auto", "l2", "linf"))
        number("smart:proximal", self.proximal, 0, "such as proximal=1, or 0 for none")
        number("smart:momentum", self.momentum, 0, "such as momentum=0.99", high=1 - 1e-9)
        self.average_: dict[str, Tensor] = {}

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged. Raises MethodError for an l-infinity ball of unknown size."""
        check_radius("smart", self.eps, self.norm, ctx)
        self.average_ = {}
        return model

    def passes(self) -> float:
        """The rows; again with the search's dropout; once a step; moved; with averaged weights, without gradients."""
        return 1.0 + 1.0 + self.steps + 1.0 + (1 / 3 if self.proximal else 0)

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`smart` and `smart_proximal`, scaled; 0 in a pass that draws no dropout."""
        if not view.model.training:
            return {"smart": view.outputs.sum() * 0.0}
        found = {"smart": self.weight * self._smoothness(view, ctx)}
        if self.proximal and self.average_:
            with ctx.quiet(view.model), torch.no_grad(), ctx.autocast():
                _, before = functional_call(view.model, self.average_, (view.batch,))
            distance = of_task(symmetric, view.outputs, before.float(), ctx.task)
            found["smart_proximal"] = self.proximal * weighted(distance, view.batch)
        return found

    def _smoothness(self, view: View, ctx: Context) -> Tensor:
        """The mean distance between the answers to the rows and to their worst neighbours."""
        model: Any = view.model
        zeros = self.centre(model, view.batch)
        norm = norm_of(self.norm, ctx)
        eps = radius(self.eps, zeros, ctx, norm)
        start = inside(zeros, eps, norm, view.batch, of_batch(ctx.generator, view.batch))

        def answer(batch: Any) -> Tensor:
            with ctx.autocast():
                outputs: Tensor = model(batch)[1].float()
            return outputs

        with still(model):
            with rewound(model):
                clean = answer(view.batch)
            fixed = clean.detach()

            def apart(batch: Any) -> Tensor:
                with rewound(model):
                    return of_task(symmetric, fixed, answer(batch), ctx.task).sum()

            change = ascend(apart, view.batch, start, eps, norm, self.steps)
            moved = answer(shifted(view.batch, change))
        return weighted(of_task(symmetric, clean, moved, ctx.task), view.batch)

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """The averaged weights follow; the first step begins them."""
        if not self.proximal:
            return
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name in self.average_:
                    self.average_[name].lerp_(value, 1 - self.momentum)
                else:
                    self.average_[name] = value.detach().clone()

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model as it is; the averaged weights are let go."""
        self.average_ = {}
        return model

    def state(self) -> dict[str, Any]:
        """The averaged weights."""
        return dict(self.average_)

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """The inverse of `state`, on the model's device."""
        device = next(model.parameters()).device
        self.average_ = {name: value.to(device) for name, value in state.items()}
