"""A backbone with a head: the module that the loop trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.protocols import Backbone
from headstart.values import Batch, Blank, Features, Kept, Mix


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
        found = with_states(args, kwargs, len(batch), lambda states: _mixed(states, batch, mix))
        if found is None:
            raise MethodError(f"block {mix.block} of this backbone receives no states of its rows that could be mixed")
        return found

    handle = blocks[mix.block].register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def with_states(
    args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """What a block receives, with its states (the first tensor of real numbers with N rows) changed; None without."""
    place = next((i for i, value in enumerate(args) if _states(value, rows)), None)
    if place is not None:
        return (*args[:place], change(args[place]), *args[place + 1 :]), kwargs
    name = next((key for key, value in kwargs.items() if _states(value, rows)), None)
    return None if name is None else (args, {**kwargs, name: change(kwargs[name])})


def below(backbone: Backbone, block: int) -> list[nn.Module]:
    """The modules that run before a block: those of the stem, then the lower blocks."""
    return [*(part for part in backbone.stem if isinstance(part, nn.Module)), *backbone.blocks[:block]]


def from_kept(backbone: Backbone, batch: Batch, kept: Kept) -> Features:
    """The features of a batch whose bottom was computed earlier: only the blocks from `kept.block` on really run."""
    if kept.block is None:
        return Features(kept.states)
    with _stand_ins(backbone, batch, kept), _entering(backbone.blocks[kept.block], batch, kept):
        return backbone.features(batch)


@contextmanager
def _entering(block: nn.Module, batch: Batch, kept: Kept) -> Iterator[None]:
    """Inside, the block receives the kept states. Raises MethodError when it receives none, or runs more than once."""
    calls = 0

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        nonlocal calls
        calls += 1
        found = with_states(args, kwargs, len(batch), lambda states: kept.states)
        if found is None or calls > 1:
            raise MethodError(f"block {kept.block} of this backbone cannot start from states that were kept")
        return found

    handle = block.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _stand_ins(backbone: Backbone, batch: Batch, kept: Kept) -> Iterator[None]:
    """Inside, these modules answer at once with blanks of the right size; those without an answer run.

    A blank holds nan, so that an answer that was needed after all cannot go unnoticed.
    """
    device = kept.states.device
    tokens = batch.inputs["attention_mask"].shape[1] if "attention_mask" in batch.inputs else 0
    sizes = {-1: len(batch), -2: tokens}

    def made(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(made, value))
        if not isinstance(value, Blank):
            return value
        shape = [sizes.get(size, size) for size in value.shape]
        number = math.nan if value.dtype.is_floating_point else 0
        blank = torch.full((), number, dtype=value.dtype, device=device).expand(shape)
        return blank.clone() if kept.filled else blank

    pairs = zip(below(backbone, kept.block or 0), kept.answers, strict=True)
    standing = [(module, answer, module.__dict__.get("forward")) for module, answer in pairs if answer is not None]
    try:
        for module, answer, _ in standing:
            module.__dict__["forward"] = lambda *args, answer=answer, **kwargs: made(answer)
        yield
    finally:
        for module, _, forward in standing:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward


def _states(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and len(value) == rows


def _mixed(states: Tensor, batch: Batch, mix: Mix) -> Tensor:
    """The equation of `Mix`; (N,T,V) states of tokens stay as they are where the partner's row has only padding."""
    share = mix.share.to(states).view(-1, *[1] * (states.ndim - 1))
    mask = batch.inputs.get("attention_mask")
    if mask is not None and states.shape[:2] == mask.shape:
        share = torch.where(mask[mix.partner].bool()[..., None], share, torch.ones_like(share))
    return share * states + (1 - share) * states[mix.partner]
