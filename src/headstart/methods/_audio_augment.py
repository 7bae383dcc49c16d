"""Random changes of sounds: speed, place, noise, loudness, and hidden frames and bands of their spectrogram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.methods._draws import uniform

NOISE_SPAN = 20.0
"""Signal-to-noise ratios are drawn evenly from this many dB upwards of the lowest."""

BANDS = 80
"""Bands of equal width in mel that are hidden from networks that hear the wave itself."""


@dataclass(frozen=True)
class Hearing:
    """What a backbone makes of a wave.

    rate: samples a second. most: samples that it takes. bands and hop: of its spectrogram, None where it has none.
    """

    rate: int
    most: int
    bands: int | None
    hop: int | None

    @classmethod
    def of(cls, preprocessing: Mapping[str, object]) -> Hearing:
        """From a backbone's record."""
        rate = int(str(preprocessing["sample_rate"]))
        most = round(rate * float(str(preprocessing["max_seconds"])))
        bands, hop = preprocessing.get("mel_bands"), preprocessing.get("hop")
        return cls(rate, most, None if bands is None else int(str(bands)), None if hop is None else int(str(hop)))


@dataclass(frozen=True)
class Changes:
    """How much; see the options of `augment`. A rate or number of 0 is off."""

    speed: float
    shift: float
    snr: float
    gain: float
    bands: int
    band: float
    gaps: int
    gap: float
    share: float

    @property
    def any(self) -> bool:
        """Whether anything is switched on."""
        return bool(self.speed or self.shift or self.snr or self.gain or self.bands or self.gaps)


def change(
    inputs: Mapping[str, Tensor], changes: Changes, hearing: Hearing, generator: torch.Generator
) -> dict[str, Tensor]:
    """`wave` (N,S) and `lengths` (N,) -> the same with S' samples; with a spectrogram also what of it is hidden.

    Each row is changed with probability `share`. The draws depend on N and S alone, not on what the rows hold.
    """
    wave, lengths = inputs["wave"], inputs["lengths"]
    device, rows = wave.device, len(wave)
    draws = uniform((rows, 5), generator).cpu()
    chosen = draws[:, 0] < changes.share
    moved = []
    for row, (length, (_, speed, shift, _, _)) in enumerate(zip(lengths.tolist(), draws.tolist(), strict=True)):
        sound = wave[row, :length]
        if chosen[row] and length > 1:
            pace = 1 + changes.speed * (int(3 * speed) - 1)
            sound = at_speed(sound, pace)[: hearing.most]
            sound = shifted(sound, round((2 * shift - 1) * changes.shift * len(sound)))
        moved.append(sound)
    lengths = torch.tensor([len(sound) for sound in moved], device=device)
    wave = torch.nn.utils.rnn.pad_sequence(moved, batch_first=True)
    chosen = chosen.to(device)
    inside = (torch.arange(wave.shape[1], device=device)[None] < lengths[:, None]) & chosen[:, None]
    if changes.snr:
        noise = torch.randn(wave.shape, generator=generator, device=generator.device).to(device, wave.dtype)
        ratio = (changes.snr + NOISE_SPAN * draws[:, 3]).to(device)
        wave = wave + inside * noise * (loudness(wave, lengths) * 10 ** (-ratio / 20))[:, None]
    if changes.gain:
        factor = 10 ** ((2 * draws[:, 4].to(device) - 1) * changes.gain / 20)
        wave = torch.where(inside, wave * factor[:, None], wave)
    found = {**inputs, "wave": wave, "lengths": lengths}
    return found | _hide(wave, lengths, chosen, changes, hearing, generator)


def at_speed(sound: Tensor, factor: float) -> Tensor:
    """A sound (L,) played `factor` times as fast: resampled to round(L / factor) samples, pitch and all."""
    size = max(1, round(len(sound) / factor))
    if size == len(sound):
        return sound
    found: Tensor = torch.fft.irfft(torch.fft.rfft(sound), n=size) * (size / len(sound))
    return found


def shifted(sound: Tensor, by: int) -> Tensor:
    """A sound (L,) moved by so many samples, later where positive; what leaves is lost, silence comes in."""
    if by == 0:
        return sound
    silence = sound.new_zeros(min(abs(by), len(sound)))
    kept = len(sound) - len(silence)
    return torch.cat([silence, sound[:kept]]) if by > 0 else torch.cat([sound[len(sound) - kept :], silence])


def loudness(wave: Tensor, lengths: Tensor) -> Tensor:
    """The root mean square of each row over its own samples, (N,)."""
    return (wave.square().sum(1) / lengths.clamp(min=1)).sqrt()


def spans(sizes: Tensor, number: int, share: float, width: int, generator: torch.Generator) -> Tensor:
    """(N,width) bool: `number` spans in each of N rows, each t long and starting at t0.

    sizes: (N,), places of a row; t is even in [0, share * size], t0 in [0, size - t).
    """
    draws = uniform((len(sizes), number, 2), generator).to(sizes.device)
    long = (draws[:, :, 0] * (share * sizes[:, None] + 1)).floor()
    start = (draws[:, :, 1] * (sizes[:, None] - long)).floor()
    place = torch.arange(width, device=sizes.device)[None, None]
    inside = (place >= start[:, :, None]) & (place < (start + long)[:, :, None])
    return inside.any(1)


def _hide(
    wave: Tensor, lengths: Tensor, chosen: Tensor, changes: Changes, hearing: Hearing, generator: torch.Generator
) -> dict[str, Tensor]:
    """Masks for the backbone's own spectrogram; where it has none, the wave with its gaps and without the bands."""
    rows, device = len(wave), wave.device
    hop = hearing.hop or hearing.rate // 100
    bands = hearing.bands or BANDS
    frames = (lengths + hop - 1) // hop
    hidden_frames = spans(frames, changes.gaps, changes.gap, int(frames.max()), generator) & chosen[:, None]
    all_bands = torch.full((rows,), bands, device=device)
    hidden_bands = spans(all_bands, changes.bands, changes.band, bands, generator) & chosen[:, None]
    if hearing.bands is not None:
        return {"hidden_frames": hidden_frames, "hidden_bands": hidden_bands}
    if changes.bands:
        # Rows have one length here, so that silence beyond a row stays nearly silent; the backbone cuts it off.
        spectrum = torch.fft.rfft(wave)
        hertz = torch.linspace(0, hearing.rate / 2, spectrum.shape[1], device=device)
        mel = torch.log1p(hertz / 700)
        place = (mel / mel[-1] * bands).long().clamp(max=bands - 1)
        wave = torch.fft.irfft(spectrum * ~hidden_bands[:, place], n=wave.shape[1])
        wave = wave * (torch.arange(wave.shape[1], device=device)[None] < lengths[:, None])
    gaps = hidden_frames.repeat_interleave(hop, 1)[:, : wave.shape[1]]
    return {"wave": wave.masked_fill(gaps, 0.0)}
