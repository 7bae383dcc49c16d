"""Pictures: decoded once, kept small in a memory-mapped file, given out as pixels in [0, 1]."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from headstart.errors import DataError
from headstart.modalities._pictures import decode, fit, look, name_of, open_picture
from headstart.modalities._scratch import Grid, free_space
from headstart.protocols import Backbone, Modality, Prepared

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT_BYTES = 8 * 2**30
"""Decoded pictures kept on disk, at most; and never more than half of what is free there."""

PROBE_PIXELS = 256
"""Longest side of a picture that a bundle keeps to prove itself with."""


def open_image(value: Any, row: int = 0) -> Image:
    """A picture as upright RGB, transparency on white. Raises DataError naming the row and path."""
    return decode(value, row)


class ImageModality(Modality):
    """Pictures as paths, bytes, PIL images, uint8 arrays (H,W[,C]), or mappings with `bytes` or `path`."""

    name: ClassVar[str] = "image"
    continuous: ClassVar[bool] = True
    probe_suffix: ClassVar[str] = ".png"

    def prepare(self, values: Sequence[Any], backbone: Backbone) -> PreparedImages:
        """Read the header of every picture. Raises DataError naming the row and path of one that cannot be read.

        Pixels are decoded when they are first asked for; damage inside them is found then, with the same error.
        """
        if backbone.modality != self.name:
            raise DataError(f"the rows are pictures, and the backbone '{backbone.ref}' reads {backbone.modality}")
        return PreparedImages(values, backbone)

    def summary(self, values: Sequence[Any]) -> dict[str, np.ndarray]:
        """`width`, `height` (pixels, upright), `brightness`, `contrast` (mean and deviation of grey in [0, 1])."""
        seen = [look(value, row) for row, value in enumerate(values)]
        columns = list(zip(*seen, strict=True)) if seen else [(), (), (), ()]
        kinds = {"width": np.int64, "height": np.int64, "brightness": np.float64, "contrast": np.float64}
        return {name: np.array(column, dtype=kinds[name]) for name, column in zip(kinds, columns, strict=True)}

    def probe(self, value: Any) -> bytes:
        """The picture as a small PNG."""
        picture = decode(value, 0)
        picture.thumbnail((PROBE_PIXELS, PROBE_PIXELS))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()


class PreparedImages(Prepared):
    """Rows of pictures, each decoded and brought to the backbone's size once.

    lengths: (rows,) int32, all 1. limit: bytes of decoded pictures kept; rows beyond it are decoded each time.
    """

    def __init__(self, values: Sequence[Any], backbone: Backbone, limit: int = KEPT_BYTES) -> None:
        """Read the headers of `values`; see `ImageModality.prepare`."""
        self._values = values
        self._settings = dict(backbone.preprocessing)
        for row in range(len(values)):
            value = values[row]
            picture = open_picture(value, row)
            if picture is not value:
                picture.close()
        self.lengths = np.ones(len(values), dtype=np.int32)
        self.size = int(self._settings["image_size"])
        piece = self.size * self.size * 3
        room = min(len(values), max(0, min(limit, free_space() // 2)) // piece)
        self._kept = Grid(room, (self.size, self.size, 3)) if room else None

    def __len__(self) -> int:
        """Rows."""
        return len(self.lengths)

    def pixels(self, row: int) -> np.ndarray:
        """(H,W,3) uint8 of one row at the backbone's size. Raises DataError naming the row and path."""
        kept = self._kept
        if kept is not None and row < len(kept.filled) and kept.filled[row]:
            found: np.ndarray = kept.pieces[row]
            return found
        value = self._values[row]
        try:
            piece = fit(decode(value, row), self._settings)
        except (MemoryError, ValueError) as error:
            raise DataError(f"{name_of(value, row)}: cannot be resized to {self.size} pixels: {error}") from None
        if kept is not None and row < len(kept.filled):
            kept.put(row, piece)
        return piece

    def take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`pixels` (N,3,H,W) float32 in [0, 1], not normalised: the backbone does that."""
        stacked = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            stacked[place] = self.pixels(int(row))
        pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2)  # (N,H,W,3) -> (N,3,H,W)
        return {"pixels": pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)}
