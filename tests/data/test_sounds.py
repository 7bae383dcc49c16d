"""Folders and columns of sounds: reading, inference, and rows that cannot be used."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headstart import data
from headstart.data import sounds
from headstart.data.read import read
from headstart.errors import DataError, MissingExtra
from headstart.spec import Spec

soundfile = pytest.importorskip("soundfile")


def encoded(wave: Any, rate: int = 8000, form: str = "WAV", subtype: str | None = None) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, np.asarray(wave, dtype=np.float32), rate, subtype, format=form)
    return sink.getvalue()


def noise(seed: int, size: int = 2000) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.4, 0.4, size).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of twelve sounds in three formats and rates."""
    for place, name in enumerate(("low", "high")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(12):
            form = ("WAV", "FLAC", "OGG")[number % 3]
            content = encoded(noise(100 * place + number), (8000, 16000, 22050)[number % 3], form)
            (tmp_path / "set" / name / f"{number}.{form.lower()}").write_bytes(content)
    return tmp_path / "set"


def load(train: Path, **more: Any) -> data.Data:
    return data.load(Spec.make(data={"train": str(train), **more}))


def test_a_folder_of_class_folders(folder: Path) -> None:
    table = read(folder)
    assert (table.format, table.table.column_names, table.table.num_rows) == ("sounds", ["audio", "label"], 24)
    loaded = load(folder)
    assert (loaded.columns.modality, loaded.columns.task) == ("audio", "classification")
    assert "the input is the audio column 'audio'" in loaded.said
    assert loaded.rows.adds_up and not loaded.rows.dropped
    first = loaded.train.inputs()[0]
    assert isinstance(first, str) and Path(first).is_file()
    sizes = next(finding.message for finding in loaded.findings if finding.code == "sizes")
    assert sizes.startswith("train sounds last 0.1 s at the median, from 0.1 to 0.2 s")


def test_splits_and_single_sounds(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    folder.rename(tmp_path / "both" / "train")
    assert read(tmp_path / "both").splits is not None
    single = read(tmp_path / "both" / "train" / "low" / "0.wav")
    assert single.table.to_pydict() == {"audio": ["0.wav"]}


def test_a_column_of_paths_or_bytes(folder: Path, tmp_path: Path) -> None:
    paths = sorted(str(path.relative_to(tmp_path)) for path in folder.rglob("*.*"))
    lines = [f"{path},{path.split('/')[1]}" for path in paths]
    (tmp_path / "t.csv").write_text("\n".join(["clip,kind", *lines]) + "\n")
    assert load(tmp_path / "t.csv").columns.modality == "audio"
    contents = [(tmp_path / path).read_bytes() for path in paths]
    pairs = [{"bytes": content, "path": None} for content in contents]
    for column in (contents, pairs):
        made = data.from_memory(pa.table({"x": column, "label": ["a", "b"] * 12}))
        assert (made.columns.modality, made.columns.input) == ("audio", "x")
        assert isinstance(made.train.inputs()[0], bytes)


def test_sounds_in_memory() -> None:
    values = [{"array": noise(seed), "sampling_rate": 8000} for seed in range(24)]
    made = data.from_memory(values, ["a", "b"] * 12)
    assert made.columns.modality == "audio"
    wave, rate = soundfile.read(io.BytesIO(made.train.inputs()[0]), dtype="float32")
    assert rate == 8000 and len(wave) == 2000
    with pytest.raises(DataError, match="sound 1 has numbers of type int64"):
        data.from_memory([{"array": np.zeros(9, np.int64), "sampling_rate": 8000}] * 4, ["a", "b"] * 2)


def test_one_sound_column_must_be_named_where_there_are_two(folder: Path, tmp_path: Path) -> None:
    paths = sorted(str(path.relative_to(tmp_path)) for path in folder.rglob("*.*"))
    lines = [f"{path},{path},{place % 2}" for place, path in enumerate(paths)]
    (tmp_path / "t.csv").write_text("\n".join(["one,two,label", *lines]) + "\n")
    with pytest.raises(DataError, match="--audio one or --audio two"):
        load(tmp_path / "t.csv")
    assert load(tmp_path / "t.csv", audio="two").columns.input == "two"
    with pytest.raises(DataError, match=r"both an image column \('one'\) and an audio column \('two'\)"):
        load(tmp_path / "t.csv", audio="two", image="one")


def test_pictures_and_sounds_in_one_folder(folder: Path) -> None:
    (folder / "low" / "cover.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"holds pictures and sounds .*: keep one kind"):
        read(folder)


def test_loose_sounds_beside_class_folders(folder: Path) -> None:
    (folder / "stray.wav").write_bytes(encoded(noise(9)))
    with pytest.raises(DataError, match=r"1 sound beside them, such as 'stray\.wav'"):
        read(folder)


BAD = {
    "empty file": (b"", sounds.EMPTY_SOUND),
    "text": (b"hello, this is no sound", sounds.BROKEN),
    "cut wav": (encoded(noise(1))[:-900], sounds.BROKEN),
    "cut flac": (encoded(noise(1, 20000), form="FLAC")[:-9000], sounds.BROKEN),
    "cut ogg": (encoded(noise(1, 20000), form="OGG")[:-2000], sounds.BROKEN),
    "no samples": (encoded(np.zeros(0)), sounds.EMPTY_SOUND),
    "zeros": (encoded(np.zeros(4000)), sounds.SILENT),
    "constant": (encoded(np.full(4000, 0.3)), sounds.SILENT),
    "not numbers": (encoded(np.array([0.1, np.nan, 0.2]), subtype="FLOAT"), sounds.BROKEN),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_sounds_stop_the_run_or_are_left_out(name: str, folder: Path) -> None:
    content, reason = BAD[name]
    (folder / "low" / "bad.wav").write_bytes(content)
    with pytest.raises(DataError, match=rf"{reason} in 1 row .*--on-bad-row skip"):
        load(folder)
    loaded = load(folder, on_bad_row="skip")
    assert loaded.rows.dropped == {reason: 1} and loaded.rows.adds_up


def test_a_missing_file(folder: Path, tmp_path: Path) -> None:
    lines = [f"set/low/{number}.wav,{number % 2}" for number in (0, 3, 6, 9)]
    (tmp_path / "t.csv").write_text("\n".join(["audio,label", *lines, "set/low/none.wav,1"]) + "\n")
    with pytest.raises(DataError, match=r"audio file missing in 1 row .*there is no 'set/low/none\.wav'"):
        load(tmp_path / "t.csv")


def test_a_huge_sound_is_refused_before_it_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "MAX_VALUES", 1500)
    found = sounds.look(encoded(noise(1)), Path())
    assert found.problem == sounds.HUGE and "cut it into clips" in found.detail


def test_an_open_size_in_the_header_is_no_cut() -> None:
    """Programs that write to a pipe cannot go back to fill in the size."""
    whole = encoded(noise(1))
    streamed = whole[:4] + struct.pack("<I", 0xFFFFFFFF) + whole[8:]
    assert sounds.cut_short(whole) == "" == sounds.cut_short(streamed)
    assert sounds.cut_short(whole[:-100]).startswith("cut short")


def test_equal_sounds_are_found(folder: Path) -> None:
    (folder / "low" / "again.wav").write_bytes((folder / "low" / "0.wav").read_bytes())
    messages = [finding.message for finding in load(folder).findings if finding.code == "duplicates"]
    assert messages == [] or "the sound repeats that of an earlier row" in messages[0]
    assert any(finding.code in ("duplicates", "leakage") for finding in load(folder).findings)


def test_without_the_library_the_pip_command_is_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(MissingExtra, match=r"headstart\[audio\]"):
        load(folder)
