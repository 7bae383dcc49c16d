"""Gradients of tasks that disagree are made to agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._tasks import NEEDS, by_task, inner, shared
from headstart.protocols import Context, Method
from headstart.values import Batch


@dataclass
class PCGrad(Method):
    """Takes out of each task's gradient what points against another task's.

    Equation: for every task i, in turn for every other task j in random order: g_i <- g_i - (g_i . g_j) / ||g_j||^2 g_j
    where g_i . g_j < 0, with g_j as it was at the start; then the g_i are added up. g_i is the gradient of the rows of
    task i in the layers that tasks share.

    Source: Yu et al. 2020 (Gradient Surgery for Multi-Task Learning), section 2.3, algorithm 1.

    Requires: several tasks (`task.multitask`) that meet in a batch (`run.mixed`). Owns `backward`, so it excludes
    `fgm`, `pgd`, `sam` and `gradnorm`.

    Shapes: one gradient of the shared layers a task, for the time of a micro-batch.

    Neighbours: `gradnorm` and `uncertainty` weigh tasks and leave directions alone; `uncertainty` combines with this
    one. Heads are not operated on: no two tasks share a row of them. Penalties count as part of each task's loss,
    priors do not. With accumulation each micro-batch is operated on by itself. The tasks of a batch pass one after the
    other, which for networks with BatchNorm means that each is normalised by its own rows.

    Example: `--method pcgrad`; `hs.methods.PCGrad()`.

    Defaults: there are none to choose.
    """

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; it is remembered."""
        self.model_ = model
        return model

    def remains(self) -> bool:
        """The model keeps no trace of the training."""
        return False

    def requires(self) -> dict[str, str]:
        """Several tasks, in one batch."""
        return {**NEEDS, "run.mixed": "it compares the tasks of a batch"}

    def backward(self, batch: Batch, loss_of: Callable[[Batch], Tensor], ctx: Context) -> Tensor:
        """Gradients of each task's rows, operated on and added up; returns the sum of their losses."""
        model: nn.Module | None = getattr(self, "model_", None)
        if model is None:
            raise MethodError("'pcgrad' needs the model whose gradients it changes: call adapt(model, ctx) first")
        parts = by_task(batch)
        common = shared(model)
        if len(parts) == 1 or not common:
            return Method.backward(self, batch, loss_of, ctx)
        before = [(p, p.grad) for p in common]
        each: list[list[Tensor]] = []
        total = torch.zeros((), device=batch.weight.device)
        for _, part in parts:
            for p in common:
                p.grad = None
            loss = loss_of(part)
            ctx.backward(loss)  # into the heads too, whose gradients simply add up
            each.append([torch.zeros_like(p) if p.grad is None else p.grad for p in common])
            total = total + loss.detach()
        for (p, old), new in zip(before, zip(*self._operated(each, ctx), strict=True), strict=True):
            added = torch.stack(new).sum(0)
            p.grad = added if old is None else old + added
        return total

    def _operated(self, each: list[list[Tensor]], ctx: Context) -> list[list[Tensor]]:
        """Every task's gradient without what goes against the others."""
        found = []
        for i, own in enumerate(each):
            changed = own
            others = [j for j in range(len(each)) if j != i]
            for place in torch.randperm(len(others), generator=ctx.generator).tolist():
                other = each[others[place]]
                product, length = inner(changed, other), inner(other, other)
                if product < 0 and length > 0:
                    share = product / length
                    changed = [a - share.to(a.dtype) * b for a, b in zip(changed, other, strict=True)]
            found.append(changed)
        return found
