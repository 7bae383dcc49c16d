"""A folder of weights, whichever library wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.backbones._sentence import read_json
from headstart.backbones._structure import NetworkBackbone, model_license
from headstart.errors import BackboneError
from headstart.spec import BackboneSpec


def load(
    folder: Path, spec: BackboneSpec, modality: str, source: Mapping[str, Any], seed: int, ref: str
) -> NetworkBackbone:
    """The network of a folder in the layout of the Hugging Face hub, as transformers or timm writes it."""
    if is_timm(folder):
        from headstart.backbones import _timm_net

        if modality != "image":
            raise BackboneError(f"'{ref}' is a timm network, which reads image, and the rows are {modality}")
        card = {"license": model_license(folder)}
        return _timm_net.load_folder(folder, spec, {**card, **source}, seed, ref)
    from headstart.backbones import _hf

    return _hf.load_folder(folder, spec, modality, source, seed, ref)


def is_timm(folder: Path) -> bool:
    """Whether the config.json is one that timm wrote."""
    if not (folder / "config.json").is_file():
        return False
    config = read_json(folder / "config.json")
    return isinstance(config, dict) and "architecture" in config and "model_type" not in config
