"""Tasks weighed by how uncertain their answers must stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.methods._checks import number
from headstart.methods._rows import weighted
from headstart.methods._tasks import NEEDS
from headstart.protocols import Context, Method
from headstart.values import View


@dataclass
class Uncertainty(Method):
    """Learns one variance a task, which weighs its loss: what stays uncertain counts less.

    Equation: a row of task k costs c_k exp(-s_k) loss + s_k / 2 in place of its loss, with s_k = log sigma_k^2 learned
    from 0; c_k = 1/2 for regression and 1 for classes, as the likelihoods of the paper have it.

    Source: Kendall, Gal and Cipolla 2018 (Multi-Task Learning Using Uncertainty to Weigh Losses), section 3.2,
    equations 7 and 10.

    Requires: several tasks (`task.multitask`).

    Shapes: one number a task; losses (N,) -> a scalar.

    Neighbours: `gradnorm` looks at gradients instead of losses. As a penalty it combines with `pcgrad`, and with `fgm`,
    `pgd` and `sam`, whose changed rows teach it too. It adds the difference to the plain loss, so a
    `training.task_weight` below 1 takes its share off the plain part alone. Tasks whose losses go to zero weigh ever
    more.

    Example: `--method uncertainty`; `hs.methods.Uncertainty(rate=0.01)`.

    Defaults: rate = 0.01 is untuned; the paper lets the network's own optimiser learn s.

    rate: learning rate of s, by Adam.
    """

    rate: float = 0.01

    def __post_init__(self) -> None:
        number("uncertainty:rate", self.rate, 0, "such as rate=0.01", above=True)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; every task starts with a variance of 1."""
        device = next(model.parameters()).device
        self._start(torch.zeros(len(ctx.task.members), device=device))
        return model

    def _start(self, logs: Tensor) -> None:
        self.logs_ = logs.clone().requires_grad_()
        self.optimiser_ = torch.optim.Adam([self.logs_], lr=self.rate)

    def remains(self) -> bool:
        """The model keeps no trace of the training."""
        return False

    def requires(self) -> dict[str, str]:
        """Several tasks."""
        return dict(NEEDS)

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`uncertainty`: what the weighed loss has over the plain one."""
        factors = [0.5 if member.task.name == "regression" else 1.0 for member in ctx.task.members]
        log = self.logs_[view.batch.origin]
        factor = view.losses.new_tensor(factors)[view.batch.origin] * torch.exp(-log)
        return {"uncertainty": weighted((factor - 1) * view.losses + 0.5 * log, view.batch)}

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """One step of s on what the micro-batches of all processes left in its gradient."""
        if self.logs_.grad is not None:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(self.logs_.grad)
            self.optimiser_.step()
            self.optimiser_.zero_grad()

    def state(self) -> dict[str, Any]:
        """s and its optimiser's moments."""
        moments = {name: value.clone() for name, value in self.optimiser_.state.get(self.logs_, {}).items()}
        return {"logs": self.logs_.detach().clone(), "moments": moments}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """As `state` left them."""
        self._start(state["logs"].to(self.logs_.device))
        if state["moments"]:
            # Adam counts its steps on the processor, wherever its moments are.
            moments = {n: v if n == "step" else v.to(self.logs_.device) for n, v in state["moments"].items()}
            self.optimiser_.state[self.logs_] = moments
