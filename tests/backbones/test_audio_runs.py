"""Whole runs on sounds: folder in, proven bundle out; methods on real audio networks with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headstart as hs
from headstart.cli import run
from headstart.evaluation.measure import shown

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

METHODS = ("freeze:decay=0.5", "lora:r=2", "adapter", "l2sp", "mixup", "fgm", "pgd:steps=1", "ema:decay=0.5")
METHODS += (
    "augment:share=1",
    "sam",
    "depth:rate=0.5",
    "dropout:attention=0.2",
    "dropout:attention=0.2+rdrop",
    "prune",
    "contrast",
)
RUNS = [("whisper", method) for method in METHODS]
RUNS += [("wav2vec2", method) for method in ("rdrop", "lora:r=2", "adapter", "augment:share=1", "fgm", "prune")]
RUNS += [("wavlm", method) for method in ("lora:r=2", "augment:share=1", "mixup")]
RUNS += [("ast", method) for method in ("lora:r=2", "augment:share=1", "adapter")]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of tones of a quarter to half a second: twelve of each to train on, four to test."""
    root = tmp_path_factory.mktemp("tones")
    draws = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for place, name in enumerate(("low", "middle", "high")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                rate = (8000, 16000)[number % 2]
                time = np.arange(int(rate * draws.uniform(0.25, 0.5))) / rate
                wave = 0.3 * np.sin(2 * np.pi * 300 * 2**place * time) + draws.normal(0, 0.02, len(time))
                soundfile.write(root / part / name / f"{number}.wav", wave, rate)
    return root


def test_a_folder_becomes_a_proven_bundle(
    sounds: Path, hub: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    arguments = ["fit", str(sounds), "--backbone", f"file:{hub('whisper')}", "--out", str(out), "--json"]
    assert run(arguments) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [stage["name"] for stage in report["stages"]] == ["probe"]
    assert report["metrics"]["test"]["accuracy"]["value"] > 0.5
    assert sorted(path.suffix for path in (out / "probe").iterdir()) == [".wav"] * 8
    assert "pipeline_tag: audio-classification" in (out / "README.md").read_text()
    model = hs.load(out)
    one = sounds / "test" / "high" / "0.wav"
    wave, rate = soundfile.read(one, dtype="float32")
    answers = model.outputs([str(one), one.read_bytes(), {"array": wave, "sampling_rate": rate}])
    np.testing.assert_allclose(answers[1:], answers[:2], rtol=1e-4, atol=1e-4)
    assert run(["predict", str(out), str(sounds / "test"), "--out", str(tmp_path / "p.csv")]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 13
    assert run(["evaluate", str(out), str(sounds / "test")]) == 0


def test_mistakes_can_be_played(sounds: Path, hub: Callable[[str], Path], tmp_path: Path) -> None:
    """Test labels that are the opposite of what was learned make mistakes certain."""
    paths = sorted(sounds.rglob("*.wav"))
    for name, turned in (("train", 0), ("test", 1)):
        lines = [f"{path},{('high' in str(path)) ^ turned}" for path in paths]
        (tmp_path / f"{name}.csv").write_text("\n".join(["audio,label", *lines]) + "\n")
    files = {"test": tmp_path / "test.csv", "backbone": f"file:{hub('whisper')}", "out": tmp_path / "run"}
    hs.fit(tmp_path / "train.csv", methods=[hs.methods.Freeze(probe=True)], **files)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<audio controls") == page.count("data:audio/wav;base64,") >= 1
    assert str(sounds / "test") in page
    assert shown(str(paths[0]))["audio"] == str(paths[0]) and "audio" not in shown(paths[0].read_bytes())
    assert shown("no file.wav") == {"text": "no file.wav"}


@pytest.mark.parametrize(("family", "method"), RUNS)
def test_methods_run_on_audio_networks(
    family: str, method: str, sounds: Path, hub: Callable[[str], Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"backbone": f"file:{hub(family)}", "methods": method.split("+"), "epochs": 1, "seed": 3}
    made = hs.fit(sounds, batch_size=12, learning_rate=1e-3, out=tmp_path / "run", **options)
    assert made.report is not None
    stage = made.report.to_json()["stages"][0]
    assert np.isfinite(stage["history"][-1]["loss"])
    assert not [note for note in made.report.to_json()["notes"] if "changed nothing" in note]
    again = hs.load(tmp_path / "run")
    np.testing.assert_allclose(again.outputs(made.probe_inputs), made.outputs(made.probe_inputs), atol=1e-5)


def test_the_missing_default_names_a_way_out(sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", str(sounds)]) == 2
    assert "--backbone hf:openai/whisper-tiny" in capsys.readouterr().err
