"""Vision networks of the transformers library behind the backbone's face."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones._files import silence
from headstart.backbones._picture import INTERPOLATIONS, PictureBackbone, picture_settings
from headstart.backbones._pooling import Pool
from headstart.backbones._sentence import read_json
from headstart.errors import BackboneError
from headstart.spec import BackboneSpec
from headstart.values import Batch, Features


class HFImageBackbone(PictureBackbone):
    """A vision transformer (tokens) or a convolutional network (map) of the transformers library.

    mode: 'model' for the network's own pooler, or 'cls', 'mean' (over the patches), 'attention'.
    """

    def __init__(self, network: nn.Module, ref: str, mode: str, pooler: bool, preprocessing: Mapping[str, Any]) -> None:
        super().__init__(network, ref, preprocessing)
        self.mode = mode
        self.pooler = pooler
        config: Any = network.config
        self._patch = _single(getattr(config, "patch_size", None))
        trained = _single(getattr(config, "image_size", None))
        resizes = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
        other = trained is not None and trained != self.preprocessing["image_size"]
        self._options = {"interpolate_pos_encoding": True} if resizes and other else {}
        self.pool: Pool | None = None
        if mode != "model":
            hidden = getattr(config, "hidden_sizes", None) or [config.hidden_size]
            self.pool = Pool((mode,), int(hidden[-1]))

    def features(self, batch: Batch) -> Features:
        """pooled (N,D) with tokens (N,T,D) and their mask, or with a map (N,C,H,W)."""
        pixels = self.normalised(batch)
        out = self.network(pixel_values=pixels, **self._options)
        hidden: Tensor = out.last_hidden_state
        if hidden.ndim == 4:
            tokens, lead = hidden.flatten(2).transpose(1, 2), 0  # (N,C,H,W) -> (N,H*W,C)
        else:
            tokens, lead = hidden, self._lead(pixels, hidden)
        if self.pool is None:
            if getattr(out, "pooler_output", None) is None:
                raise BackboneError(f"'{self.ref}' has no pooling of its own: set backbone.pooling to 'mean'")
            pooled = out.pooler_output.flatten(1)
        else:
            if self.mode == "cls" and lead == 0:
                raise BackboneError(f"'{self.ref}' has no class token: expected pooling 'mean' or 'attention'")
            mask = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
            if self.mode == "mean":
                mask[:, :lead] = 0
            pooled = self.pool(tokens, mask)
        if hidden.ndim == 4:
            return Features(pooled=pooled, map=hidden)
        return Features(pooled, hidden, torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device))

    def _lead(self, pixels: Tensor, hidden: Tensor) -> int:
        """How many tokens stand before those of the patches (class token, registers)."""
        if not self._patch:
            return 0
        patches = (pixels.shape[2] // self._patch) * (pixels.shape[3] // self._patch)
        return max(0, int(hidden.shape[1]) - patches)

    def describe(self) -> dict[str, Any]:
        """Plain JSON for `backbones.rebuild`."""
        return {**super().describe(), "family": "hf", "pooling": self.mode, "pooler": self.pooler}

    def save_files(self, folder: Path) -> None:
        """Write config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        with silence():
            self.network.config.save_pretrained(folder)  # type: ignore[union-attr, operator]


def from_folder(network: nn.Module, folder: Path, spec: BackboneSpec, pooler: bool, ref: str) -> HFImageBackbone:
    """The backbone of a loaded network, with the picture settings of its folder."""
    for name, what in (("max_length", "text"), ("max_seconds", "sounds")):
        if getattr(spec, name) is not None:
            raise BackboneError(f"{name} is for {what}, and '{ref}' reads pictures: leave it out")
    config: Any = network.config
    if getattr(config, "num_channels", 3) != 3:
        raise BackboneError(f"expected a network of 3 channels, and '{ref}' has {config.num_channels}")
    settings = _settings(folder, _single(getattr(config, "image_size", None)), spec, ref)
    patch = _single(getattr(config, "patch_size", None))
    if patch and settings["image_size"] % patch:
        near = max(patch, round(settings["image_size"] / patch) * patch)
        raise BackboneError(
            f"image_size {settings['image_size']} is not a multiple of the patches of '{ref}' ({patch} pixels): "
            f"expected, for example, {near}"
        )
    dropped = not pooler and spec.pooling is None
    return HFImageBackbone(network, ref, "cls" if dropped else spec.pooling or "model", pooler, settings)


