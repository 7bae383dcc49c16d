"""Partners and shares for methods that mix two rows into one."""

from __future__ import annotations

import torch
from torch import Tensor

from headstart.errors import MethodError
from headstart.methods._checks import number
from headstart.methods._draws import numpy_from, uniform
from headstart.protocols import Context
from headstart.values import Batch


def check(name: str, alpha: float, probability: float) -> None:
    """The two options that mixing methods have in common."""
    number(f"{name}:alpha", alpha, 0, "such as alpha=0.2", above=True)
    number(f"{name}:probability", probability, 0, "such as probability=0.5", high=1, above=True)


def draw(batch: Batch, ctx: Context, alpha: float, probability: float) -> tuple[Tensor, Tensor]:
    """partner: (N,) int64, a permutation; share: (N,) float32 from Beta(alpha, alpha), 1 for rows left alone.

    Rows are mixed with rows of the same origin, so that `origin` stays true.
    """
    partner = torch.arange(len(batch))
    origin = batch.origin.cpu()
    for value in sorted(set(origin.tolist())):
        where = (origin == value).nonzero()[:, 0]
        order = torch.randperm(len(where), generator=ctx.generator, device=ctx.generator.device).cpu()
        partner[where] = where[order]
    share = torch.from_numpy(numpy_from(ctx.generator).beta(alpha, alpha, size=len(batch))).float()
    alone = uniform((len(batch),), ctx.generator).cpu() >= probability
    share = share.masked_fill(alone, 1.0)
    device = batch.weight.device
    return partner.to(device), share.to(device)


def mixed(batch: Batch, ctx: Context, partner: Tensor, share: Tensor) -> Batch:
    """The batch with the labels and weights of mixed rows; inputs are the caller's."""
    weight = share * batch.weight + (1 - share) * batch.weight[partner]
    labels = None if batch.labels is None else ctx.task.mix(batch.labels, partner, share)
    return batch.replace(labels=labels, weight=weight)


def pixels_of(batch: Batch, name: str) -> Tensor:
    """The batch's pixels (N,C,H,W). Raises MethodError when it has none."""
    if "pixels" not in batch.inputs:
        raise MethodError(f"'{name}' works on pictures, this batch holds {', '.join(batch.inputs)}; leave '{name}' out")
    return batch.inputs["pixels"]
