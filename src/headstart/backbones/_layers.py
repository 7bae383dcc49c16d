"""A shallower network: some blocks of a pretrained one, chosen by `backbone.layers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from headstart.errors import BackboneError


def chosen(layers: int | Sequence[int], total: int, ref: str) -> list[int]:
    """The numbers of the blocks that stay, in their order.

    A number n means n blocks evenly spaced up to the last: the last of each n-th part of the network, which is the
    block whose output the part's other blocks lead to. Raises BackboneError for numbers that the network has not.
    """
    if isinstance(layers, int):
        if layers > total:
            raise BackboneError(f"backbone.layers = {layers}, and '{ref}' has {total} blocks: expected at most {total}")
        return [(part + 1) * total // layers - 1 for part in range(layers)]
    kept = list(layers)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= total:
        raise BackboneError(
            f"expected backbone.layers to be rising numbers from 0 to {total - 1}, the blocks of '{ref}', "
            f"received {kept}"
        )
    return kept


def cut_hf(network: Any, layers: int | Sequence[int], make: Callable[[Any], nn.Module], ref: str) -> list[int]:
    """Keep some blocks of a Hugging Face encoder, in place, and say so in its config; the numbers of those that stay.

    make: the network of a config with random weights; the cut network must have the tensors of the one that its
    config describes, or a saved copy could not be made again.
    Raises BackboneError for a network that is not one list of `num_hidden_layers` blocks of its own, or whose blocks
    depend on their place.
    """
    total = getattr(network.config, "num_hidden_layers", None)
    lists = [
        (path, module) for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    ]  # fmt: skip
    outer = [(path, module) for path, module in lists if not any(path.startswith(f"{other}.") for other, _ in lists)]
    if total is None or len(outer) != 1 or total < 2:
        raise BackboneError(_refusal(ref, "is not one list of blocks"))
    kept = chosen(layers, total, ref)
    path = outer[0][0]
    with torch.device("meta"):  # shapes are compared on a twin, since the network may have been pruned
        twin = make(type(network.config).from_dict(network.config.to_dict()))
    for each in (network, twin):
        owner_path, _, leaf = path.rpartition(".")
        blocks: Any = each.get_submodule(path)
        setattr(each.get_submodule(owner_path), leaf, nn.ModuleList(blocks[number] for number in kept))
    network.config.num_hidden_layers = len(kept)
    for name, value in vars(network.config).items():
        # What a config says of each block, such as the kind of its attention.
        if isinstance(value, list | tuple) and len(value) == total and name == "layer_types":
            setattr(network.config, name, [value[number] for number in kept])
    if hasattr(network.config, "stage_names"):  # a config that can also describe a network of many outputs
        network.config.stage_names = ["stem", *(f"stage{number + 1}" for number in range(len(kept)))]
        network.config.set_output_features_output_indices(out_features=None, out_indices=None)
    with torch.device("meta"):
        again = make(type(network.config).from_dict(network.config.to_dict()))
    ours, theirs = ({k: v.shape for k, v in net.state_dict().items()} for net in (twin, again))
    if ours != theirs:
        raise BackboneError(_refusal(ref, "has blocks that depend on their place"))
    return kept


def cut_timm(network: Any, layers: int | Sequence[int], ref: str) -> list[int]:
    """Keep some blocks of a vision transformer of timm, in place; the numbers of those that stay.

    Raises BackboneError for any other network.
    """
    from timm.models.vision_transformer import VisionTransformer

    if type(network) is not VisionTransformer:
        raise BackboneError(_refusal(ref, "has stages that change the size of what they pass on"))
    kept = chosen(layers, len(network.blocks), ref)
    network.blocks = nn.Sequential(*(network.blocks[number] for number in kept))
    return kept


def _refusal(ref: str, why: str) -> str:
    return (
        f"backbone.layers cannot shorten '{ref}': its network {why}. Take an encoder such as BERT, RoBERTa, "
        f"DistilBERT or ViT, or leave backbone.layers out"
    )
