"""Audio networks of the transformers library behind the backbone's face."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headstart.backbones._files import silence
from headstart.backbones._mel import HOP, KaldiMel, WhisperMel, hide, inside
from headstart.backbones._pooling import Pool
from headstart.backbones._sentence import read_json
from headstart.backbones._structure import NetworkBackbone, unlabelled
from headstart.errors import BackboneError
from headstart.spec import BackboneSpec
from headstart.values import Batch, Features

LONGEST = 30.0
"""Seconds kept of a sound for networks that set no limit: what Whisper hears at most."""

MARGIN = 50
"""Frames of silence, of 10 ms, that follow a sound for Whisper. On 80 spoken digits of unseen speakers a frozen probe
of whisper-tiny.en is right on 78 without silence, on 79 with 20 to 500 frames, on 80 with 30 seconds, which cost over
100 times as much."""


class AudioBackbone(NetworkBackbone):
    """A backbone of sounds.

    preprocessing: `sample_rate` (a second), `max_seconds` (kept of a sound), `mel_bands` and `hop` (samples) of the
    spectrogram that the network sees, None for networks that hear the wave itself; and what the kind of network adds.

    Normalisation and spectrograms are made here, so that changes of the wave come before them. `batch.shift` (N,S) is
    added to the wave; what is beyond a row's length is silent whatever the shift. A row's features do not depend on
    the rows beside it.
    """

    modality = "audio"
    kind: ClassVar[str]

    def __init__(self, network: nn.Module, ref: str, mode: str, preprocessing: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.ref = ref
        self.mode = mode
        self.source: Mapping[str, Any] = {}
        self.digest = ""
        self.remote_code = False
        self.preprocessing = dict(preprocessing)
        config: Any = network.config
        self.pool: Pool | None = None if mode == "model" else Pool((mode,), int(config.hidden_size))

    @abstractmethod
    def encoded(self, wave: Tensor, lengths: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(N,S) with silence beyond lengths (N,) -> tokens (N,T,D) and which of them are a row's own, (N,T) bool."""

    def features(self, batch: Batch) -> Features:
        """pooled (N,D), tokens (N,T,D) of the last block and their mask (N,T)."""
        wave, lengths = batch.inputs["wave"], batch.inputs["lengths"]
        if batch.shift is not None:
            wave = wave + batch.shift
        # Spectra and logarithms lose digits in half precision.
        with torch.autocast(wave.device.type, enabled=False):
            wave = wave.float() * inside(lengths, wave.shape[1])
        tokens, real = self.encoded(wave, lengths, batch)
        mask = real.long()
        pooled = self.summed(tokens) if self.pool is None else self.pool(tokens, mask)
        return Features(pooled=pooled, tokens=tokens, mask=mask)

    def summed(self, tokens: Tensor) -> Tensor:
        """The network's own pooling, where it has one."""
        raise BackboneError(f"'{self.ref}' has no pooling of its own: set backbone.pooling to 'mean'")

    def zero_shift(self, batch: Batch) -> Tensor:
        """Zeros like the wave, (N,S)."""
        return torch.zeros_like(batch.inputs["wave"])

    def example(self) -> Batch:
        """One row of a fifth of a second: a tone that rises."""
        rate = int(self.preprocessing["sample_rate"])
        time = torch.arange(rate // 5) / rate
        wave = 0.1 * torch.sin(2 * torch.pi * (300 + 2000 * time) * time)[None]
        return unlabelled({"wave": wave, "lengths": torch.tensor([wave.shape[1]])})

    def describe(self) -> dict[str, Any]:
        """Plain JSON for `backbones.rebuild`."""
        return {
            "family": "hf",
            "kind": self.kind,
            "ref": self.ref,
            "source": dict(self.source),
            "digest": self.digest,
            "modality": self.modality,
            "width": self.width,
            "preprocessing": dict(self.preprocessing),
            "pooling": self.mode,
            "remote_code": self.remote_code,
        }

    def save_files(self, folder: Path) -> None:
        """Write config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        with silence():
            self.network.config.save_pretrained(folder)  # type: ignore[union-attr, operator]


class WhisperBackbone(AudioBackbone):
    """The encoder of Whisper, at the length of the rows instead of 30 seconds.

    The network was trained on sounds filled up with silence to 30 seconds, which costs as much for a word as for a
    speech. Here a row is followed by `margin` frames of silence, the position table is cut to what there is, and the
    mean goes over the frames of the sound alone. The positions are fixed sines and stay so.
    """

    kind: ClassVar[str] = "whisper"

    def __init__(self, network: nn.Module, ref: str, mode: str, preprocessing: Mapping[str, Any]) -> None:
        super().__init__(network, ref, mode, preprocessing)
        settings = self.preprocessing
        self.mel = WhisperMel(settings["mel_bands"], settings["sample_rate"], settings["n_fft"], settings["hop"])
        table: Any = network.embed_positions
        weight = table.weight.detach()
        del table.weight
        table.register_buffer("weight", weight)

    def encoded(self, wave: Tensor, lengths: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens (N,T,D), one for two frames of the spectrogram."""
        network: Any = self.network
        room = 2 * network.embed_positions.weight.shape[0]
        margin = int(self.preprocessing["margin"])
        with torch.autocast(wave.device.type, enabled=False):
            wave = nn.functional.pad(wave, (0, margin * self.mel.hop))
            spectrogram, heard = self.mel(wave, (lengths + margin * self.mel.hop).clamp(max=room * self.mel.hop))
            spectrogram, heard = spectrogram[:, :room], heard.clamp(max=room)
            own = (lengths + self.mel.hop - 1) // self.mel.hop
            frames, bands = batch.inputs.get("hidden_frames"), batch.inputs.get("hidden_bands")
            spectrogram = hide(spectrogram, inside(own, spectrogram.shape[1]), frames, bands)
        # The padding that a convolution sees after the last frame is zero, so beyond a row everything is kept zero.
        x = nn.functional.gelu(network.conv1(spectrogram.transpose(1, 2)))
        x = x * inside(heard, x.shape[2])[:, None].to(x.dtype)
        x = nn.functional.gelu(network.conv2(x)).transpose(1, 2)
        seen = inside((heard + 1) // 2, x.shape[1])
        x = nn.functional.dropout(x + network.embed_positions.weight[: x.shape[1]], network.dropout, self.training)
        bias = None
        if not bool(seen.all()):
            bias = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, torch.finfo(x.dtype).min)[:, None, None]
        for layer in network.layers:
            x = layer(x, bias)
            x = x[0] if isinstance(x, tuple) else x
        return network.layer_norm(x), inside((own + 1) // 2, x.shape[1])


class WaveBackbone(AudioBackbone):
    """Wav2Vec2, HuBERT and WavLM: convolutions on the wave, then a transformer.

    Networks whose first convolution is normalised over time hear rows of one length together, without padding. The
    masking and the dropping of layers in their configs are off, since they draw from other generators than the run's:
    `augment` and `depth` do these. Sounds shorter than what the convolutions need are filled up with silence.
    """

    kind: ClassVar[str] = "wave"

    def __init__(self, network: nn.Module, ref: str, mode: str, preprocessing: Mapping[str, Any]) -> None:
        super().__init__(network, ref, mode, preprocessing)
        config: Any = network.config
        if getattr(config, "add_adapter", False):
            raise BackboneError(f"'{ref}' has an adapter above its encoder, which is not supported")
        config.apply_spec_augment = False
        config.layerdrop = 0.0
        self._steps = tuple(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.shortest = 1
        for kernel, stride in reversed(self._steps):
            self.shortest = (self.shortest - 1) * stride + kernel

    def frames(self, lengths: Tensor) -> Tensor:
        """How many frames the convolutions make of so many samples."""
        for kernel, stride in self._steps:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return lengths

    def encoded(self, wave: Tensor, lengths: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens (N,T,D), one for about 20 ms."""
        network: Any = self.network
        wave = nn.functional.pad(wave, (0, max(0, self.shortest - wave.shape[1])))
        if self.preprocessing["normalize"]:
            wave = _standard(wave, lengths)
        lengths = lengths.clamp(min=self.shortest)
        counts = self.frames(lengths)
        own = inside(counts, int(counts.max()))
        hidden = network.feature_projection(self._heard(wave, lengths, own.shape[1]))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        # The encoder writes into what it is given.
        mask = None if bool(own.all()) else own
        with warnings.catch_warnings():
            # WavLM gives torch a mask of true and false beside a bias of numbers.
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
            tokens: Tensor = network.encoder(hidden.clone(), attention_mask=mask).last_hidden_state
        return tokens, own

    def _heard(self, wave: Tensor, lengths: Tensor, size: int) -> Tensor:
        """What the convolutions make of the wave, (N,size,C)."""
        network: Any = self.network
        if self.network.config.feat_extract_norm != "group":  # type: ignore[union-attr]
            found: Tensor = network.feature_extractor(wave)[:, :, :size]
            return found.transpose(1, 2)
        rows: list[Tensor] = [wave] * len(wave)
        for length in lengths.unique().tolist():
            same = (lengths == length).nonzero()[:, 0]
            part = network.feature_extractor(wave[same, :length])
            part = nn.functional.pad(part, (0, size - part.shape[2]))
            for place, row in zip(same.tolist(), part, strict=True):
                rows[place] = row
        return torch.stack(rows).transpose(1, 2)


class ASTBackbone(AudioBackbone):
    """The Audio Spectrogram Transformer: patches of a spectrogram of fixed length, filled up with zeros.

    A shorter `max_seconds` cuts the position table in time, which makes every row cheaper.
    """

    kind: ClassVar[str] = "ast"

    def __init__(self, network: nn.Module, ref: str, mode: str, preprocessing: Mapping[str, Any]) -> None:
        super().__init__(network, ref, mode, preprocessing)
        settings = self.preprocessing
        self.mel = KaldiMel(
            settings["mel_bands"], settings["sample_rate"], settings["mean"], settings["std"], settings["normalize"]
        )

    def encoded(self, wave: Tensor, lengths: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens (N,2+T,D): class, distillation, then patches by band and time; all but the first two may be filling.

        With pooling 'cls' and 'model' the mask covers all tokens, with others the patches of a row's own frames.
        """
        config: Any = self.network.config
        with torch.autocast(wave.device.type, enabled=False):
            spectrogram, own = self.mel(wave, lengths, int(config.max_length))
            real = inside(own, spectrogram.shape[1])
            frames, bands = batch.inputs.get("hidden_frames"), batch.inputs.get("hidden_bands")
            spectrogram = hide(spectrogram, real, frames, bands)
        tokens: Tensor = self.network(input_values=spectrogram).last_hidden_state
        if self.mode in ("cls", "model"):
            return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        tall = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        wide = (tokens.shape[1] - 2) // tall
        starts = torch.arange(wide, device=own.device) * config.time_stride
        patches = (starts[None] < own[:, None]).repeat(1, tall)
        return tokens, torch.cat([torch.zeros_like(patches[:, :1]).repeat(1, 2), patches], 1)

    def summed(self, tokens: Tensor) -> Tensor:
        """The mean of the class and the distillation token, which the published heads read."""
        return tokens[:, :2].float().mean(1)


KINDS: Mapping[str, type[AudioBackbone]] = {kind.kind: kind for kind in (WhisperBackbone, WaveBackbone, ASTBackbone)}
MODELS: Mapping[str, str] = {
    "whisper": "whisper",
    "wav2vec2": "wave",
    "hubert": "wave",
    "wavlm": "wave",
    "audio-spectrogram-transformer": "ast",
}
"""model_type of a config -> kind of backbone."""


def hears(config: Any) -> bool:
    """Whether a config is one of an audio network that is known here."""
    return getattr(config, "model_type", None) in MODELS


def encodes(config: Any) -> bool:
    """Whether a config describes a network with a decoder, of which the encoder alone is used."""
    return getattr(config, "model_type", None) == "whisper"


def encoder(network: Any) -> nn.Module:
    """The encoder of such a network; an encoder is itself."""
    inner: nn.Module = getattr(network, "encoder", network)
    return inner


def from_folder(network: nn.Module, folder: Path, spec: BackboneSpec, ref: str) -> AudioBackbone:
    """The backbone of a loaded network, with the settings of its folder's preprocessor_config.json."""
    for name, what in (("max_length", "text"), ("image_size", "pictures")):
        if getattr(spec, name) is not None:
            raise BackboneError(f"{name} is for {what}, and '{ref}' reads sounds: leave it out or use max_seconds")
    config: Any = network.config
    path = folder / "preprocessor_config.json"
    if not path.is_file() and spec.pretrained:
        raise BackboneError(
            f"'{ref}' has no preprocessor_config.json, which says how sounds are made ready "
            f"(keys sampling_rate, feature_size, do_normalize): add the one the model was trained with"
        )
    record = read_json(path) if path.is_file() else {}
    kind = MODELS[config.model_type]
    settings: dict[str, Any] = {"sample_rate": int(record.get("sampling_rate", 16000)), "mel_bands": None, "hop": None}
    made = {"whisper": _whisper, "wave": _wave, "ast": _ast}[kind](config, record, settings, spec.max_seconds, ref)
    if kind == "ast":
        _cut(network, made)
    default = "model" if kind == "ast" else "mean"
    if spec.pooling == "cls" and kind != "ast":
        raise BackboneError(f"'{ref}' has no class token: expected pooling 'mean' or 'attention'")
    return KINDS[kind](network, ref, spec.pooling or default, made)


def from_record(network: nn.Module, record: Mapping[str, Any], folder: Path) -> AudioBackbone:
    """The backbone of a record made by `describe`."""
    backbone = KINDS[str(record["kind"])](
        network, str(record["ref"]), str(record["pooling"]), dict(record["preprocessing"])
    )
    backbone.remote_code = bool(record["remote_code"])
    return backbone


def _whisper(config: Any, record: Any, settings: dict[str, Any], asked: float | None, ref: str) -> dict[str, Any]:
    hop = int(record.get("hop_length", HOP))
    room = 2 * int(config.max_source_positions) * hop / settings["sample_rate"]
    if asked is not None and asked > room:
        raise BackboneError(f"max_seconds {asked:g} is more than the {room:g} seconds of '{ref}'")
    shape = {"mel_bands": int(config.num_mel_bins), "hop": hop, "n_fft": int(record.get("n_fft", 400))}
    return {**settings, **shape, "max_seconds": asked or room, "margin": MARGIN}


def _wave(config: Any, record: Any, settings: dict[str, Any], asked: float | None, ref: str) -> dict[str, Any]:
    return {**settings, "max_seconds": asked or LONGEST, "normalize": bool(record.get("do_normalize", True))}


def _ast(config: Any, record: Any, settings: dict[str, Any], asked: float | None, ref: str) -> dict[str, Any]:
    rate, trained = settings["sample_rate"], int(config.max_length)
    frames = trained if asked is None else int(asked * rate - 400) // HOP + 1
    if not config.patch_size <= frames <= trained:
        low, high = (((count - 1) * HOP + 400) / rate for count in (config.patch_size, trained))
        raise BackboneError(f"expected max_seconds from {low:.2f} to {high:.2f} for '{ref}', received {asked:g}")
    scale = {"mean": float(record.get("mean", -4.2677393)), "std": float(record.get("std", 4.5689974))}
    shape = {"mel_bands": int(config.num_mel_bins), "hop": HOP, "frames": frames}
    seconds = ((frames - 1) * HOP + 400) / rate
    return {**settings, **shape, **scale, "normalize": bool(record.get("do_normalize", True)), "max_seconds": seconds}


def _cut(network: nn.Module, settings: Mapping[str, Any]) -> None:
    """Keep the part of AST's position table that belongs to the first frames."""
    config: Any = network.config
    if settings["frames"] == config.max_length:
        return
    embeddings: Any = network.embeddings
    tall, wide = embeddings.get_shape(config)
    config.max_length = int(settings["frames"])
    _, kept = embeddings.get_shape(config)
    table = embeddings.position_embeddings.detach()
    patches = table[:, 2:].reshape(1, tall, wide, -1)[:, :, :kept].flatten(1, 2)
    embeddings.position_embeddings = nn.Parameter(torch.cat([table[:, :2], patches], 1))


def _standard(wave: Tensor, lengths: Tensor) -> Tensor:
    """Each row with mean 0 and variance 1 over its own samples, zero beyond."""
    own = inside(lengths, wave.shape[1])
    count = lengths[:, None].to(wave.dtype)
    centred = (wave - wave.sum(1, keepdim=True) / count) * own
    return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
