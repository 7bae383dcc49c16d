"""The backbone as it was before training, for methods that compare with it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from headstart.protocols import Backbone, Context
from headstart.values import Batch, Features


def frozen(model: nn.Module, ctx: Context) -> Backbone:
    """A copy of the backbone that never trains, with the starting values of `ctx.start`, whose memory it shares.

    Surgery that was done before is copied as it stands: before training it leaves the network's answers alone.
    """
    whole: Any = model
    shared: dict[int, Any] = {
        id(p): nn.Parameter(ctx.start[p], requires_grad=False) for p in whole.backbone.parameters() if p in ctx.start
    }
    copy: Backbone = deepcopy(whole.backbone, shared)
    copy.eval().requires_grad_(False)
    return copy


def answer(start: Backbone, batch: Batch, ctx: Context) -> Features:
    """The frozen backbone's features of these rows, without gradients."""
    with torch.no_grad(), ctx.autocast():
        return start.features(batch)


def places(features: Features) -> tuple[Tensor, Tensor]:
    """(N,P,D) float32 and which places count, (N,P): tokens, else the places of the map, else the pooled vector."""
    if features.tokens is not None:
        values = features.tokens.float()
        here = torch.ones(values.shape[:2], device=values.device) if features.mask is None else features.mask
        return values, here.to(values.dtype)
    grid = features.pooled[:, :, None] if features.map is None else features.map.flatten(2)
    values = grid.float().transpose(1, 2)
    return values, torch.ones(values.shape[:2], device=values.device)
