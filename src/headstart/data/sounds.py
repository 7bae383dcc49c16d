"""A look at a sound before anything is spent on it: does it open, is it whole, how long is it, is there anything."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import DataError, MissingExtra

MAX_VALUES = 200_000_000
"""Sounds with more values (samples times channels) are refused before they are decoded: 35 minutes of 48 kHz stereo."""

QUIET = 2e-4
"""A sound whose largest and smallest value are nearer than this, of 2 in all, is silence: three steps of 16 bits."""

MISSING, BROKEN, HUGE, EMPTY = "audio file missing", "unreadable audio", "huge audio", "no audio"
EMPTY_SOUND, SILENT = "audio without samples", "silent audio"
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Look:
    """What a sound is. size: milliseconds, 1 or more; problem: why it cannot be used, with detail; digest: sha256."""

    digest: bytes = bytes(32)
    size: int = 0
    problem: str | None = None
    detail: str = ""


def library() -> Any:
    """The soundfile package. Raises MissingExtra where it is not installed."""
    try:
        import soundfile
    except (ImportError, OSError):  # OSError where the package is there and its C library is not
        raise MissingExtra("soundfile", "audio", "reading sounds") from None
    return soundfile


def look(value: Any, base: Path) -> Look:
    """Decode a sound given as path (relative to `base`) or bytes to its end."""
    if value is None or value == "" or value == b"":
        return Look(problem=EMPTY)
    name = "a sound"
    if isinstance(value, str):
        name = f"'{value}'"
        try:
            value = (base / value).read_bytes()
        except FileNotFoundError:
            return Look(problem=MISSING, detail=f"there is no {name} in '{base}'")
        except OSError as error:
            return Look(problem=BROKEN, detail=f"{name}: {error.strerror or error}")
    digest = hashlib.sha256(value).digest()
    if not value:
        return Look(digest, problem=EMPTY_SOUND, detail=f"{name}: the file is empty")
    cut = cut_short(value)
    if cut:
        return Look(digest, problem=BROKEN, detail=f"{name}: {cut}")
    soundfile = library()
    try:
        with soundfile.SoundFile(io.BytesIO(value)) as sound:
            if sound.frames * sound.channels > MAX_VALUES:
                size = f"{sound.frames / sound.samplerate / 60:.0f} minutes of {sound.channels} channels"
                return Look(digest, problem=HUGE, detail=f"{name}: {size}; cut it into clips")
            length = max(1, round(1000 * sound.frames / sound.samplerate)) if sound.frames else 0
            low, high, read = _extremes(sound)
            expected = sound.frames
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        return Look(digest, problem=BROKEN, detail=f"{name}: {_reason(error)}")
    if not read:
        return Look(digest, problem=EMPTY_SOUND, detail=name)
    if read < expected:
        return Look(digest, problem=BROKEN, detail=f"{name}: cut short after {read} of {expected} samples")
    if not np.isfinite(low + high):
        return Look(digest, problem=BROKEN, detail=f"{name}: holds values that are not numbers")
    if high - low < QUIET:
        return Look(digest, length, SILENT, name)
    return Look(digest, length)


def _extremes(sound: Any) -> tuple[float, float, int]:
    """Smallest value, largest value and samples read, block by block."""
    low, high, read = np.inf, -np.inf, 0
    while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        if np.isnan(block).any():
            low = np.nan
        read += len(block)
    return low, high, read


def cut_short(data: bytes) -> str:
    """What is missing at the end of a WAV or Ogg file, which decoders pass over; empty for a whole one."""
    if data[:4] == b"RIFF" and len(data) >= 8:
        stated = struct.unpack("<I", data[4:8])[0] + 8
        # Programs that write to a pipe leave the size open: as large as can be, or nothing.
        if len(data) + 1 < stated < 2**31 and stated > 8:
            return f"cut short, {len(data)} of {stated} bytes"
    if data[:4] == b"OggS":
        at = data.rfind(b"OggS")
        page = data[at:]
        count = page[26] if len(page) > 26 else 0
        if len(page) < 27 + count or len(page) < 27 + count + sum(page[27 : 27 + count]) or not page[5] & 4:
            return "cut short, its last page is not an end"
    return ""


def _reason(error: Exception) -> str:
    text = str(error).split("\n", 1)[0]
    if "Format not recogni" in text:
        return "not a sound in a format that can be read"
    return text or type(error).__name__


def is_array(value: Any) -> bool:
    """Whether a value is a decoded sound as `datasets` gives it: a mapping of `array` and `sampling_rate`."""
    return isinstance(value, Mapping) and "array" in value and "sampling_rate" in value


def encode_array(value: Mapping[str, Any], number: int) -> bytes:
    """A decoded sound, `array` (samples,) or (samples,channels) and `sampling_rate`, as the bytes of a WAV file.

    Raises DataError naming the row for other shapes and for integers.
    """
    array = np.asarray(value["array"])
    if not np.issubdtype(array.dtype, np.floating) or array.ndim not in (1, 2):
        raise DataError(
            f"sound {number} has numbers of type {array.dtype} in the shape {array.shape}, "
            f"expected floats from -1 to 1, (samples,) or (samples, channels)"
        )
    sink = io.BytesIO()
    library().write(sink, array.astype(np.float32), int(value["sampling_rate"]), "FLOAT", format="WAV")
    return sink.getvalue()
