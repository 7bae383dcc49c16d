"""Changes of sounds: each compared with its definition, written the slow way."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from method_helpers import make_batch, make_context, make_model

from headstart.errors import MethodError
from headstart.methods._audio_augment import at_speed, loudness, shifted, spans
from headstart.methods.augment import Augment
from headstart.values import Batch

OFF: dict[str, Any] = {"speed": 0, "shift": 0, "snr": 0, "gain": 0, "bands": 0, "gaps": 0, "share": 1.0}


def changed(seed: int = 1, batch: Batch | None = None, mel: int | None = None, **options: Any) -> tuple[Batch, Batch]:
    method, model = Augment(**{**OFF, **options}), make_model("audio")
    if mel is not None:
        model.backbone.preprocessing = {**model.backbone.preprocessing, "mel_bands": mel, "hop": 10}
    ctx = make_context("audio", seed)
    before = batch or make_batch("audio")
    method.adapt(model, ctx)
    return before, method.transform(before, ctx)


def own(batch: Batch) -> list[torch.Tensor]:
    return [row[:length] for row, length in zip(batch.inputs["wave"], batch.inputs["lengths"].tolist(), strict=True)]


def test_what_is_not_the_sound_stays() -> None:
    before = make_batch("audio").replace(origin=torch.tensor([0, 1, 0, 2, 1, 0]))
    before, after = changed(batch=before, speed=0.1, shift=0.1, snr=10, gain=6, bands=1, gaps=1)
    assert torch.equal(after.origin, before.origin) and torch.equal(after.weight, before.weight)
    assert before.labels is not None and after.labels is not None and torch.equal(after.labels, before.labels)
    assert not torch.equal(after.inputs["wave"][:, :100], before.inputs["wave"][:, :100])
    wave, lengths = after.inputs["wave"], after.inputs["lengths"]
    assert wave.shape[1] == int(lengths.max())
    assert bool((wave[torch.arange(wave.shape[1]) >= lengths[:, None]] == 0).all())
    again = changed(batch=before, speed=0.1, shift=0.1, snr=10, gain=6, bands=1, gaps=1)[1]
    assert torch.equal(again.inputs["wave"], wave)
    other = changed(2, batch=before, speed=0.1, shift=0.1, snr=10, gain=6, bands=1, gaps=1)[1]
    assert other.inputs["wave"].shape != wave.shape or not torch.equal(other.inputs["wave"], wave)


def test_a_faster_tone_is_shorter_and_higher() -> None:
    """x(t) -> x(factor * t), sampled anew."""
    time = torch.arange(1000) / 1000
    window = torch.hann_window(1000)
    for factor in (0.9, 1.1):
        found = at_speed(window * torch.sin(2 * math.pi * 80 * time), factor)
        place = torch.arange(len(found)) * (1000 / len(found))
        expected = (0.5 - 0.5 * torch.cos(2 * math.pi * place / 1000)) * torch.sin(2 * math.pi * 80 * place / 1000)
        assert len(found) == round(1000 / factor)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    sound = torch.randn(50)
    assert at_speed(sound, 1.0) is sound


def test_speeds_are_three_and_slow_rows_are_cut_at_the_limit() -> None:
    rows = 60
    wave = torch.randn(rows, 380, generator=torch.Generator().manual_seed(0))
    batch = Batch(
        {"wave": wave, "lengths": torch.full((rows,), 380)}, None, torch.ones(rows), *[torch.arange(rows)] * 2
    )
    batch = batch.replace(origin=torch.zeros(rows, dtype=torch.int64))
    _, after = changed(batch=batch, speed=0.1)
    # 380 / 0.9 = 422 samples are more than the 400 that the backbone takes.
    assert set(after.inputs["lengths"].tolist()) == {400, 380, 345}


def test_a_shift_loses_one_end_and_silences_the_other() -> None:
    sound = torch.arange(1.0, 7.0)
    assert shifted(sound, 2).tolist() == [0, 0, 1, 2, 3, 4]
    assert shifted(sound, -2).tolist() == [3, 4, 5, 6, 0, 0]
    assert shifted(sound, 0) is sound and shifted(sound, -9).tolist() == [0] * 6
    before, after = changed(shift=0.2)
    for old, new in zip(own(before), own(after), strict=True):
        reach = round(0.2 * len(old))
        assert any(torch.equal(new, shifted(old, by)) for by in range(-reach, reach + 1))


def test_noise_has_the_ratio_that_was_drawn() -> None:
    rows = 40
    wave = torch.randn(rows, 4000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.01, 1, rows)[:, None]
    lengths = torch.full((rows,), 3000)
    wave[:, 3000:] = 0
    zeros = torch.zeros(rows, dtype=torch.int64)
    batch = Batch({"wave": wave, "lengths": lengths}, None, torch.ones(rows), zeros, zeros)
    model = make_model("audio")
    model.backbone.preprocessing = {**model.backbone.preprocessing, "max_seconds": 9.0}
    method = Augment(**{**OFF, "snr": 5})
    ctx = make_context("audio")
    method.adapt(model, ctx)
    after = method.transform(batch, ctx)
    noise = after.inputs["wave"] - wave[:, :3000]
    ratio = 20 * (loudness(wave, lengths) / loudness(noise, lengths)).log10()
    assert 4.5 < float(ratio.min()) < 9 and 21 < float(ratio.max()) < 25.5
    torch.testing.assert_close(loudness(wave, lengths)[0], wave[0, :3000].square().mean().sqrt())


def test_a_gain_stays_within_its_bounds() -> None:
    before, after = changed(gain=6)
    for old, new in zip(own(before), own(after), strict=True):
        factor = float((new * old).sum() / old.square().sum())
        torch.testing.assert_close(new, old * factor)
        assert 10 ** (-6 / 20) <= factor <= 10 ** (6 / 20) and factor != 1


def test_spans_are_drawn_as_the_paper_says() -> None:
    """t even in [0, T], t0 even in [0, size - t), each end reached."""
    sizes = torch.full((4000,), 10)
    found = spans(sizes, 1, 0.3, 12, torch.Generator().manual_seed(0))
    assert not bool(found[:, 10:].any())
    long = found.sum(1)
    counts = torch.bincount(long, minlength=4) / 4000
    torch.testing.assert_close(counts, torch.full((4,), 0.25), atol=0.03, rtol=0)
    for t in (1, 2, 3):
        starts = found[long == t].float().argmax(1)
        share = torch.bincount(starts, minlength=10 - t) / len(starts)
        torch.testing.assert_close(share, torch.full((10 - t,), 1 / (10 - t)), atol=0.05, rtol=0)
    assert not bool(spans(sizes, 0, 0.3, 12, torch.Generator()).any())
    assert int(spans(sizes, 2, 0.3, 12, torch.Generator().manual_seed(0)).sum(1).max()) > 3


def test_spectrograms_are_hidden_by_the_backbone_and_waves_here() -> None:
    before, after = changed(mel=24, bands=1, band=0.5, gaps=1, gap=0.5)
    assert torch.equal(after.inputs["wave"], before.inputs["wave"])
    frames, bands = after.inputs["hidden_frames"], after.inputs["hidden_bands"]
    count = -(-int(before.inputs["lengths"].max()) // 10)
    assert frames.shape == (6, count) and bands.shape == (6, 24)
    assert bool(frames.any()) and bool(bands.any()) and not bool(frames.all(1).any())
    before, after = changed(gaps=1, gap=0.5)
    assert set(after.inputs) == {"wave", "lengths"}
    for old, new in zip(own(before), own(after), strict=True):
        silent = new == 0
        assert torch.equal(new[~silent], old[~silent])
        assert int(silent.sum()) <= len(old) / 2 + 10


def test_a_hidden_band_of_a_wave_is_filtered_out() -> None:
    """Of two tones the one inside the band goes and the other stays."""
    time = torch.arange(400) / 1000
    low, high = (0.1 * torch.sin(2 * math.pi * hertz * time) for hertz in (50, 400))
    rows = 12
    wave = (low + high).repeat(rows, 1)
    zeros = torch.zeros(rows, dtype=torch.int64)
    batch = Batch({"wave": wave, "lengths": torch.full((rows,), 400)}, None, torch.ones(rows), zeros, zeros)
    _, after = changed(batch=batch, bands=1, band=0.4)
    kept = set()
    for row in after.inputs["wave"]:
        shares = [float((row * tone).sum() / tone.square().sum()) for tone in (low, high)]
        assert all(min(abs(share), abs(share - 1)) < 0.02 for share in shares)
        kept.add(tuple(round(share) for share in shares))
    assert {(1, 1), (1, 0), (0, 1)} >= kept and len(kept) > 1


def test_a_share_of_rows_is_changed() -> None:
    rows = 200
    wave = torch.ones(rows, 50)
    zeros = torch.zeros(rows, dtype=torch.int64)
    batch = Batch({"wave": wave, "lengths": torch.full((rows,), 50)}, None, torch.ones(rows), zeros, zeros)
    _, after = changed(batch=batch, gain=6, share=0.3)
    assert 35 < int((after.inputs["wave"] != 1).all(1).sum()) < 85
    assert bool(((after.inputs["wave"] != 1).all(1) | (after.inputs["wave"] == 1).all(1)).all())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"speed": 0.9}, "augment:speed"),
        ({"snr": -3}, "augment:snr"),
        ({"gain": True}, "augment:gain"),
        ({"bands": 1.5}, "augment:bands"),
        ({"gap": 0}, "augment:gap"),
        ({"shift": 1.0}, "augment:shift"),
    ],
)
def test_bad_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MethodError, match=sentence):
        Augment(**options)


def test_options_of_other_inputs_and_nothing_at_all() -> None:
    with pytest.raises(MethodError, match="augment:flip does nothing to inputs of kind 'audio'"):
        Augment(flip=0.1).adapt(make_model("audio"), make_context("audio"))
    with pytest.raises(MethodError, match="augment:snr does nothing to inputs of kind 'text'"):
        Augment(snr=3).adapt(make_model(), make_context())
    with pytest.raises(MethodError, match="every sound operation"):
        Augment(**OFF).adapt(make_model("audio"), make_context("audio"))
