"""Audio backbones hear what the transformers library makes of the same wave; limits, settings and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headstart import backbones
from headstart.backbones._mel import KaldiMel, WhisperMel, hide
from headstart.errors import BackboneError
from headstart.protocols import Backbone
from headstart.spec import BackboneSpec
from headstart.values import Batch


def batch_of(*waves: Tensor) -> Batch:
    lengths = torch.tensor([len(wave) for wave in waves])
    rows = torch.arange(len(waves))
    inputs = {"wave": torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True), "lengths": lengths}
    return Batch(inputs, None, torch.ones(len(waves)), rows * 0, rows)


def wave(size: int, seed: int = 0) -> Tensor:
    """A tone in noise with a quiet part, as speech has."""
    time = torch.arange(size) / 16000
    found = 0.2 * torch.sin(2 * torch.pi * (400 + 300 * time) * time)
    found = found + 0.02 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    found[size // 3 : size // 2] *= 0.001
    return found


def load(folder: Path, **more: Any) -> Any:
    return backbones.load(BackboneSpec(ref=f"file:{folder}", **more), "audio")


def test_whisper_mel_is_the_feature_extractors() -> None:
    from transformers import WhisperFeatureExtractor

    sound = wave(16000)
    sound[-300:] = 0
    expected = WhisperFeatureExtractor(feature_size=40, chunk_length=1)(sound.numpy(), sampling_rate=16000)
    found, frames = WhisperMel(40, 16000)(sound[None], torch.tensor([16000]))
    assert frames.tolist() == [100] and found.shape == (1, 100, 40)
    np.testing.assert_allclose(found[0].T.numpy(), expected["input_features"][0], atol=2e-4)


def test_kaldi_mel_is_the_feature_extractors() -> None:
    from transformers import ASTFeatureExtractor

    sound = wave(9000)
    expected = ASTFeatureExtractor(num_mel_bins=32, max_length=80)(sound.numpy(), sampling_rate=16000)
    found, frames = KaldiMel(32, 16000, -4.2677393, 4.5689974, True)(sound[None], torch.tensor([9000]), 80)
    assert frames.tolist() == [(9000 - 400) // 160 + 1]
    np.testing.assert_allclose(found[0].numpy(), expected["input_values"][0], atol=2e-3)


def test_whisper_at_full_length_is_the_published_encoder(hub: Callable[[str], Path]) -> None:
    from transformers import WhisperFeatureExtractor, WhisperModel

    backbone = load(hub("whisper"))
    sound = wave(32000)
    sound[-300:] = 0
    features = WhisperFeatureExtractor.from_pretrained(hub("whisper"))(
        sound.numpy(), sampling_rate=16000, return_tensors="pt"
    )
    encoder = WhisperModel.from_pretrained(hub("whisper")).encoder.eval()
    with torch.no_grad():
        expected = encoder(features["input_features"]).last_hidden_state[0]
        found = backbone(batch_of(sound))
    torch.testing.assert_close(found.tokens[0], expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(found.pooled[0], expected.mean(0), atol=2e-4, rtol=0)


def test_whisper_hears_silence_after_a_short_sound_and_pools_without_it(hub: Callable[[str], Path]) -> None:
    from transformers import WhisperModel

    backbone = load(hub("whisper"))
    sound = wave(4000)
    with torch.no_grad():
        found = backbone(batch_of(sound))
        longer = torch.nn.functional.pad(sound, (0, 8000))[None]
        spectrogram, frames = backbone.mel(longer, torch.tensor([12000]))
        encoder = WhisperModel.from_pretrained(hub("whisper")).encoder.eval()
        x = torch.nn.functional.gelu(encoder.conv1(spectrogram.transpose(1, 2)))
        x = torch.nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        for layer in encoder.layers:
            x = layer(x, None)
            x = x[0] if isinstance(x, tuple) else x
        expected = encoder.layer_norm(x)[0]
    assert frames.tolist() == [25 + 50]
    assert int(found.mask.sum()) == 13
    torch.testing.assert_close(found.pooled[0], expected[:13].mean(0), atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2-stable", "hubert", "wavlm"])
def test_a_wave_network_is_the_published_one(family: str, hub: Callable[[str], Path]) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    backbone, sound = load(hub(family)), wave(8000)
    values = AutoFeatureExtractor.from_pretrained(hub(family))(sound.numpy(), sampling_rate=16000, return_tensors="pt")[
        "input_values"
    ]
    with torch.no_grad():
        expected = AutoModel.from_pretrained(hub(family)).eval()(values).last_hidden_state[0]
        found = backbone(batch_of(sound))
    torch.testing.assert_close(found.tokens[0], expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.pooled[0], expected.mean(0), atol=2e-5, rtol=0)
    assert int(backbone.frames(torch.tensor(8000))) == len(expected)


def test_ast_is_the_published_one_and_can_be_shortened(hub: Callable[[str], Path]) -> None:
    from transformers import ASTFeatureExtractor, ASTModel

    backbone, sound = load(hub("ast")), wave(9000)
    values = ASTFeatureExtractor.from_pretrained(hub("ast"))(sound.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = ASTModel.from_pretrained(hub("ast")).eval()(values["input_values"])
        found = backbone(batch_of(sound))
    torch.testing.assert_close(found.pooled, expected.pooler_output, atol=1e-3, rtol=0)
    short = load(hub("ast"), max_seconds=0.5)
    assert short.preprocessing["frames"] == 48 and short.preprocessing["max_seconds"] <= 0.5
    whole, kept = backbone.network.embeddings.position_embeddings, short.network.embeddings.position_embeddings
    tall, wide, narrow = 3, 16, 7  # bands, and patches in time of 100 and of 48 frames
    assert whole.shape[1] == 2 + tall * wide and kept.shape[1] == 2 + tall * narrow
    torch.testing.assert_close(kept[0, 2 + narrow], whole[0, 2 + wide])
    mean = load(hub("ast"), pooling="mean")(batch_of(sound))
    torch.testing.assert_close(mean.pooled[0], mean.tokens[0][mean.mask[0].bool()].mean(0), atol=1e-5, rtol=0)
    assert int(mean.mask.sum()) == tall * 9  # of 16 patches in time, 9 start within the 54 frames of the sound


@pytest.mark.parametrize("family", ["whisper", "ast"])
def test_hidden_frames_and_bands_are_the_rows_mean(family: str, hub: Callable[[str], Path]) -> None:
    spectrogram = torch.arange(24.0).reshape(1, 6, 4)
    real = torch.tensor([[True] * 5 + [False]])
    frames, bands = torch.tensor([[False, True]]), torch.tensor([[False, False, False, True]])
    found = hide(spectrogram, real, frames, bands)
    mean = spectrogram[0, :5].mean()
    expected = spectrogram.clone()
    expected[0, 1] = expected[0, :5, 3] = mean
    torch.testing.assert_close(found, expected)
    backbone = load(hub(family))
    batch = batch_of(wave(8000))
    count = backbone.preprocessing["mel_bands"]
    none = {"hidden_frames": torch.zeros(1, 50, dtype=torch.bool), "hidden_bands": torch.zeros(1, count, dtype=bool)}
    plain = backbone(batch).pooled
    torch.testing.assert_close(backbone(batch.replace(inputs={**batch.inputs, **none})).pooled, plain)
    for key in none:
        some = {**batch.inputs, **none, key: none[key].clone()}
        some[key][:, 3:9] = True
        assert not torch.allclose(backbone(batch.replace(inputs=some)).pooled, plain, atol=1e-5)


def test_what_draws_by_itself_is_off(hub: Callable[[str], Path]) -> None:
    """Masks and dropped layers of the config would come from generators that no run seeds."""
    backbone = load(hub("wav2vec2"))
    config = backbone.network.config
    assert (config.apply_spec_augment, config.layerdrop) == (False, 0.0)
    assert any("masked_spec_embed" in name for name in backbone.retired)
    assert not any("embed_positions" in name for name, _ in load(hub("whisper")).named_parameters())


@pytest.mark.parametrize("family", ["whisper", "wav2vec2", "wavlm", "ast"])
def test_very_short_sounds(family: str, hub: Callable[[str], Path]) -> None:
    backbone: Backbone = load(hub(family))
    found = backbone(batch_of(wave(1), wave(50), wave(900)))
    assert bool(torch.isfinite(found.pooled).all())
    torch.testing.assert_close(backbone(batch_of(wave(50))).pooled[0], found.pooled[1], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "options", "sentence"),
    [
        ("whisper", {"max_seconds": 3.0}, r"max_seconds 3 is more than the 2 seconds"),
        ("ast", {"max_seconds": 9.0}, r"expected max_seconds from 0\.10 to 1\.01"),
        ("whisper", {"max_length": 9}, "max_length is for text"),
        ("hubert", {"image_size": 32}, "image_size is for pictures"),
        ("hubert", {"pooling": "cls"}, "no class token"),
    ],
)
def test_options_that_do_not_fit(family: str, options: Any, sentence: str, hub: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match=sentence):
        load(hub(family), **options)


def test_limits_are_recorded(hub: Callable[[str], Path]) -> None:
    assert load(hub("whisper")).preprocessing["max_seconds"] == 2.0
    assert load(hub("wavlm")).preprocessing["max_seconds"] == 30.0
    assert load(hub("wavlm"), max_seconds=1.5).preprocessing["max_seconds"] == 1.5


def test_settings_are_needed_and_other_modalities_refused(hub: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(hub("hubert"), folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match=r"no preprocessor_config\.json.*sampling_rate"):
        load(folder)
    load(folder, pretrained=False)
    with pytest.raises(BackboneError, match="reads audio, and the rows are image"):
        backbones.load(BackboneSpec(ref=f"file:{hub('whisper')}"), "image")
    with pytest.raises(BackboneError, match="reads image, and the rows are audio"):
        load(hub("vit"))
    with pytest.raises(BackboneError, match="no package of weights is the default for audio"):
        backbones.load(BackboneSpec(), "audio")
    with pytest.raises(BackboneError, match="max_seconds is for sounds"):
        backbones.load(BackboneSpec(ref=f"file:{hub('bert')}", max_seconds=1), "text")


def test_an_adapter_above_the_encoder_is_refused(hub: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "adapted"
    shutil.copytree(hub("wav2vec2"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "add_adapter": True}))
    with pytest.raises(BackboneError, match="an adapter above its encoder"):
        load(folder, pretrained=False)


@pytest.mark.parametrize("family", ["whisper", "ast"])
def test_fewer_blocks(family: str, hub: Callable[[str], Path], tmp_path: Path) -> None:
    backbone = load(hub(family), layers=2)
    assert len(backbone.blocks) == 2
    backbone.save_files(tmp_path)
    again = backbones.rebuild(json.loads(json.dumps(backbone.describe())), tmp_path)
    again.load_state_dict(backbone.state_dict(), strict=True)
    batch = batch_of(wave(8000))
    assert torch.equal(again.eval()(batch).pooled, backbone(batch).pooled)
