"""Weak and strong views of rows, for methods that ask two views to agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.errors import MissingExtra
from headstart.methods._draws import numpy_from, seeded, uniform
from headstart.methods._eda import Vocabulary, edit, vocabulary
from headstart.protocols import Context
from headstart.values import Batch

SHIFT = 0.125
"""Largest shift of a weak view, as a share of the side: Sohn et al. 2020, section 2.3."""

CUTOUT = 0.5
"""Side of the square that a strong view loses, as a share of the picture's (Sohn et al. 2020, section 2.3, follow
RandAugment by Cutout)."""

NEIGHBOURS = 5


@dataclass
class Views:
    """Makes both views of a batch of texts or pictures.

    operations, magnitude: RandAugment's, for pictures. rate: EDA's share of edited tokens, for texts.
    """

    kind: str
    operations: int
    magnitude: int
    rate: float
    words: Vocabulary | None = None

    @classmethod
    def of(cls, model: nn.Module, ctx: Context, operations: int, magnitude: int, rate: float, name: str) -> Views:
        """For this model. Raises MissingExtra for pictures without torchvision."""
        made = cls(ctx.modality.name, operations, magnitude, rate)
        if made.kind == "text":
            backbone: Any = model.backbone
            weight = backbone.network.get_input_embeddings().weight
            # Of the table before training, so that a resumed run finds the same neighbours.
            start = ctx.start.get(weight)
            made.words = vocabulary(backbone, weight.detach().clone() if start is None else start, NEIGHBOURS)
        else:
            try:
                import torchvision  # noqa: F401
            except ImportError:
                raise MissingExtra("torchvision", "images", f"the method '{name}' on pictures") from None
        return made

    def weak(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Pictures flipped with probability 1/2 and shifted by up to SHIFT; texts as they are."""
        if self.kind == "text":
            return batch
        pixels = batch.inputs["pixels"]
        flip = uniform((len(pixels),), generator) < 0.5
        turned = torch.where(flip.to(pixels.device)[:, None, None, None], pixels.flip(-1), pixels)
        return batch.replace(inputs={**batch.inputs, "pixels": _shift(turned, generator)})

    def strong(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Weak views of pictures put through RandAugment and Cutout; texts with one of EDA's edits each."""
        if self.words is not None:
            rates = dict.fromkeys(("drop", "delete", "swap", "insert", "synonym"), self.rate)
            return batch.replace(inputs=edit(dict(batch.inputs), self.words, rates, 1.0, numpy_from(generator)))
        from torchvision.transforms import v2

        pixels = self.weak(batch, generator).inputs["pixels"]
        if self.operations:
            change = v2.RandAugment(self.operations, self.magnitude)
            # torchvision draws from torch's global generator: it is seeded here and put back afterwards.
            with seeded(generator):
                pixels = torch.stack([change(picture) for picture in pixels]).clamp(0, 1)
        return batch.replace(inputs={**batch.inputs, "pixels": _cutout(pixels, generator)})


def _shift(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(N,C,H,W) moved by whole pixels, mirrored at the edge."""
    height, width = pixels.shape[-2:]
    down, across = max(1, round(SHIFT * height)), max(1, round(SHIFT * width))
    wide = functional.pad(pixels, (across, across, down, down), mode="reflect")
    tops = torch.randint(2 * down + 1, (len(pixels),), generator=generator).tolist()
    lefts = torch.randint(2 * across + 1, (len(pixels),), generator=generator).tolist()
    cut = [row[:, t : t + height, x : x + width] for row, t, x in zip(wide, tops, lefts, strict=True)]
    return torch.stack(cut)


def _cutout(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(N,C,H,W), each with one grey square whose centre lies anywhere (DeVries and Taylor 2017)."""
    height, width = pixels.shape[-2:]
    centres = uniform((len(pixels), 2), generator)
    rows = (torch.arange(height) + 0.5)[None] - centres[:, :1] * height
    columns = (torch.arange(width) + 0.5)[None] - centres[:, 1:] * width
    gone = (rows.abs() < CUTOUT * height / 2)[:, :, None] & (columns.abs() < CUTOUT * width / 2)[:, None, :]
    return pixels.masked_fill(gone[:, None].to(pixels.device), 0.5)
