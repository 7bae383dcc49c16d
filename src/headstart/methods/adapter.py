"""Bottleneck adapters behind every block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._checks import choice, whole
from headstart.methods._example import example
from headstart.protocols import Context, Method
from headstart.values import Group

CHILD = "headstart_adapter"
"""The name under which a block holds its adapter; all other names stay as they are."""


@dataclass
class Adapter(Method):
    """Trains a small bottleneck behind each block of a frozen backbone.

    Equation: h <- h + U f(D h + b) + c, with D (w,V) random, U (V,w) and both biases zero at the start, so that the
    network answers as before; f is the activation.

    Source: Houlsby et al. 2019, section 2.1; one adapter a block, after its feed-forward part, is Pfeiffer et al.
    2021 (AdapterFusion), appendix A.1. For feature maps the same map is applied at every place, a 1x1 convolution as
    in Rebuffi et al. 2018.

    Requires: nothing. Owns `groups`, so it excludes `freeze` and `lora`. Claims every block.

    Shapes: hidden states (N,T,V) or maps (N,V,H,W) -> the same, V being each block's own width.

    Neighbours: `lora` changes existing layers and can be merged away; an adapter stays in the finished model and
    costs a little at every use. A backbone that holds adapters of this size already goes on with those.

    Example: `--method adapter:reduction=16`; `hs.methods.Adapter(width=64)`.

    Defaults: reduction = 16, relu and the place behind the block are those of Pfeiffer et al. The rate used when the
    user gives none is 3e-4 for text, the middle of the three that Houlsby et al. search (section 3), and 1e-3
    otherwise, where the backbone as a whole learns faster too.

    reduction: w = V // reduction, at least 1. width: w itself, the same for all blocks. activation: relu or gelu.
    """

    reduction: int = 16
    width: int | None = None
    activation: str = "relu"

    def __post_init__(self) -> None:
        whole("adapter:reduction", self.reduction, 1, "such as reduction=16")
        if self.width is not None:
            whole("adapter:width", self.width, 1, "such as width=64")
        choice("adapter:activation", self.activation, ("relu", "gelu"))

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Put an adapter behind each block. Raises MethodError for a block that cannot take one."""
        backbone: Any = model.backbone
        last = "NHWC" in str(getattr(getattr(backbone, "network", None), "output_fmt", ""))
        with ctx.quiet(model), torch.no_grad():
            widths = _widths(backbone)
        for block, wide in zip(backbone.blocks, widths, strict=True):
            ctx.claim(block)
            narrow = self.width if self.width is not None else max(1, wide // self.reduction)
            there = getattr(block, CHILD, None)
            if there is None:
                self._insert(block, Bottleneck(wide, narrow, self.activation, last, ctx.generator))
            elif (there.down.shape[0], there.activation) != (narrow, self.activation):
                raise MethodError(
                    f"this backbone holds adapters of width {there.down.shape[0]} with {there.activation} already, "
                    f"received width {narrow} with {self.activation}: give the same options, or another backbone"
                )
        return model

    def _insert(self, block: nn.Module, bottleneck: Bottleneck) -> None:
        near = next(block.parameters())
        block.add_module(CHILD, bottleneck.to(near.device, near.dtype))
        # A Sequential runs its children in order, so there the adapter is in place already.
        if not isinstance(block, nn.Sequential):
            block.register_forward_hook(_after)

    def groups(self, model: nn.Module, ctx: Context) -> list[Group]:
        """The adapters, and nothing else."""
        return [Group(tuple(p for bottleneck in _bottlenecks(model) for p in bottleneck.parameters()))]

    def learning_rate(self, modality: str) -> float | None:
        """3e-4 for text, 1e-3 otherwise."""
        return 3e-4 if modality == "text" else 1e-3

    def remains(self) -> bool:
        """Adapters stay."""
        return True


class Bottleneck(nn.Module):
    """h + U f(D h + b) + c on the channels of (N,T,V), (N,V), (N,V,H,W) or, with `last`, (N,H,W,V).

    Its weights are bare parameters rather than Linear layers, so that no other method takes them for the backbone's.
    """

    def __init__(self, wide: int, narrow: int, activation: str, last: bool, generator: torch.Generator) -> None:
        super().__init__()
        # The scale of LoRA's first factor: outputs of unit size for inputs of unit size.
        drawn = torch.randn((narrow, wide), generator=generator, device=generator.device).cpu()
        self.down = nn.Parameter(drawn / wide**0.5)
        self.down_bias = nn.Parameter(torch.zeros(narrow))
        self.up = nn.Parameter(torch.zeros(wide, narrow))
        self.up_bias = nn.Parameter(torch.zeros(wide))
        self.activation = activation
        self.last = last

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden states with the bottleneck's answer added; same shape."""
        wide = self.up.shape[0]
        act = F.gelu if self.activation == "gelu" else F.relu
        if hidden.ndim == 4 and not self.last and hidden.shape[1] == wide:
            inner = act(F.conv2d(hidden, self.down[:, :, None, None], self.down_bias))
            return hidden + F.conv2d(inner, self.up[:, :, None, None], self.up_bias)
        if hidden.shape[-1] != wide:
            raise MethodError(
                f"expected a block to answer with {wide} channels, received shape {tuple(hidden.shape)}; "
                f"this backbone cannot take adapters, use lora"
            )
        return hidden + F.linear(act(F.linear(hidden, self.down, self.down_bias)), self.up, self.up_bias)


def _after(block: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook of a block: its answer, or the first of its answers, through the adapter."""
    bottleneck: Any = getattr(block, CHILD)
    if isinstance(output, tuple):
        return (bottleneck(output[0]), *output[1:])
    return bottleneck(output)


def _bottlenecks(model: nn.Module) -> Iterator[Bottleneck]:
    return (module for module in model.modules() if isinstance(module, Bottleneck))


def _widths(backbone: Any) -> list[int]:
    """The width of each block's answer: as seen on one small input, else as its layers say."""
    blocks = list(backbone.blocks)
    for block in blocks:
        if isinstance(block, nn.ModuleDict | nn.ModuleList):
            kind = type(block).__name__
            raise MethodError(f"blocks of type {kind} run whatever they hold, so no adapter fits in; use lora instead")
    said = [_said(block) for block in blocks]
    seen: dict[int, torch.Size] = {}

    def look(block: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        seen[id(block)] = first.shape

    hooks = [block.register_forward_hook(look) for block in blocks]
    try:
        backbone.features(example(backbone))
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for block, width in zip(blocks, said, strict=True):
        shape = seen.get(id(block))
        # The last axis of tokens is their width; of a map either axis may be, and the layers tell.
        found.append(shape[-1] if shape is not None and len(shape) == 3 else width)
    if None in found:
        odd = type(blocks[found.index(None)]).__name__
        raise MethodError(f"cannot tell the width of a block of type {odd}; use lora instead")
    return found  # type: ignore[return-value]


def _said(block: nn.Module) -> int | None:
    """The width of a block's last layer, in the order in which layers were registered."""
    width: int | None = None
    for module in block.modules():
        if isinstance(module, Bottleneck):
            continue
        if isinstance(module, nn.Linear):
            width = module.out_features
        elif isinstance(module, nn.Conv2d):
            width = module.out_channels
        elif "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), Tensor):
            width = len(module.weight)  # type: ignore[arg-type]
    return width
