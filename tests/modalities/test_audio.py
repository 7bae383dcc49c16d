"""Sounds: decoding, resampling, cutting, padding, what cannot be read, and what a bundle keeps."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from headstart.errors import DataError, MissingExtra
from headstart.modalities.audio import AudioModality

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def backbone(rate: int = 1000, seconds: float = 1.0, modality: str = "audio") -> Any:
    return SimpleNamespace(
        modality=modality, ref="tiny", preprocessing={"sample_rate": rate, "max_seconds": seconds, "hop": None}
    )


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(wave: np.ndarray, rate: int, form: str = "WAV", subtype: str | None = None) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, wave, rate, subtype, format=form)
    return sink.getvalue()


def test_its_name_and_kind() -> None:
    assert (AudioModality.name, AudioModality.continuous, AudioModality.probe_suffix) == ("audio", True, ".wav")
    with pytest.raises(DataError, match="reads text"):
        AudioModality().prepare([], backbone(modality="text"))


def test_every_form_of_a_sound_gives_the_same_wave(tmp_path: Path) -> None:
    wave = tone(50, 0.3, 1000)
    (tmp_path / "a.wav").write_bytes(encoded(wave, 1000, subtype="FLOAT"))
    values = [
        str(tmp_path / "a.wav"),
        tmp_path / "a.wav",
        (tmp_path / "a.wav").read_bytes(),
        {"bytes": (tmp_path / "a.wav").read_bytes(), "path": None},
        {"path": str(tmp_path / "a.wav"), "bytes": None},
        {"array": wave, "sampling_rate": 1000},
        {"array": np.stack([wave * 2, wave * 0], 1), "sampling_rate": 1000},
    ]
    prepared = AudioModality().prepare(values, backbone())
    taken = prepared.take(range(len(values)))
    assert taken["lengths"].tolist() == [300] * len(values)
    for row in taken["wave"]:
        torch.testing.assert_close(row, torch.from_numpy(wave), atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_mixed_rates_and_formats_become_one(form: str) -> None:
    """A tone resampled is the tone sampled at the new rate, away from the ends."""
    sounds = [encoded(tone(50, 0.5, rate), rate, form) for rate in (8000, 16000, 44100)]
    taken = AudioModality().prepare(sounds, backbone(rate=4000)).take([0, 1, 2])
    assert taken["lengths"].tolist() == [2000] * 3
    expected = torch.from_numpy(tone(50, 0.5, 4000))
    for row in taken["wave"]:
        torch.testing.assert_close(row[200:-200], expected[200:-200], atol=0.02, rtol=0)


def test_rows_are_cut_and_padded_on_the_right() -> None:
    waves = [np.full(size, 0.1 * (place + 1), np.float32) for place, size in enumerate((40, 1200, 700))]
    prepared = AudioModality().prepare([{"array": wave, "sampling_rate": 1000} for wave in waves], backbone())
    assert prepared.lengths.tolist() == [40, 1000, 700]
    assert prepared.lengths.dtype == np.int32
    assert (len(prepared), prepared.truncated) == (3, 1)
    taken = prepared.take([2, 0])
    assert taken["wave"].shape == (2, 700) and taken["wave"].dtype == torch.float32
    assert taken["lengths"].tolist() == [700, 40] and taken["lengths"].dtype == torch.int64
    assert torch.all(taken["wave"][1, :40] == 0.1) and torch.all(taken["wave"][1, 40:] == 0)


def test_a_summary_says_how_long_and_how_loud() -> None:
    sounds = [{"array": np.full(500, value, np.float32), "sampling_rate": 1000} for value in (1.0, 0.1, 0.0)]
    found = AudioModality().summary(sounds)
    np.testing.assert_allclose(found["seconds"], [0.5] * 3)
    np.testing.assert_allclose(found["loudness"], [0, -20, -120], atol=1e-4)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("missing.wav", r"row 1 \('missing.wav'\): there is no such file"),
        (b"not a sound", "row 1: cannot be read as a sound"),
        (3.5, "row 1: expected a sound as a path, bytes, .* received float"),
        ({"array": np.zeros((2, 2, 2)), "sampling_rate": 8000}, r"row 1: expected samples.*\(2, 2, 2\)"),
        ({"array": np.zeros(0), "sampling_rate": 8000}, "row 1: expected samples"),
        ({"array": np.array([0.1, np.nan]), "sampling_rate": 8000}, "row 1: holds values that are not numbers"),
        ({"array": np.ones(4), "sampling_rate": 0}, "row 1: expected a sampling rate above 0"),
    ],
)
def test_what_cannot_be_read_names_its_row(value: Any, sentence: str) -> None:
    good = {"array": tone(50, 0.1, 1000), "sampling_rate": 1000}
    with pytest.raises(DataError, match=sentence):
        AudioModality().prepare([good, value], backbone())


def test_a_stored_probe_is_the_first_seconds_at_the_sounds_own_rate() -> None:
    stored = AudioModality().probe({"array": tone(50, 6, 3000), "sampling_rate": 3000})
    wave, rate = soundfile.read(io.BytesIO(stored), dtype="float32")
    assert (len(wave), rate) == (12000, 3000)
    np.testing.assert_allclose(wave, tone(50, 4, 3000), atol=1e-4)


@pytest.mark.parametrize("name", ["soundfile", "soxr"])
def test_a_missing_library_gives_the_pip_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = encoded(tone(50, 0.1, 2000), 2000)
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtra, match=rf"{name}, which is not installed: pip install 'headstart\[audio\]'"):
        AudioModality().prepare([sound], backbone())
