"""Bundles that borrow their backbone's weights answer as those that hold them, and say so when they cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import headstart as hs
from headstart.cli import run
from headstart.errors import BundleError

pytest.importorskip("peft")

TEXTS = ["where is my parcel", "refund please", "password lost", "parcel late", "my money back", "cannot sign in"]
LABELS = ["delivery", "refund", "login"] * 2


def fit(backbone: Path, method: str) -> hs.Bundle:
    return hs.fit(TEXTS * 3, LABELS * 3, backbone=f"file:{backbone}", methods=[method], epochs=3, learning_rate=0.01)


@pytest.fixture(scope="module")
def backbone(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path_factory.mktemp("light") / "bert"))


@pytest.fixture(scope="module")
def merged(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(backbone, "lora:r=2").save(tmp_path_factory.mktemp("light") / "merged")


@pytest.mark.parametrize("method", ["lora:r=2", "lora:r=3,alpha=9,rslora=true,merge=false", "freeze:probe"])
def test_a_light_bundle_answers_as_the_whole_one(method: str, backbone: Path, tmp_path: Path) -> None:
    whole = fit(backbone, method)
    whole.save(tmp_path / "whole")
    made = hs.lighten(tmp_path / "whole", tmp_path / "light")
    light = hs.load(tmp_path / "light")
    assert np.allclose(light.outputs(TEXTS), whole.outputs(TEXTS), atol=1e-5)
    names = set(load_file(tmp_path / "light" / "model.safetensors"))
    assert all("lora_" in name or name.startswith("head.") for name in names)
    assert any("lora_" in name for name in names) == method.startswith("lora")
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("light", "whole")]
    assert sizes[0] < sizes[1] / 2
    assert light.record["lineage"]["parent"] == whole.record["lineage"]["id"] and made.folder == tmp_path / "light"
    assert not any(name.startswith("adapter/") for name in light.files)
    assert light.report is not None
    light.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").stat().st_size == sizes[0]


def test_what_was_merged_really_was_in_the_weights(merged: Path, backbone: Path, tmp_path: Path) -> None:
    """So that the factors that come apart again are not zeros."""
    hs.lighten(merged, tmp_path / "light")
    probe = hs.load(tmp_path / "light")
    with torch.no_grad():
        for name, value in probe.model.named_parameters():
            if "lora_B" in name:
                value.zero_()
    assert np.abs(probe.outputs(TEXTS) - hs.load(merged).outputs(TEXTS)).max() > 1e-3


def test_a_backbone_that_learned_cannot_be_borrowed(backbone: Path, tmp_path: Path) -> None:
    for method, sentence in (
        ("freeze:top=1", "the backbone was changed beyond low-rank factors"),
        ("adapter", "this bundle holds adapter"),
        ("ia3", "this bundle holds IA3"),
        ("lora:dora=true", "the backbone was changed beyond low-rank factors"),
    ):
        folder = fit(backbone, method).save(tmp_path / method.partition(":")[0] / method[-2:])
        with pytest.raises(BundleError, match=sentence):
            hs.lighten(folder, tmp_path / "light")
        assert not (tmp_path / "light").exists()


def test_refusals_name_the_way_out(merged: Path, tmp_path: Path) -> None:
    hs.lighten(merged, tmp_path / "light")
    with pytest.raises(BundleError, match="is light already"):
        hs.lighten(tmp_path / "light", tmp_path / "lighter")
    with pytest.raises(BundleError, match="already holds a bundle; choose another folder or pass --overwrite"):
        hs.lighten(merged, tmp_path / "light")
    hs.lighten(merged, tmp_path / "light", overwrite=True)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    hs.export(merged, tmp_path / "exported")
    with pytest.raises(BundleError, match="an export holds its weights in a graph"):
        hs.lighten(tmp_path / "exported", tmp_path / "third")


def test_a_backbone_that_is_gone_or_another_is_said(merged: Path, backbone: Path, tmp_path: Path) -> None:
    hs.lighten(merged, tmp_path / "light")
    kept = backbone.rename(backbone.with_name("elsewhere"))
    try:
        with pytest.raises(BundleError, match=r"it borrows the weights of .* which cannot"):
            hs.load(tmp_path / "light")
        from transformers import BertConfig, BertModel

        shutil.copytree(kept, backbone)
        torch.manual_seed(1)
        BertModel(BertConfig.from_pretrained(kept)).save_pretrained(backbone)
        with pytest.raises(BundleError, match="install the version it was made with, or use the bundle"):
            hs.load(tmp_path / "light")
    finally:
        shutil.rmtree(backbone, ignore_errors=True)
        kept.rename(backbone)
    assert hs.load(tmp_path / "light").prove() < 1e-5


def test_the_command(merged: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(["lighten", str(merged), "--out", str(tmp_path / "light"), "--json"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "MB of weights before" in said[0] and said[1] == f"done: the bundle is in '{tmp_path / 'light'}'"
    assert json.loads(said[-1])["bytes"][0] > json.loads(said[-1])["bytes"][1]
    assert run(["lighten", str(tmp_path / "nothing"), "--out", str(tmp_path / "other")]) == 2


def test_light_and_whole_bundles_share_a_backbone_in_a_server(merged: Path, backbone: Path, tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    from headstart.serve.joining import House

    apart = fit(backbone, "lora:r=1,merge=false").save(tmp_path / "apart")
    hs.lighten(merged, tmp_path / "light")
    house = House()
    models: list[Any] = [house.read(folder)[0].model for folder in (tmp_path / "light", apart)]
    assert models[0].trunk is models[1].trunk
