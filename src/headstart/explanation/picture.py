"""A heat map over the picture that it is about."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from headstart.explanation.attribution import Explanation

FOR, AGAINST = (214, 69, 65), (36, 89, 211)
"""Colours of what speaks for the label and against it: red and blue, which colour-blind people tell apart."""

SHOWN = 320
"""Pixels of the shorter side at least: a small picture is enlarged."""

STRONGEST = 0.75
"""How much of the colour covers the picture at the largest weight."""


def png(picture: np.ndarray) -> bytes:
    """The bytes of a PNG of (H,W,3) uint8."""
    from PIL import Image as pil

    sink = io.BytesIO()
    pil.fromarray(picture).save(sink, "PNG")
    return sink.getvalue()


def blurred(pixels: np.ndarray, share: float) -> Tensor:
    """(1,C,H,W) float32 of a picture (H,W,C) in [0, 1] under a Gaussian blur of this share of its longer side."""
    import torch
    from PIL import Image as pil
    from PIL import ImageFilter

    picture = pil.fromarray(np.rint(255 * pixels).astype(np.uint8))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(share * max(pixels.shape[:2]))), dtype=np.float32)
    return torch.from_numpy(soft / 255).permute(2, 0, 1)[None]


def overlay(found: Explanation) -> Image:
    """The picture in grey, red where it speaks for the label and blue where against. Needs `picture` and `heat`."""
    from PIL import Image as pil

    assert found.picture is not None and found.heat is not None
    scale = -(-SHOWN // min(found.picture.shape[:2])) if min(found.picture.shape[:2]) < SHOWN else 1
    size = (found.picture.shape[1] * scale, found.picture.shape[0] * scale)
    grey = pil.fromarray(found.picture).convert("L").convert("RGB").resize(size, pil.Resampling.BICUBIC)
    top = float(np.abs(found.heat).max()) or 1.0
    smooth = pil.fromarray((found.heat / top).astype(np.float32)).resize(size, pil.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), -1, 1)[..., None]
    colour = np.where(heat > 0, np.array(FOR), np.array(AGAINST))
    share = STRONGEST * np.abs(heat)
    return pil.fromarray(np.rint((1 - share) * np.asarray(grey) + share * colour).astype(np.uint8))
