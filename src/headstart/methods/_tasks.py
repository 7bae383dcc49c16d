"""What methods for several tasks share: a micro-batch by task, the layers that tasks share, gradients of a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headstart.values import Batch

NEEDS = {"task.multitask": "it balances several tasks, and this run has one; name them in tables [tasks.NAME]"}


def rows_of(batch: Batch, index: Tensor) -> Batch:
    """The batch of these rows."""
    return batch.replace(
        inputs={name: value[index] for name, value in batch.inputs.items()},
        labels=None if batch.labels is None else batch.labels[index],
        weight=batch.weight[index],
        origin=batch.origin[index],
        row=batch.row[index],
        shift=None if batch.shift is None else batch.shift[index],
    )


def by_task(batch: Batch) -> list[tuple[int, Batch]]:
    """The number of each task that has rows in the batch, with these rows.

    The losses of the parts add up to that of the batch, for each is divided by the weight of the whole window.
    """
    numbers = torch.unique(batch.origin).tolist()
    if len(numbers) == 1:
        return [(int(numbers[0]), batch)]
    return [(int(number), rows_of(batch, (batch.origin == number).nonzero()[:, 0])) for number in numbers]


def shared(model: Any) -> list[nn.Parameter]:
    """The learning parameters of the backbone: what tasks share, in a fixed order."""
    return [p for p in model.backbone.parameters() if p.requires_grad]


def last_shared(model: Any) -> list[nn.Parameter]:
    """The learning parameters of the highest block that has any, else of all that is shared."""
    for block in reversed(model.backbone.blocks):
        found = [p for p in block.parameters() if p.requires_grad]
        if found:
            return found
    return shared(model)


def slopes(loss: Tensor, parameters: Sequence[nn.Parameter], *, keep: bool = False) -> list[Tensor]:
    """The gradient of a loss in each parameter, zeros where it does not depend on it."""
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True, retain_graph=keep)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The inner product of two gradients."""
    return torch.stack([(x.float() * y.float()).sum() for x, y in zip(a, b, strict=True)]).sum()
