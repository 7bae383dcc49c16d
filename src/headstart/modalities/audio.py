"""Sounds: decoded and resampled once into a flat memory-mapped array, padded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from headstart.errors import DataError
from headstart.modalities._scratch import Flat
from headstart.modalities._sounds import decode, encode, name_of, resampled
from headstart.protocols import Backbone, Modality, Prepared

PROBE_SECONDS = 4.0
"""Seconds of a sound that a bundle keeps to prove itself with."""


class AudioModality(Modality):
    """Sounds as paths, bytes of files, or mappings of `array` and `sampling_rate`; any rate, any channels."""

    name: ClassVar[str] = "audio"
    continuous: ClassVar[bool] = True
    probe_suffix: ClassVar[str] = ".wav"

    def prepare(self, values: Sequence[Any], backbone: Backbone) -> PreparedAudio:
        """Decode all rows. Raises DataError naming the row and path of one that cannot be read."""
        if backbone.modality != self.name:
            raise DataError(f"the rows are audio, and the backbone '{backbone.ref}' reads {backbone.modality}")
        return PreparedAudio(values, backbone)

    def summary(self, values: Sequence[Any]) -> dict[str, np.ndarray]:
        """`seconds` of each row and its `loudness`, the root mean square in dB of full scale, (rows,) float64."""
        seconds, loudness = np.zeros(len(values)), np.zeros(len(values))
        for row, value in enumerate(values):
            wave, rate = decode(value, row)
            seconds[row] = len(wave) / rate
            power = float(np.square(wave, dtype=np.float64).mean())
            loudness[row] = 10 * np.log10(max(power, 1e-12))
        return {"seconds": seconds, "loudness": loudness}

    def probe(self, value: Any) -> bytes:
        """The first seconds as a WAV file, mono, at the sound's own rate."""
        return encode(*decode(value, 0, PROBE_SECONDS))


class PreparedAudio(Prepared):
    """Waves of all rows at the backbone's rate, one after another, with the place where each row starts.

    lengths: (rows,) int32, samples of each row. truncated: how many rows were longer than `max_seconds`.
    """

    def __init__(self, values: Sequence[Any], backbone: Backbone) -> None:
        """Decode `values`; see `AudioModality.prepare`."""
        rate, seconds = int(backbone.preprocessing["sample_rate"]), float(backbone.preprocessing["max_seconds"])
        most = max(1, round(rate * seconds))
        self._file = Flat(np.float32)
        self.lengths = np.zeros(len(values), dtype=np.int32)
        self.truncated = 0
        for row in range(len(values)):
            value = values[row]
            # A little more than is kept: the resampler sees what follows, and a longer sound is known as one.
            wave = resampled(*decode(value, row, seconds + 0.1), rate)
            if not len(wave):
                raise DataError(f"{name_of(value, row)}: nothing is left at {rate} samples a second: it is too short")
            self.truncated += len(wave) > most
            self.lengths[row] = min(len(wave), most)
            self._file.append(wave[:most])
        self._waves = self._file.finish()
        self._starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def __len__(self) -> int:
        """Rows."""
        return len(self.lengths)

    def take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`wave` (N,S) float32, padded on the right with zeros to the longest of these rows, and `lengths` (N,)."""
        lengths = self.lengths[np.asarray(rows, dtype=np.int64)].astype(np.int64)
        wave = np.zeros((len(rows), max(1, int(lengths.max(initial=0)))), dtype=np.float32)
        for place, row in enumerate(rows):
            start = self._starts[row]
            wave[place, : lengths[place]] = self._waves[start : start + lengths[place]]
        return {"wave": torch.from_numpy(wave), "lengths": torch.from_numpy(lengths)}
