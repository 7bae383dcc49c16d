"""Tasks weighed so that all learn at one pace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._checks import number
from headstart.methods._tasks import NEEDS, by_task, inner, last_shared, slopes
from headstart.protocols import Context, Method
from headstart.values import Batch

SMALLEST = 1e-3
"""The least a task can weigh: none is lost for good."""


@dataclass
class GradNorm(Method):
    """Weighs the tasks so that their gradients have norms that suit how far each has come.

    Equation: the loss is sum_i w_i L_i, and after each micro-batch w takes a step of Adam down the slope of
    sum_i | G_i - mean_j(G_j) r_i^alpha |, whose second term is held constant. G_i = || grad w_i L_i || in the last
    shared block, r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)). Then w is scaled to sum to the number of tasks.

    Source: Chen et al. 2018 (GradNorm), section 3, equations 1 and 2, algorithm 1.

    Requires: several tasks (`task.multitask`) that meet in a batch (`run.mixed`). Owns `backward`, so it excludes
    `fgm`, `pgd`, `sam` and `pcgrad`.

    Shapes: one weight a task, and one gradient of the last shared block a task for the time of a micro-batch.

    Neighbours: `uncertainty` weighs by the size of the losses alone; both together weigh twice. L_i is the mean over
    the task's rows in the r_i, and its part of the batch's loss in the G_i, so that unequal shares of a batch are
    balanced too. A batch that lacks a task leaves w as it is. Where nothing shared learns, w stays at 1. Each of
    several processes weighs by its own rows.

    Example: `--method gradnorm:alpha=1.5`; `hs.methods.GradNorm(alpha=0.5)`.

    Defaults: alpha = 1.5 is what the paper uses for NYUv2 (section 5). rate = 0.025 is untuned.

    alpha: how strongly slow tasks are pulled up; 0 makes all norms equal. rate: learning rate of w.
    """

    alpha: float = 1.5
    rate: float = 0.025

    def __post_init__(self) -> None:
        number("gradnorm:alpha", self.alpha, 0, "such as alpha=1.5")
        number("gradnorm:rate", self.rate, 0, "such as rate=0.025", above=True)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; it is remembered, and every task weighs 1."""
        self.model_ = model
        self.first_: dict[int, float] = {}
        self._weigh(torch.ones(len(ctx.task.members)))
        return model

    def _weigh(self, weights: Tensor) -> None:
        self.weights_ = weights.clone().requires_grad_()
        self.optimiser_ = torch.optim.Adam([self.weights_], lr=self.rate)

    def remains(self) -> bool:
        """The model keeps no trace of the training."""
        return False

    def requires(self) -> dict[str, str]:
        """Several tasks, in one batch."""
        return {**NEEDS, "run.mixed": "it compares the tasks of a batch"}

    def backward(self, batch: Batch, loss_of: Callable[[Batch], Tensor], ctx: Context) -> Tensor:
        """Gradients of the weighed losses, then a step of the weights; returns the plain loss."""
        model: nn.Module | None = getattr(self, "model_", None)
        if model is None:
            raise MethodError("'gradnorm' needs the model whose gradients it balances: call adapt(model, ctx) first")
        parts, common = by_task(batch), last_shared(model)
        weights, whole = self.weights_.detach().tolist(), batch.weight.sum()
        norms, paces = torch.zeros(len(weights)), torch.zeros(len(weights))
        total = torch.zeros((), device=batch.weight.device)
        for task, part in parts:
            loss = loss_of(part)
            if common:
                found = slopes(loss, common, keep=True)
                norms[task] = inner(found, found).sqrt().cpu()
            mean = float(loss.detach() * whole / part.weight.sum().clamp_min(1e-12))
            paces[task] = mean / max(self.first_.setdefault(task, mean), 1e-12)
            ctx.backward(weights[task] * loss)
            total = total + loss.detach()
        if common and len(parts) == len(weights):
            self._step(norms, paces)
        return total

    def _step(self, norms: Tensor, paces: Tensor) -> None:
        """One step of the weights. norms: || grad L_i || without their weights; paces: L_i / L_i(0)."""
        sizes = self.weights_ * norms
        wanted = sizes.detach().mean() * (paces / paces.mean().clamp_min(1e-12)) ** self.alpha
        self.optimiser_.zero_grad()
        (sizes - wanted).abs().sum().backward()
        self.optimiser_.step()
        with torch.no_grad():
            self.weights_.clamp_min_(SMALLEST)
            self.weights_.mul_(len(self.weights_) / self.weights_.sum())

    def state(self) -> dict[str, Any]:
        """The weights, their optimiser's moments and the first losses."""
        moments = {name: v.clone() for name, v in self.optimiser_.state.get(self.weights_, {}).items()}
        first = {str(task): value for task, value in self.first_.items()}
        return {"weights": self.weights_.detach().clone(), "first": first, "moments": moments}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """As `state` left them."""
        self._weigh(state["weights"])
        self.first_ = {int(task): float(value) for task, value in state["first"].items()}
        if state["moments"]:
            self.optimiser_.state[self.weights_] = dict(state["moments"])
