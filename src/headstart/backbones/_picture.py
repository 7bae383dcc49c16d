"""What backbones of pictures share: normalisation inside, pixels in [0, 1] outside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones._structure import NetworkBackbone, unlabelled
from headstart.errors import BackboneError
from headstart.values import Batch

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""In the order of Pillow's numbers for them."""


class PictureBackbone(NetworkBackbone):
    """A backbone of pictures.

    preprocessing: `image_size` (height and width in pixels), `crop_pct` and `resize` (pixels of the shorter side
    before the centre is cut out; resize = image_size / crop_pct), `crop_mode` ('center' keeps the proportions,
    'squash' does not, 'border' fits the whole picture and fills up), `interpolation`, `mean` and `std` by channel.

    `batch.shift` (N,3,H,W) is added to the pixels before they are normalised.
    """

    modality = "image"
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, ref: str, preprocessing: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.ref = ref
        self.source: Mapping[str, Any] = {}
        self.digest = ""
        self.remote_code = False
        self.preprocessing = dict(preprocessing)
        for name in ("mean", "std"):
            values = torch.tensor(self.preprocessing[name], dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def normalised(self, batch: Batch) -> Tensor:
        """The network's input (N,3,H,W)."""
        pixels = batch.inputs["pixels"]
        if batch.shift is not None:
            pixels = pixels + batch.shift
        made: Tensor = (pixels - self.mean) / self.std
        # The type of the weights: float32, or bf16 where a run casts them.
        return made.to(next(self.network.parameters()).dtype)

    def zero_shift(self, batch: Batch) -> Tensor:
        """Zeros like the pixels, (N,3,H,W)."""
        return torch.zeros_like(batch.inputs["pixels"])

    def example(self) -> Batch:
        """One grey picture of the size that the network is used with."""
        size = int(self.preprocessing["image_size"])
        return unlabelled({"pixels": torch.full((1, 3, size, size), 0.5)})

    def describe(self) -> dict[str, Any]:
        """Plain JSON for `backbones.rebuild`."""
        return {
            "ref": self.ref,
            "source": dict(self.source),
            "digest": self.digest,
            "modality": self.modality,
            "width": self.width,
            "preprocessing": dict(self.preprocessing),
            "remote_code": self.remote_code,
        }


def picture_settings(
    image_size: int, crop_pct: float, crop_mode: str, interpolation: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """The preprocessing record of a picture backbone."""
    if interpolation not in INTERPOLATIONS:
        raise BackboneError(f"expected an interpolation among {', '.join(INTERPOLATIONS)}, received '{interpolation}'")
    if len(mean) != 3 or len(std) != 3:
        raise BackboneError(f"expected a network of 3 channels, received one of {len(mean)}")
    return {
        "image_size": image_size,
        "crop_pct": crop_pct,
        "resize": math.floor(image_size / crop_pct + 1e-6),
        "crop_mode": crop_mode,
        "interpolation": interpolation,
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }
