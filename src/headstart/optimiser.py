"""The optimiser step: parameter groups, schedules and the decoupled decay.

AdamW and SGD apply theta <- theta - lr * grad - lr * decay * theta (Loshchilov & Hutter 2019, algorithms 1 and 2);
Adam adds decay * theta to the gradient (Kingma & Ba 2015 with an L2 term). Norms and biases, the parameters of fewer
than two dimensions, are decayed only with `training.decay_norms`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from headstart.spec import TrainingSpec
from headstart.tables import Table
from headstart.values import Group

BETAS = (0.9, 0.98)
"""Moments of Adam and AdamW, as for RoBERTa (Liu et al. 2019, section 3.1): fine-tuning is too short for 0.999."""


def schedule(kind: str, warmup: float, fraction: float) -> float:
    """The factor on the learning rate after `fraction` of the run, in [0, 1].

    cosine, linear: linear warm-up, then down to 0. constant: linear warm-up, then 1. one_cycle (Smith 2018): cosine
    up from 1/25 over the warm-up (0.3 of the run when none is set), cosine down to 1/10000.
    """
    fraction = min(max(fraction, 0.0), 1.0)
    if kind == "one_cycle":
        rise = warmup or 0.3
        if fraction < rise:
            return _between(1 / 25, 1.0, fraction / rise)
        return _between(1.0, 1e-4, (fraction - rise) / (1 - rise))
    if warmup and fraction < warmup:
        return fraction / warmup
    rest = (fraction - warmup) / (1 - warmup)
    if kind == "constant":
        return 1.0
    return 1 - rest if kind == "linear" else 0.5 * (1 + math.cos(math.pi * rest))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


class Optimiser:
    """A torch optimiser over the current groups; moments follow their parameters when the groups change."""

    def __init__(self, training: TrainingSpec, learning_rate: float) -> None:
        self.training = training
        self.learning_rate = learning_rate
        self.groups: list[Group] = []
        self.tables: list[Table] = []
        self.torch: torch.optim.Optimizer | None = None

    @property
    def moves_rows(self) -> bool:
        """Whether tables can be moved in rows: not where the decay is part of the gradient, nor by SGD."""
        kind = self.training.optimizer
        return kind == "adamw" or (kind == "adam" and not self.training.weight_decay)

    def set_groups(self, groups: Sequence[Group], tables: Sequence[Table] = ()) -> None:
        """Make these the groups that learn. Each is split into decayed (matrices; with `decay_norms` all) and not.

        tables: those among them whose gradients come in rows.
        """
        self.settle()
        old = dict(self.torch.state) if self.torch else {}
        split: list[dict[str, object]] = []
        for group in groups:
            for decayed in (True, False):
                parameters = [p for p in group.parameters if (p.ndim >= 2 or self.training.decay_norms) is decayed]
                if parameters:
                    split.append({"params": parameters, "scale": group.lr_scale, "decayed": decayed})
        self.groups = list(groups)
        self.torch = self._make(split)
        for parameter in self.parameters:
            if parameter in old:
                self.torch.state[parameter] = old[parameter]
        self.follow(tables)

    def follow(self, tables: Sequence[Table]) -> None:
        """Move these tables in rows, those that have moments from the start."""
        self.tables = list(tables)
        for table in self.tables if self.torch else ():
            table.know(self.torch.state[table.weight])  # type: ignore[union-attr]

    def settle(self) -> None:
        """Every number of every table as it should be: to be called before anyone but a step reads them."""
        for table in self.tables:
            table.settle()

    def clip(self, most: float) -> None:
        """Scale all gradients together to this norm at most."""
        rows = [table.weight.grad for table in self.tables if table.coalesce()]
        if not rows:
            torch.nn.utils.clip_grad_norm_(self.parameters, most)
            return
        held = {id(gradient) for gradient in rows}
        others = [p.grad for p in self.parameters if p.grad is not None and id(p.grad) not in held]
        parts = [*others, *(gradient.values() for gradient in rows if gradient is not None)]
        factor = most / (float(torch.nn.utils.get_total_norm(parts)) + 1e-6)
        if factor < 1:
            torch._foreach_mul_(parts, factor)

    def _make(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        rate = self.learning_rate
        if self.training.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=self.training.momentum)
        for group in groups:
            group["weight_decay"] = self.training.weight_decay if group["decayed"] else 0.0
        kind = torch.optim.Adam if self.training.optimizer == "adam" else torch.optim.AdamW
        # One pass over memory instead of a dozen: on a CPU 13 ms instead of 120 for a table of 30,000 rows of 384.
        fused = all(p.device.type in ("cpu", "cuda") for p in self.parameters) or None
        return kind(groups, lr=rate, betas=BETAS, fused=fused)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that learns, in a fixed order."""
        return [p for group in self.groups for p in group.parameters]

    def step(self, fraction: float) -> float:
        """One update at this point of the schedule; returns the learning rate. Gradients are cleared."""
        optimiser = self.torch
        if optimiser is None:
            raise RuntimeError("set_groups comes before step")
        rate = self.learning_rate * schedule(self.training.schedule, self.training.warmup, fraction)
        by_hand = self.training.optimizer == "sgd" and self.training.weight_decay > 0  # Adam and AdamW do it themselves
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
            if by_hand and group["decayed"]:
                shrink = 1 - group["lr"] * self.training.weight_decay
                with torch.no_grad():
                    for parameter in group["params"]:
                        if parameter.grad is not None:
                            parameter.mul_(shrink)
        taken = [(table, gradient) for table in self.tables if (gradient := table.take()) is not None]
        optimiser.step()
        for table, gradient in taken:
            group = next(g for g in optimiser.param_groups if any(p is table.weight for p in g["params"]))
            table.move(gradient, optimiser.state[table.weight], group)
        optimiser.zero_grad(set_to_none=True)
        return rate
