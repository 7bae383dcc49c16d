"""Attention heads and inner neurons or channels of a backbone's blocks: where they are, and how they are cut out.

A structure is what stands between layers that make it and one layer that takes it. Nothing else reads it, so that it
can lose members without a change of the block's own input and output. Layers are found by the names that libraries
give them; whether a find is one is proven by a trial (`removable`), never believed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart import products
from headstart.methods._example import random_example

HEADS = "heads"
NEURONS = "neurons"
TOLERANCE = 1e-4
"""Largest relative change of the outputs between the masked network and the cut one: above float noise."""

CHILD = "headstart_gate"
"""The name under which a layer holds the gate on its input while the network learns."""

ATTENTION = (
    (("self.query", "self.key", "self.value"), "output.dense"),  # BERT, RoBERTa, ELECTRA
    (("query", "key", "value"), "dense"),  # ALBERT
    (("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
    (("q_proj", "k_proj", "v_proj"), "o_proj"),  # ViT and DeiT of transformers
    (("q_proj", "k_proj", "v_proj"), "out_proj"),  # CLIP, SigLIP, Whisper, Wav2Vec2
    (("qkv",), "proj"),  # timm
)
"""Layers of an attention module: those that make the heads, and the one that takes them."""

HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
HEAD_WIDTHS = ("all_head_size", "attn_dim")
"""Attributes of attention modules that must follow the cut."""

INNER = (
    (("intermediate.dense",), "output.dense"),  # BERT, RoBERTa, ELECTRA, MPNet
    (("lin1",), "lin2"),  # DistilBERT
    (("intermediate_dense",), "output_dense"),  # Wav2Vec2, HuBERT, WavLM
    (("ffn",), "ffn_output"),  # ALBERT
    (("fc1",), "fc2"),  # ViT of transformers, timm
    (("pwconv1",), "pwconv2"),  # ConvNeXt of transformers
    (("conv_pw", "bn1", "conv_dw", "bn2", "se"), "conv_pwl"),  # inverted residual of timm
    (("conv_exp", "bn1", "se"), "conv_pwl"),  # its form with one full convolution
    (("conv1", "bn1"), "conv2"),  # ResNet of timm
    (("conv2", "bn2"), "conv3"),
)
"""Layers that make or carry inner neurons or channels, in order, and the one that takes them."""


@dataclass
class Structure:
    """`number` members of `size` channels each, made by `rows` and taken by `columns`.

    path: of the layer that takes them, inside the backbone. gated: the layer before which members are masked. holders:
    modules that keep the number or the width of their heads as an attribute.
    """

    path: str
    kind: str
    number: int
    size: int
    rows: list[nn.Module]
    columns: list[nn.Module]
    gated: nn.Module
    holders: list[nn.Module]

    @property
    def gate(self) -> Gate:
        """The gate that `insert` has put there."""
        found: Gate = getattr(self.gated, CHILD)
        return found

    def insert(self) -> None:
        """Put an open gate before the layer that takes the structure."""
        near = next(self.columns[0].parameters())
        maps = isinstance(self.columns[0], nn.Conv2d)
        self.gated.add_module(CHILD, Gate(self.number, self.size, maps).to(near.device))
        self.gated.register_forward_pre_hook(_through)

    def remove(self) -> None:
        """Take the gate away."""
        delattr(self.gated, CHILD)
        hooks = self.gated._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is _through]:
            del hooks[key]

    def magnitudes(self) -> Tensor:
        """The Euclidean length of each member's weights, (number,)."""
        weights = [_weight(layer) for layer in self.rows] + [_weight(layer).transpose(0, 1) for layer in self.columns]
        total = torch.zeros(self.number, device=weights[0].device)
        for weight in weights:
            if weight.ndim > 1:  # the scales of a norm are no connections
                squares = weight.detach().float().flatten(1).square().sum(1)
                total += squares.reshape(-1, self.number, self.size).sum((0, 2))
        return total.sqrt()

    def cut(self, kept: Sequence[int]) -> None:
        """Keep these members and take the others out of every layer."""
        device = _weight(self.columns[0]).device
        members = torch.tensor(kept, device=device)
        index = (members[:, None] * self.size + torch.arange(self.size, device=device)).flatten()
        width = self.number * self.size
        for layer in self.rows:
            # Queries, keys and values may be stacked in one layer.
            stacked = len(_weight(layer)) // width
            _keep_rows(layer, torch.cat([index + part * width for part in range(stacked)]))
        for layer in self.columns:
            _keep_columns(layer, index)
        for holder in self.holders:
            for names, value in ((HEAD_COUNTS, len(kept)), (HEAD_WIDTHS, len(index))):
                for name in names:
                    if isinstance(getattr(holder, name, None), int):
                        setattr(holder, name, value)
        self.number = len(kept)


class Gate(nn.Module):
    """Masks members of a structure, and learns how much the loss would change with each of them.

    score: importance, (number,). mask: 1 for the members that take part in training. goal: 1 for those that would stay
    if the run ended now; they answer alone in every pass without gradients, so that what is validated is what a cut
    would leave. pull: the gradient to the mask since it was last cleared.
    """

    score: Tensor
    mask: Tensor
    goal: Tensor
    pull: Tensor

    def __init__(self, number: int, size: int, maps: bool) -> None:
        super().__init__()
        self.register_buffer("score", torch.zeros(number))
        self.register_buffer("mask", torch.ones(number))
        self.register_buffer("goal", torch.ones(number))
        self.register_buffer("pull", torch.zeros(number), persistent=False)
        self.size = size
        self.maps = maps

    def forward(self, hidden: Tensor) -> Tensor:
        """(N,T,V) or (N,V,H,W) with the channels of masked members at zero."""
        if not torch.is_grad_enabled():
            return hidden * self._wide(self.goal, hidden)
        mask = self.mask.clone().requires_grad_()
        mask.register_hook(self._pulled)
        return hidden * self._wide(mask, hidden)

    def _wide(self, mask: Tensor, hidden: Tensor) -> Tensor:
        wide = mask.repeat_interleave(self.size).to(hidden.dtype)
        return wide[:, None, None] if self.maps else wide

    def _pulled(self, gradient: Tensor) -> None:
        self.pull += gradient


