"""The artefact: proof, tampering, moving, crashes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.errors import BundleError, ProofError

TEXTS = ["where is my parcel", "refund please", "password lost"]


@pytest.fixture(scope="module")
def saved(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"{text} {word}" for text in TEXTS for word in ("today", "please", "help", "still", "now", "again")]
    labels = [name for name in ("delivery", "refund", "login") for _ in range(6)]
    model = hs.fit(texts, labels, backbone=f"file:{tiny_bert}", methods=[hs.methods.Adapter()], epochs=2)
    return model.save(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """Another place than where the bundle was written."""
    shutil.copytree(saved, tmp_path / "moved")
    return tmp_path / "moved"


def test_a_moved_bundle_gives_identical_answers(saved: Path, copy: Path) -> None:
    first, second = hs.load(saved), hs.load(copy)
    assert np.array_equal(first.outputs(TEXTS), second.outputs(TEXTS))
    assert first.predict(TEXTS) == second.predict(TEXTS)
    assert second.prove() == 0.0
    assert second.report is not None


def test_surgery_that_stays_is_repeated_on_load(saved: Path) -> None:
    loaded = hs.load(saved)
    assert any("adapter" in name for name in loaded.model.state_dict())
    assert json.loads((saved / "bundle.json").read_text())["surgery"][0]["name"] == "adapter"


@pytest.mark.parametrize("name", ["model.safetensors", "probe.safetensors", "backbone/config.json", "probe/texts.json"])
def test_a_cut_short_file_is_detected(copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="cut short or altered"):
        hs.load(copy)


def test_an_altered_byte_is_detected(copy: Path) -> None:
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="sha256 differs"):
        hs.load(copy)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks 'model.safetensors'"),
        (lambda folder: (folder / "bundle.json").unlink(), "holds no bundle.json"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "cut short"),
        (lambda folder: (folder / "bundle.json").write_text('{"format": 99, "files": {}}'), "format 99"),
        (lambda folder: shutil.rmtree(folder), "there is no bundle"),
    ],
)
def test_half_a_bundle_does_not_load(copy: Path, change, sentence: str) -> None:  # type: ignore[no-untyped-def]
    change(copy)
    with pytest.raises(BundleError, match=sentence):
        hs.load(copy)


def test_a_model_that_answers_differently_fails_its_proof(saved: Path) -> None:
    model = hs.load(saved)
    with torch.no_grad():
        model.model.head.bias.add_(torch.tensor([0.5, 0.0, 0.0]))
    with pytest.raises(ProofError, match="no longer answers as it did"):
        model.prove()


def test_a_crash_while_saving_leaves_nothing_that_loads(saved: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model = hs.load(saved)

    def crash(folder: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(model.model.backbone, "save_files", crash)
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "half")
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        hs.load(tmp_path / "half")


def test_saving_over_a_bundle_needs_a_word(saved: Path) -> None:
    with pytest.raises(BundleError, match="already holds a bundle"):
        hs.load(saved).save(saved)


def test_predict_wants_rows_and_takes_none(saved: Path) -> None:
    model = hs.load(saved)
    assert model.predict([]) == []
    with pytest.raises(BundleError, match=r"predict\(\[text\]\)"):
        model.predict("one text")


def test_batched_equals_alone(saved: Path) -> None:
    model = hs.load(saved)
    rows = [*TEXTS, "a", " ".join(["order"] * 40)]
    alone = np.concatenate([model.outputs([row]) for row in rows])
    assert np.abs(model.outputs(rows) - alone).max() < 1e-5
