"""Log-mel spectrograms as the published models were trained on, in torch, so that gradients reach the wave.

    F   frames of a spectrogram     M   mel bands     S   samples of the longest row

Rows are independent: frames beyond a row's own are 0 and nothing of one row depends on how long another is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WINDOW, HOP = 400, 160
"""Samples of a frame and from one to the next: 25 and 10 ms at 16 kHz."""


def inside(lengths: Tensor, size: int) -> Tensor:
    """(N,size) bool: which places lie within each row's length."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


def hide(spectrogram: Tensor, real: Tensor, frames: Tensor | None, bands: Tensor | None) -> Tensor:
    """The spectrogram (N,F,M) with hidden frames (N,F') and bands (N,M) set to the row's mean.

    real: (N,F), which frames are a row's own. Frames that F' does not reach stay.
    """
    if frames is None and bands is None:
        return spectrogram
    hidden = torch.zeros_like(spectrogram, dtype=torch.bool)
    if bands is not None:
        hidden |= bands[:, None, :]
    if frames is not None:
        reach = min(frames.shape[1], hidden.shape[1])
        hidden[:, :reach] |= frames[:, :reach, None]
    share = real[:, :, None].to(spectrogram.dtype)
    mean = (spectrogram * share).sum((1, 2)) / (share.sum((1, 2)) * spectrogram.shape[2]).clamp(min=1)
    return torch.where(hidden & real[:, :, None], mean[:, None, None], spectrogram)


class WhisperMel(nn.Module):
    """The log-mel spectrogram of Radford et al. 2022 (Whisper), section 2.2, scaled as their code does.

    log10 of the mel power, at least 8 below the row's largest value, then (x + 4) / 4.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bands: int, rate: int, width: int = WINDOW, hop: int = HOP) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(1 + width // 2, bands, 0.0, 8000.0, rate, norm="slaney", mel_scale="slaney")
        self.width, self.hop = width, hop
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(width), persistent=False)

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(N,S) with zeros beyond lengths (N,) -> spectrogram (N,F,M) and each row's own frames (N,)."""
        margin, size = self.width // 2, wave.shape[1]
        whole = -(-max(size, margin + 1) // self.hop) * self.hop
        wave = nn.functional.pad(wave, (0, whole - size))
        # Mirrored at the start; silence follows the end.
        padded = torch.cat([wave[:, 1 : margin + 1].flip(1), wave, wave.new_zeros(len(wave), margin)], 1)
        found = torch.stft(padded, self.width, self.hop, window=self.window, center=False, return_complex=True)
        power = torch.view_as_real(found).square().sum(-1)[:, :, :-1]  # (N,bins,F)
        mel = (power.transpose(1, 2) @ self.filters).clamp(min=1e-10).log10()  # (N,F,M)
        frames = (lengths + self.hop - 1) // self.hop
        real = inside(frames, mel.shape[1])[:, :, None]
        top = mel.masked_fill(~real, -10.0).amax((1, 2), keepdim=True)
        mel = (torch.maximum(mel, top - 8.0) + 4.0) / 4.0
        return mel * real, frames


class KaldiMel(nn.Module):
    """Kaldi's log-mel filter banks as Gong et al. 2021 (AST) use them, then (x - mean) / (2 std).

    Frames that do not fit into the sound are left out; those beyond it are 0 before the scaling.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bands: int, rate: int, mean: float, std: float, normalize: bool) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            257, bands, 20, rate // 2, rate, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
        )
        self.mean, self.scale = (mean, 2 * std) if normalize else (0.0, 1.0)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=False), persistent=False)

    def forward(self, wave: Tensor, lengths: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """(N,S) with zeros beyond lengths (N,) -> spectrogram (N,most,M) and each row's own frames (N,)."""
        wave = nn.functional.pad(wave, (0, max(0, WINDOW - wave.shape[1])))
        frames = wave.unfold(1, WINDOW, HOP)[:, :most]  # (N,F,WINDOW)
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[:, :, :1], frames[:, :, :-1]], 2)
        spectrum = torch.fft.rfft((frames - 0.97 * before) * self.window, n=512)
        power = torch.view_as_real(spectrum).square().sum(-1)
        mel = (power @ self.filters).clamp(min=1.192092955078125e-07).log()
        count = ((lengths.clamp(min=WINDOW) - WINDOW) // HOP + 1).clamp(max=most)
        mel = mel * inside(count, mel.shape[1])[:, :, None]
        mel = nn.functional.pad(mel, (0, 0, 0, most - mel.shape[1]))
        return (mel - self.mean) / self.scale, count
