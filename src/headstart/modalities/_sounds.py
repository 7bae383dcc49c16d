"""Decoding sounds and bringing them to one form: mono, float, at the rate that a backbone hears."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.errors import DataError, MissingExtra

Wave = npt.NDArray[np.float32]


def name_of(value: Any, row: int) -> str:
    """How a message names a row's sound."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return f"row {row} ('{os.fspath(value)}')" if isinstance(value, str | os.PathLike) else f"row {row}"


def decode(value: Any, row: int, seconds: float | None = None) -> tuple[Wave, int]:
    """The first `seconds` of a row's sound as mono, (samples,) float32, and its rate. Raises DataError.

    value: a path, the bytes of a file, a mapping with one of these as `path` or `bytes`, or a mapping of `array`,
    (samples,) or (samples,channels), and `sampling_rate`.
    """
    where = name_of(value, row)
    if isinstance(value, Mapping):
        if "array" in value and "sampling_rate" in value:
            return _whole(np.asarray(value["array"], dtype=np.float32), int(value["sampling_rate"]), where, seconds)
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        source: Any = io.BytesIO(value)
    elif isinstance(value, str | os.PathLike):
        source = os.fspath(value)
        if not os.path.isfile(source):
            raise DataError(f"{where}: there is no such file")
    else:
        raise DataError(
            f"{where}: expected a sound as a path, bytes, or a mapping of array and sampling_rate, "
            f"received {type(value).__name__}"
        )
    try:
        import soundfile
    except (ImportError, OSError):
        raise MissingExtra("soundfile", "audio", "reading sounds") from None
    try:
        with soundfile.SoundFile(source) as sound:
            rate = int(sound.samplerate)
            frames = -1 if seconds is None else int(np.ceil(seconds * rate))
            array = sound.read(frames, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{where}: cannot be read as a sound: {reason}") from None
    return _whole(array, rate, where, seconds)


def _whole(array: npt.NDArray[np.float32], rate: int, where: str, seconds: float | None) -> tuple[Wave, int]:
    if array.ndim not in (1, 2) or not array.size:
        raise DataError(f"{where}: expected samples, (samples,) or (samples, channels), received shape {array.shape}")
    if rate < 1:
        raise DataError(f"{where}: expected a sampling rate above 0, received {rate}")
    if seconds is not None:
        array = array[: int(np.ceil(seconds * rate))]
    mono: Wave = array if array.ndim == 1 else array.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DataError(f"{where}: holds values that are not numbers")
    return np.ascontiguousarray(mono), rate


def resampled(wave: Wave, rate: int, wanted: int) -> Wave:
    """The wave at another rate. Raises MissingExtra where that needs a library that is not there."""
    if rate == wanted:
        return wave
    try:
        import soxr
    except ImportError:
        raise MissingExtra("soxr", "audio", f"bringing sounds from {rate} to {wanted} samples a second") from None
    made: Wave = soxr.resample(wave, rate, wanted).astype(np.float32, copy=False)
    return made


def encode(wave: Wave, rate: int) -> bytes:
    """The bytes of a WAV file of 16 bits; values beyond [-1, 1] are cut."""
    import soundfile

    sink = io.BytesIO()
    soundfile.write(sink, np.clip(wave, -1, 1), rate, "PCM_16", format="WAV")
    return sink.getvalue()
