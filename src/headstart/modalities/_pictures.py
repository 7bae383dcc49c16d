"""Opening pictures safely and bringing them to one form: RGB, upright, without transparency."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headstart.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
"""A picture with more pixels is refused before it is decoded: a small file can unpack to all of memory."""

LONGEST = 16
"""Of a picture longer than this many times its width only the middle is resized; the rest would be cut off anyway."""


def name_of(value: Any, row: int) -> str:
    """How a message names a row's picture."""
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("bytes")
    if isinstance(value, str | os.PathLike):
        return f"row {row} ('{os.fspath(value)}')"
    return f"row {row}"


def open_picture(value: Any, row: int) -> Image:
    """The picture of a row, its header read and its pixels not yet. Raises DataError naming the row and path."""
    from PIL import Image as pil
    from PIL import UnidentifiedImageError

    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        value = value.get("bytes") or value.get("path")
    where = name_of(value, row)
    if isinstance(value, np.ndarray):
        return _from_array(value, where)
    if isinstance(value, pil.Image):
        picture = value
    else:
        if isinstance(value, bytes | bytearray | memoryview):
            source: Any = io.BytesIO(value)
        elif isinstance(value, str | os.PathLike):
            source = os.fspath(value)
        else:
            raise DataError(
                f"{where}: expected a picture as a path, bytes, PIL image or uint8 array, "
                f"received {type(value).__name__}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = pil.open(source)
        except FileNotFoundError:
            raise DataError(f"{where}: there is no such file") from None
        except UnidentifiedImageError:
            raise DataError(f"{where}: not a picture in a format that can be read") from None
        except pil.DecompressionBombError:
            raise DataError(f"{where}: more than {MAX_PIXELS:,} pixels, which is refused; make it smaller") from None
        except Exception as error:  # a damaged header fails in many ways, by format
            raise DataError(f"{where}: cannot be read: {error or type(error).__name__}") from None
    if picture.width * picture.height > MAX_PIXELS:
        size = f"{picture.width} by {picture.height} pixels"
        raise DataError(f"{where}: {size}, more than the {MAX_PIXELS:,} allowed; make it smaller")
    if not picture.width or not picture.height:
        raise DataError(f"{where}: the picture is empty, {picture.width} by {picture.height} pixels")
    return picture


def decode(value: Any, row: int) -> Image:
    """The picture of a row as upright RGB, transparency on white, 16 bits scaled to 8. Raises DataError."""
    from PIL import ImageOps

    with _opened(value, row) as picture:
        return _rgb(ImageOps.exif_transpose(picture))


@contextmanager
def _opened(value: Any, row: int) -> Iterator[Image]:
    """The picture of a row, closed afterwards unless it was given open; damage inside becomes a DataError."""
    picture = open_picture(value, row)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield picture
    except Exception as error:  # damaged pixels fail in many ways, by format
        raise DataError(f"{name_of(value, row)}: damaged or cut short: {error or type(error).__name__}") from None
    finally:
        if picture is not value:
            picture.close()


def _from_array(array: npt.NDArray[Any], where: str) -> Image:
    from PIL import Image as pil

    flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if (
        array.dtype != np.uint8
        or not (flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] in (3, 4)))
        or not array.size
    ):
        raise DataError(
            f"{where}: expected a uint8 array (H,W), (H,W,1), (H,W,3) or (H,W,4), "
            f"received {array.dtype} {tuple(array.shape)}"
        )
    return pil.fromarray(np.ascontiguousarray(flat))


def _rgb(picture: Image) -> Image:
    from PIL import Image as pil

    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        top = float(values.max(initial=0.0))
        if picture.mode == "F":
            scale = 255.0 if top <= 1 else 1.0
        else:
            scale = 255.0 / 65535.0 if picture.mode.startswith("I;16") or top > 255 else 1.0
        return pil.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        white = pil.new("RGBA", layered.size, (255, 255, 255, 255))
        return pil.alpha_composite(white, layered).convert("RGB")
    return picture.convert("RGB")


def fit(picture: Image, settings: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """(H,W,3) uint8 of the backbone's size: resized and its centre cut out, as the backbone was evaluated."""
    from PIL import Image as pil

    size, resize, mode = int(settings["image_size"]), int(settings["resize"]), settings["crop_mode"]
    way = pil.Resampling[str(settings["interpolation"]).upper()]
    if mode == "center":
        picture = _middle(picture)
    width, height = picture.size
    if mode == "squash":
        wanted = (resize, resize)
    else:
        side = max(width, height) if mode == "border" else min(width, height)
        scaled = [resize if edge == side else max(1, int(resize * edge / side)) for edge in (width, height)]
        wanted = (scaled[0], scaled[1])
    if wanted != picture.size:
        picture = picture.resize(wanted, way)
    fill = tuple(round(255 * value) for value in settings["mean"])
    return _centre(picture, size, fill)


def _middle(picture: Image) -> Image:
    """The middle of a picture that is more than `LONGEST` times as long as wide, which would grow beyond memory."""
    width, height = picture.size
    across, along = min(width, LONGEST * height), min(height, LONGEST * width)
    if (across, along) == picture.size:
        return picture
    left, top = (width - across) // 2, (height - along) // 2
    return picture.crop((left, top, left + across, top + along))


def _centre(picture: Image, size: int, fill: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The middle `size` by `size` pixels; where the picture is smaller, its surroundings are filled up."""
    from PIL import Image as pil

    left = _half(picture.width - size)
    top = _half(picture.height - size)
    if picture.width < size or picture.height < size:
        canvas = pil.new("RGB", (size, size), fill)
        canvas.paste(picture, (-left, -top))
        return np.asarray(canvas)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def _half(margin: int) -> int:
    return round(margin / 2) if margin >= 0 else -math.floor(-margin / 2)


def look(value: Any, row: int) -> tuple[int, int, float, float]:
    """(width, height, brightness, contrast) of a row's picture, upright; the last two from a copy of 64 pixels."""
    with _opened(value, row) as picture:
        swap = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        width, height = picture.size[::-1] if swap else picture.size
        if picture is not value:
            picture.draft("RGB", (64, 64))
        small = _rgb(picture)
        small.thumbnail((64, 64))
        grey = np.asarray(small.convert("L"), dtype=np.float64) / 255
    return width, height, float(grey.mean()), float(grey.std())
