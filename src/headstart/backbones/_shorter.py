"""A finished model's backbone with some of its blocks, whatever was cut out of them before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headstart.backbones import _layers
from headstart.backbones._structure import largest_list


def shorten(backbone: Any, layers: int | Sequence[int]) -> dict[str, str]:
    """Keep some blocks, in place, as `backbone.layers` does; each module that is left: its path before -> after.

    Raises BackboneError for a network that cannot be shortened.
    """
    before = {id(module): path for path, module in backbone.named_modules()}
    network, record = backbone.network, backbone.describe()
    if record["family"] == "timm":
        from headstart.backbones._timm_net import block_paths

        kept = _layers.cut_timm(network, layers, backbone.ref)
        backbone.options = {**backbone.options, "depth": len(kept)}
        paths: Sequence[str] = block_paths(network)
    else:
        from headstart.backbones._hf import make

        pooler, trusted = bool(record.get("pooler")), bool(record.get("remote_code"))
        kept = _layers.cut_hf(network, layers, lambda config: make(config, pooler, trusted), backbone.ref)
        paths = largest_list(network)
    backbone.wire(paths)
    backbone.source = {**backbone.source, "layers": kept}
    return {before[id(module)]: path for path, module in backbone.named_modules() if id(module) in before}