def _through(layer: nn.Module, inputs: Any) -> Any:
    """Forward pre-hook: the layer's input through its gate."""
    gate: Any = getattr(layer, CHILD)
    return (gate(inputs[0]), *inputs[1:])


def find(backbone: Any) -> list[Structure]:
    """Every structure that the blocks' layers are named like, in the order of the blocks."""
    inside = {id(module) for block in backbone.blocks for module in block.modules()}
    found: list[Structure] = []
    for path, module in backbone.named_modules():
        if id(module) in inside:
            found += [*_attention(path, module), *_inner(path, module)]
    return found


def _attention(path: str, module: nn.Module) -> Iterator[Structure]:
    for makers, taker in ATTENTION:
        rows, column = [_layer(module, name) for name in makers], _layer(module, taker)
        holders = [module, *(child for name, child in module.named_children() if name == "self")]
        heads = next((getattr(h, name) for h in holders for name in HEAD_COUNTS if hasattr(h, name)), 0)
        if not all(type(layer) in products.KINDS for layer in (*rows, column)) or not heads:
            continue
        width = column.in_features
        if sum(layer.out_features for layer in rows) == 3 * width and width % heads == 0:
            yield Structure(f"{path}.{taker}", HEADS, heads, width // heads, rows, [column], column, holders)


def _inner(path: str, module: nn.Module) -> Iterator[Structure]:
    for makers, taker in INNER:
        layers, column = [_layer(module, name) for name in makers], _layer(module, taker)
        first = layers[0]
        if type(first) in products.KINDS and type(column) in products.KINDS:
            width = first.out_features
        # A pair of convolutions alone is the inside of a squeeze, which is small already.
        elif len(layers) > 1 and _full(first) and _full(column):
            width = first.out_channels
        else:
            continue
        rows, columns, gated = [first], [column], column
        for layer in layers[1:]:
            if isinstance(layer, nn.Conv2d | nn.modules.batchnorm._BatchNorm):
                rows.append(layer)
            elif _layer(layer, "conv_reduce") is not None:
                # A squeeze reads all channels at once, so members are masked before it.
                gated = layer
                columns.append(layer.conv_reduce)
                rows.append(layer.conv_expand)
        if all(len(_weight(layer)) == width for layer in rows) and _weight(column).shape[1] == width:
            yield Structure(f"{path}.{taker}", NEURONS, width, 1, rows, columns, gated, [])


def _full(layer: Any) -> bool:
    """Whether a layer is a convolution in which every channel sees every other."""
    return isinstance(layer, nn.Conv2d) and layer.groups == 1


def _layer(module: Any, path: str) -> Any:
    """The layer at a path below a module, None when there is none."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return weight


def _keep_rows(layer: Any, index: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(layer, name, 0, index)
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = len(index)
        if layer.groups > 1:
            layer.in_channels = layer.groups = len(index)
    elif isinstance(layer, nn.Linear):
        layer.out_features = len(index)
    else:
        layer.num_features = len(index)


def _keep_columns(layer: Any, index: Tensor) -> None:
    _select(layer, "weight", 1, index)
    if isinstance(layer, nn.Conv2d):
        layer.in_channels = len(index)
    else:
        layer.in_features = len(index)


def _select(layer: nn.Module, name: str, axis: int, index: Tensor) -> None:
    value = getattr(layer, name, None)
    if value is None:
        return
    chosen = value.detach().index_select(axis, index)
    if value.ndim == 4 and not value.is_contiguous():
        chosen = chosen.contiguous(memory_format=torch.channels_last)
    if isinstance(value, nn.Parameter):
        chosen = nn.Parameter(chosen, requires_grad=value.requires_grad)
    setattr(layer, name, chosen)


def removable(backbone: Any, structures: Sequence[Structure], generator: torch.Generator) -> bool:
    """Whether masking every other member of these structures and cutting them out of a copy answer alike."""
    trial = copy.deepcopy(backbone).eval()
    paths = {structure.path for structure in structures}
    twins = [structure for structure in find(trial) if structure.path in paths]
    row = random_example(backbone, generator)
    try:
        for twin in twins:
            twin.insert()
            twin.gate.goal[1::2] = 0
        return bool(twins) and cut(trial, twins, row) <= TOLERANCE
    except (RuntimeError, ValueError, TypeError, AttributeError):  # foreign code that counts on the old shapes
        return False


def cut(backbone: Any, structures: Sequence[Structure], row: Any) -> float:
    """Cut every structure as its gate's goal says and drop the gates; the relative change of the features of a row."""
    with torch.no_grad():
        before = _answers(backbone, row)
        for structure in structures:
            kept = structure.gate.goal.nonzero().flatten().tolist()
            structure.remove()
            structure.cut(kept)
        return float((_answers(backbone, row) - before).norm() / before.norm().clamp_min(1e-12))


def _answers(backbone: Any, row: Any) -> Tensor:
    features = backbone.features(row)
    rest = [value for value in (features.tokens, features.map) if value is not None]
    return torch.cat([value.float().flatten() for value in (features.pooled, *rest)])
