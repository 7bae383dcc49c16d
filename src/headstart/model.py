"""A backbone with a head: the module that the loop trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.protocols import Backbone
from headstart.values import Batch, Features, Mix


class Model(nn.Module):
    """features (N,D) -> head -> outputs (N,K)."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch) -> tuple[Features, Tensor]:
        """Features and outputs (N,K) of a batch; rows are mixed where `batch.mix` says so: at a block, or pooled."""
        features = self.backbone(batch)
        pooled = features.pooled.float()
        if batch.mix is not None and batch.mix.block is None:
            share = batch.mix.share[:, None].to(pooled.dtype)
            pooled = share * pooled + (1 - share) * pooled[batch.mix.partner]
        # A head's outputs are compared with each other, so it always runs in full precision.
        with torch.autocast(pooled.device.type, enabled=False):
            return features, self.head(pooled)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Extra forward passes inside move no BatchNorm statistics and draw no dropout; gradients still flow."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def mixed_states(blocks: Sequence[nn.Module], batch: Batch) -> Iterator[None]:
    """Inside, the block that `batch.mix` names receives mixed states: its first tensor of real numbers, N rows.

    Raises MethodError when the block receives no such tensor.
    """
    mix = batch.mix
    if mix is None or mix.block is None:
        yield
        return

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        place = next((i for i, value in enumerate(args) if _states(value, len(batch))), None)
        if place is not None:
            return (*args[:place], _mixed(args[place], batch, mix), *args[place + 1 :]), kwargs
        name = next((key for key, value in kwargs.items() if _states(value, len(batch))), None)
        if name is None:
            raise MethodError(f"block {mix.block} of this backbone receives no states of its rows that could be mixed")
        return args, {**kwargs, name: _mixed(kwargs[name], batch, mix)}

    handle = blocks[mix.block].register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _states(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and len(value) == rows


def _mixed(states: Tensor, batch: Batch, mix: Mix) -> Tensor:
    """The equation of `Mix`; (N,T,V) states of tokens stay as they are where the partner's row has only padding."""
    share = mix.share.to(states).view(-1, *[1] * (states.ndim - 1))
    mask = batch.inputs.get("attention_mask")
    if mask is not None and states.shape[:2] == mask.shape:
        share = torch.where(mask[mix.partner].bool()[..., None], share, torch.ones_like(share))
    return share * states + (1 - share) * states[mix.partner]
