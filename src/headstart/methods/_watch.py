"""What happens inside a network during a pass: the outputs of its blocks, and its attention maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.protocols import Backbone
from headstart.values import Batch, Features

EAGER = "eager"


def watch(backbone: Backbone) -> Callable[[], None]:
    """From now on the features of every pass carry the outputs of the blocks (`states`); call the result to end it.

    They hang on the pooled features, so that they live as long as these do, and passes of other methods are told apart.
    """
    seen: list[Tensor] = []

    # Functions, not methods: a copy of the backbone, which some methods make, keeps them as they are.
    def begin(module: nn.Module, args: Any) -> None:
        seen.clear()

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(_first(output))

    def end(module: nn.Module, args: Any, output: Features) -> None:
        carrier: Any = output.pooled
        carrier.states = list(seen)
        seen.clear()

    handles: list[Any] = [backbone.register_forward_pre_hook(begin)]
    handles += [block.register_forward_hook(note) for block in backbone.blocks]
    handles.append(backbone.register_forward_hook(end))

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def states(features: Features) -> list[Tensor]:
    """The outputs of the blocks in the pass that made these features; see `watch`."""
    carrier: Any = features.pooled
    found: list[Tensor] = carrier.states
    return found


def tokens(state: Tensor, features: Features, last: bool) -> tuple[Tensor, Tensor]:
    """(N,P,D) float32 and which places count (N,P), of a block's output: tokens, or the places of a map.

    last: whether a map's channels come last, as in some networks of timm.
    """
    if state.ndim == 4:
        values = state.flatten(1, 2) if last else state.flatten(2).transpose(1, 2)
    elif state.ndim == 3:
        values = state
    else:
        raise MethodError(f"expected blocks that give tokens or maps, received {tuple(state.shape)}: set hidden=0")
    mask = features.mask
    if mask is None or mask.shape != values.shape[:2]:
        mask = torch.ones(values.shape[:2], device=values.device)
    return values.float(), mask.float()


def channels_last(backbone: Any) -> bool:
    """Whether a backbone's maps inside are (N,H,W,C)."""
    return "NHWC" in str(getattr(getattr(backbone, "network", None), "output_fmt", ""))


def attention(backbone: Any, batch: Batch) -> list[Tensor]:
    """The attention maps (N,heads,T,T) of each block, rows that sum to 1, by a pass of its own.

    Raises MethodError for a network that shows none: only those of transformers with an eager implementation do.
    """
    maps: list[Tensor | None] = []
    with _eager(backbone):
        handles = []
        for number, block in enumerate(backbone.blocks):
            maps.append(None)

            def note(module: nn.Module, args: Any, output: Any, number: int = number) -> None:
                for value in output if isinstance(output, tuple) else ():
                    if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] == value.shape[-2]:
                        maps[number] = value

            handles += [module.register_forward_hook(note) for module in block.modules()]
        try:
            backbone.features(batch)
        finally:
            for handle in handles:
                handle.remove()
    found = [value.float() for value in maps if value is not None]
    if not found or len(found) != len(maps):
        raise MethodError(_no_maps(backbone))
    return found


@contextmanager
def _eager(backbone: Any) -> Iterator[None]:
    """The network's plain attention, which is the one that gives its maps."""
    network = getattr(backbone, "network", None)
    before = getattr(getattr(network, "config", None), "_attn_implementation", None)
    if before is None:
        raise MethodError(_no_maps(backbone))
    try:
        network.set_attn_implementation(EAGER)  # type: ignore[union-attr]
    except ValueError:
        raise MethodError(_no_maps(backbone)) from None
    try:
        yield
    finally:
        network.set_attn_implementation(before)  # type: ignore[union-attr]


def _no_maps(backbone: Any) -> str:
    return (
        f"the network of '{backbone.ref}' shows no attention maps: leave distil:attention out, or take a transformer "
        f"of the transformers library, such as BERT or ViT"
    )


def _first(output: Any) -> Tensor:
    """The tensor that a block passes on."""
    while not isinstance(output, Tensor):
        output = output[0] if isinstance(output, tuple | list) else next(iter(output.values()))
    return output
