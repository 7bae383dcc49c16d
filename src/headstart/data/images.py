"""A look at a picture before anything is spent on it: does it open, is it whole, how large is it."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import DataError

MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused: the size at which Pillow takes a file for a decompression bomb."""

MISSING, BROKEN, HUGE, EMPTY = "image file missing", "unreadable image", "huge image", "no image"
_DECODED_BELOW = 1 << 16
"""Files of fewer bytes are decoded in full: cheap, and their end may be a thumbnail's."""


@dataclass(frozen=True)
class Look:
    """What a picture is. size: its pixels; problem: why it cannot be used, with detail; digest: sha256 of the file."""

    digest: bytes = bytes(32)
    size: int = 0
    problem: str | None = None
    detail: str = ""


def look(value: Any, base: Path) -> Look:
    """Open a picture given as path (relative to `base`) or bytes and check that it is whole."""
    if value is None or value == "" or value == b"":
        return Look(problem=EMPTY)
    name = "a picture"
    if isinstance(value, str):
        name = f"'{value}'"
        try:
            value = (base / value).read_bytes()
        except FileNotFoundError:
            return Look(problem=MISSING, detail=f"there is no {name} in '{base}'")
        except OSError as error:
            return Look(problem=BROKEN, detail=f"{name}: {error.strerror or error}")
    digest = hashlib.sha256(value).digest()
    try:
        width, height = _check(value)
    except _HugeError as error:
        return Look(digest, problem=HUGE, detail=f"{name}: {error}")
    except Exception as error:  # Pillow's readers raise whatever the bytes lead them to
        return Look(digest, problem=BROKEN, detail=f"{name}: {_reason(error)}")
    return Look(digest, width * height)


class _HugeError(Exception):
    pass


def _check(data: bytes) -> tuple[int, int]:
    """Width and height. Raises what Pillow raises for a picture that cannot be decoded to its end."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as picture:
                size, kind = picture.size, picture.format
                if size[0] * size[1] > MAX_PIXELS:
                    raise _HugeError(f"{size[0]} x {size[1]} pixels, more than {MAX_PIXELS}")
                if len(data) >= _DECODED_BELOW and kind == "PNG":
                    picture.verify()
                    return size
                if len(data) >= _DECODED_BELOW and kind == "JPEG" and b"\xff\xd9" in data[-1024:]:
                    return size
                picture.draft("RGB", (max(1, size[0] // 8), max(1, size[1] // 8)))  # a JPEG decodes faster at 1/8
                picture.load()
        except Image.DecompressionBombError:
            raise _HugeError(f"more than {MAX_PIXELS} pixels") from None
    return size


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not a picture that can be decoded"
    return str(error).split("\n", 1)[0] or type(error).__name__


def encode_array(picture: Any, number: int) -> bytes:
    """A PIL image, or a uint8 array (H,W), (H,W,1), (H,W,3) or (H,W,4), as the bytes of a PNG file.

    Raises DataError naming the row for other types and shapes.
    """
    from PIL import Image

    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8:
            raise DataError(
                f"picture {number} has numbers of type {picture.dtype}, expected uint8 from 0 to 255: "
                f"for values in [0, 1] give (pictures * 255).astype('uint8')"
            )
        if picture.ndim == 3 and picture.shape[2] == 1:
            picture = picture[:, :, 0]
        if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] not in (3, 4)) or 0 in picture.shape:
            raise DataError(f"picture {number} has the shape {picture.shape}, expected (height, width[, 3 or 4])")
        picture = Image.fromarray(np.ascontiguousarray(picture))
    if picture.mode not in ("L", "RGB", "RGBA", "P", "1", "LA", "I;16"):
        picture = picture.convert("RGB")
    sink = io.BytesIO()
    picture.save(sink, "PNG", compress_level=1)
    return sink.getvalue()