def from_record(network: nn.Module, record: Mapping[str, Any], folder: Path) -> HFImageBackbone:
    """The backbone of a record made by `describe`."""
    backbone = HFImageBackbone(
        network, str(record["ref"]), str(record["pooling"]), bool(record["pooler"]), record["preprocessing"]
    )
    backbone.remote_code = bool(record["remote_code"])
    return backbone


def _single(value: Any) -> int | None:
    """A side from an int or a pair; the network is taken to be square."""
    if isinstance(value, list | tuple):
        return int(value[0]) if value else None
    return None if value is None else int(value)


def _settings(folder: Path, trained: int | None, spec: BackboneSpec, ref: str) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        if spec.pretrained:
            raise BackboneError(
                f"'{ref}' has no preprocessor_config.json, which says how pictures are scaled and normalised "
                f"(keys size, crop_size, resample, image_mean, image_std): add the one the model was trained with"
            )
        return picture_settings(spec.image_size or trained or 224, 1.0, "center", "bilinear", [0.5] * 3, [0.5] * 3)
    record = read_json(path)
    factor = float(record.get("rescale_factor", 1 / 255)) if record.get("do_rescale", True) else 1 / 255
    if abs(factor * 255 - 1) > 1e-3 or record.get("rescale_offset", False):
        raise BackboneError(f"'{ref}' scales pixels by {factor}: expected 1/255 and no offset")
    size, crop_pct, mode = _geometry(record, trained or 224)
    plain = record.get("do_normalize", True) is False
    mean = [0.0] * 3 if plain else record.get("image_mean", [0.5] * 3)
    std = [1.0] * 3 if plain else record.get("image_std", [0.5] * 3)
    number = int(record.get("resample", 2))
    if not 0 <= number < len(INTERPOLATIONS):
        raise BackboneError(f"expected resample from 0 to {len(INTERPOLATIONS) - 1} in '{path}', received {number}")
    return picture_settings(spec.image_size or size, crop_pct, mode, INTERPOLATIONS[number], mean, std)


def _geometry(record: Mapping[str, Any], trained: int) -> tuple[int, float, str]:
    """(image size, crop_pct, crop mode) from the three ways in which processors write them."""
    if record.get("do_resize", True) is False and not record.get("do_center_crop", False):
        return trained, 1.0, "center"
    size = record.get("size", trained)
    short = size.get("shortest_edge") if isinstance(size, Mapping) else None
    side = int(short or _side(size, trained))
    if record.get("crop_pct"):  # ConvNeXt: below 384 pixels the centre is cut out, from there on it is squashed
        return (side, float(record["crop_pct"]), "center") if side < 384 else (side, 1.0, "squash")
    kind = str(record.get("image_processor_type") or record.get("feature_extractor_type") or "")
    keeps = short is not None or (isinstance(size, int) and kind.startswith(("CLIP", "Bit")))
    mode = "center" if keeps else "squash"
    if record.get("do_center_crop", keeps) and record.get("crop_size"):
        crop = _side(record["crop_size"], side)
        return crop, crop / side, mode
    return side, 1.0, mode


def _side(size: Any, otherwise: int) -> int:
    if isinstance(size, Mapping):
        return int(size.get("height") or size.get("longest_edge") or otherwise)
    if isinstance(size, list | tuple):
        return int(size[0])
    return int(size)
