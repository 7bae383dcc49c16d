"""Bottleneck adapters behind every block, or beside every feed-forward part."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods import _structures
from headstart.methods._checks import choice, flag, number, whole
from headstart.methods._example import example
from headstart.protocols import Context, Method
from headstart.values import Group

CHILD = "headstart_adapter"
"""The name under which a block holds its adapter; all other names stay as they are."""

_passing = threading.local()
"""What the running feed-forward part of each thread took in."""


@dataclass
class Adapter(Method):
    """Trains a small bottleneck behind each block of a frozen backbone.

    Equation: h <- h + U f(D h + b) + c, with D (w,V) random, U (V,w) and both biases zero at the start, so that the
    network answers as before; f is the activation. With `parallel`, beside the feed-forward part instead: FFN(x) <-
    FFN(x) + scale * (U f(D x + b) + c), x being what the part takes in.

    Source: Houlsby et al. 2019, section 2.1; one adapter a block, after its feed-forward part, is Pfeiffer et al.
    2021 (AdapterFusion), appendix A.1. For feature maps the same map is applied at every place, a 1x1 convolution as
    in Rebuffi et al. 2018. `parallel`: the scaled parallel adapter of He et al. 2022 (Towards a Unified View of
    Parameter-Efficient Transfer Learning), section 3.3.

    Requires: nothing; `parallel` feed-forward parts that are known by their layers' names (BERT and its kin, ViT, and
    inverted residuals without a stride). Owns `groups`, so it excludes `freeze`, `lora`, `ia3`, `prompt` and
    `surgical`. Claims every block.

    Shapes: hidden states (N,T,V) or maps (N,V,H,W) -> the same, V being each block's own width.

    Neighbours: `lora` changes existing layers and can be merged away; an adapter stays in the finished model and
    costs a little at every use. A backbone that holds adapters of this kind already goes on with those. A parallel one
    is added before the dropout that a network has behind the part.

    Example: `--method adapter:reduction=16` or `--method adapter:parallel=true,scale=4`;
    `hs.methods.Adapter(width=64)`.

    Defaults: reduction = 16, relu and the place behind the block are those of Pfeiffer et al. The rate used when the
    user gives none is 3e-4 for text, the middle of the three that Houlsby et al. search (section 3), and 1e-3
    otherwise, where the backbone as a whole learns faster too. scale = 4 with `parallel` is He et al.'s, else 1.

    reduction: w = V // reduction, at least 1. width: w itself, the same for all blocks. activation: relu or gelu.
    parallel: beside the feed-forward part, not behind the block. scale: what is added counts this many times.
    """

    reduction: int = 16
    width: int | None = None
    activation: str = "relu"
    parallel: bool = False
    scale: float | None = None

    def __post_init__(self) -> None:
        whole("adapter:reduction", self.reduction, 1, "such as reduction=16")
        if self.width is not None:
            whole("adapter:width", self.width, 1, "such as width=64")
        choice("adapter:activation", self.activation, ("relu", "gelu"))
        flag("adapter:parallel", self.parallel)
        if self.scale is not None:
            number("adapter:scale", self.scale, 0, "such as scale=4", above=True)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Put the adapters in. Raises MethodError for a backbone that cannot take them."""
        backbone: Any = model.backbone
        for block in backbone.blocks:
            ctx.claim(block)
        with ctx.quiet(model), torch.no_grad():
            if self.parallel:
                self._beside(backbone, ctx.generator)
            else:
                self._behind(backbone, ctx.generator)
        return model

    def _behind(self, backbone: Any, generator: torch.Generator) -> None:
        last = "NHWC" in str(getattr(getattr(backbone, "network", None), "output_fmt", ""))
        widths = _widths(backbone)
        for block, wide in zip(backbone.blocks, widths, strict=True):
            if not self._held(block, wide):
                self._insert(block, Bottleneck(wide, wide, *self._shape(wide), last, generator))
                # A Sequential runs its children in order, so there the adapter is in place already.
                if not isinstance(block, nn.Sequential):
                    block.register_forward_hook(_after)

    def _beside(self, backbone: Any, generator: torch.Generator) -> None:
        for maker, taker, holder in _parts(backbone):
            wide, out = _weight(maker).shape[1], _weight(taker).shape[0]
            if not self._held(holder, wide):
                bottleneck = Parallel(wide, out, *self._shape(wide), isinstance(maker, nn.Linear), generator)
                self._insert(holder, bottleneck)
                # Bound methods: a copy of the layers copies them with the adapter they belong to.
                maker.register_forward_pre_hook(bottleneck.look)
                taker.register_forward_hook(bottleneck.add)

    def _shape(self, wide: int) -> tuple[int, str, float]:
        """Inner width, activation and scale of an adapter on this many channels."""
        narrow = self.width if self.width is not None else max(1, wide // self.reduction)
        scale = (4.0 if self.parallel else 1.0) if self.scale is None else float(self.scale)
        return narrow, self.activation, scale

    def _held(self, module: nn.Module, wide: int) -> bool:
        """Whether the adapter is there already. Raises MethodError where it is another one."""
        held = [child for child in module.modules() if isinstance(child, Bottleneck)]
        for there in held:
            found = (there.down.shape[0], there.activation, there.scale)
            if found != self._shape(wide) or isinstance(there, Parallel) is not self.parallel:
                raise MethodError(
                    f"this backbone holds adapters of width {found[0]} with {found[1]} already "
                    f"(parallel={str(isinstance(there, Parallel)).lower()}, scale={found[2]:g}), received width "
                    f"{self._shape(wide)[0]} with {self.activation} (parallel={str(self.parallel).lower()}, "
                    f"scale={self._shape(wide)[2]:g}): give the same options, or another backbone"
                )
        return bool(held)

    def _insert(self, holder: nn.Module, bottleneck: Bottleneck) -> None:
        near = next(holder.parameters())
        holder.add_module(CHILD, bottleneck.to(near.device, near.dtype))

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
    """h + scale * (U f(D h + b) + c) on the channels of (N,T,V), (N,V), (N,V,H,W) or, with `last`, (N,H,W,V).

    Its weights are bare parameters rather than Linear layers, so that no other method takes them for the backbone's.
    """

    def __init__(
        self, wide: int, out: int, narrow: int, activation: str, scale: float, last: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        # The scale of LoRA's first factor: outputs of unit size for inputs of unit size.
        drawn = torch.randn((narrow, wide), generator=generator, device=generator.device).cpu()
        self.down = nn.Parameter(drawn / wide**0.5)
        self.down_bias = nn.Parameter(torch.zeros(narrow))
        self.up = nn.Parameter(torch.zeros(out, narrow))
        self.up_bias = nn.Parameter(torch.zeros(out))
        self.activation = activation
        self.scale = scale
        self.last = last

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden states with the bottleneck's answer added; same shape."""
        return hidden + self.change(hidden)

    def change(self, hidden: Tensor) -> Tensor:
        """What is added. Raises MethodError for hidden states of another width."""
        wide = self.down.shape[1]
        act = F.gelu if self.activation == "gelu" else F.relu
        if hidden.ndim == 4 and not self.last and hidden.shape[1] == wide:
            inner = act(F.conv2d(hidden, self.down[:, :, None, None], self.down_bias))
            return self.scale * F.conv2d(inner, self.up[:, :, None, None], self.up_bias)
        if hidden.shape[-1] != wide:
            raise MethodError(
                f"expected a block to answer with {wide} channels, received shape {tuple(hidden.shape)}; "
                f"this backbone cannot take adapters, use lora"
            )
        return self.scale * F.linear(act(F.linear(hidden, self.down, self.down_bias)), self.up, self.up_bias)


class Parallel(Bottleneck):
    """A bottleneck from what a part's first layer takes in to what its last layer gives out."""

    def forward(self, hidden: Tensor) -> Tensor:
        """The same: whoever runs its children in order passes through here."""
        return hidden

    def look(self, maker: nn.Module, inputs: Any) -> None:
        """Pre-hook of the first layer."""
        _passing.taken = inputs[0]

    def add(self, taker: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Hook of the last layer. Run alone, as when a method looks at it, the layer answers as before."""
        taken, _passing.taken = getattr(_passing, "taken", None), None
        return output if taken is None else output + self.change(taken)


def _after(block: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook of a block: its answer, or the first of its answers, through the adapter."""
    bottleneck: Any = getattr(block, CHILD)
    if isinstance(output, tuple):
        return (bottleneck(output[0]), *output[1:])
    return bottleneck(output)


def _bottlenecks(model: nn.Module) -> Iterator[Bottleneck]:
    return (module for module in model.modules() if isinstance(module, Bottleneck))


def _parts(backbone: Any) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
    """First layer, last layer and the first one's parent, of every part that has an answer for each place it takes in.

    Raises MethodError when there is none.
    """
    paths = {id(module): path for path, module in backbone.named_modules()}
    found = []
    for structure in _structures.find(backbone):
        if structure.kind == _structures.NEURONS:
            maker = structure.rows[0]
            parent = paths[id(maker)].rpartition(".")[0]
            found.append((maker, backbone.get_submodule(structure.path), backbone.get_submodule(parent)))
    seen: dict[int, torch.Size] = {}

    def look(layer: nn.Module, inputs: Any, output: Any = None) -> None:
        seen[id(layer)] = (inputs[0] if output is None else output).shape

    hooks = [maker.register_forward_pre_hook(look) for maker, _, _ in found]
    hooks += [taker.register_forward_hook(look) for _, taker, _ in found]
    try:
        backbone.features(example(backbone))
    finally:
        for hook in hooks:
            hook.remove()
    fit = [part for part in found if _places(part[0], seen) == _places(part[1], seen) is not None]
    if not fit:
        raise MethodError(
            "'adapter' found no feed-forward part by its layers' names in this backbone to stand beside; "
            "leave parallel out, or use lora"
        )
    return fit


def _places(layer: nn.Module, seen: dict[int, torch.Size]) -> tuple[int, ...] | None:
    """The shape without channels of what a layer took in or gave out; None for one that was not run."""
    shape = seen.get(id(layer))
    if shape is None:
        return None
    return tuple(shape[2:] if isinstance(layer, nn.Conv2d) else shape[:-1])


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return weight


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
