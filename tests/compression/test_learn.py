"""A finished model that is cut, healed or taught: smaller, saved and the same when loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from smaller import TEXTS

import headstart as hs
from headstart.compression.learn import _cut_options, learn, shortened
from headstart.compression.plan import Step, parse
from headstart.compression.quality import find_rows
from headstart.errors import BackboneError, BundleError, DataError, MethodError


def blocks(bundle: hs.Bundle) -> int:
    return sum(p.numel() for block in bundle.model.backbone.blocks for p in block.parameters())


def do(made: Path, plan: str, out: Path, source: hs.Bundle | None = None, **options: Any) -> hs.Bundle:
    source = source or hs.load(made / "bundle")
    (step,) = parse(plan)
    return learn(source, step, made / "bundle", out, rows=find_rows(source), **options)


def test_cut_at_once(made: Path, tmp_path: Path) -> None:
    source = hs.load(made / "bundle")
    before = source.outputs(TEXTS)
    cut = do(made, "prune:0.5,heal=0", tmp_path / "cut", source)
    again = hs.load(tmp_path / "cut")
    np.testing.assert_allclose(again.outputs(TEXTS), cut.outputs(TEXTS), atol=1e-6)
    np.testing.assert_array_equal(source.outputs(TEXTS), before)  # the start is left as it is
    assert blocks(again) < 0.6 * blocks(source)
    assert again.record["lineage"]["parent"] == source.record["lineage"]["id"]
    assert again.record["stages"] == source.record["stages"]
    assert again.report is not None and again.report["notes"][-1].startswith("This model was pruned without healing")
    measured = hs.evaluate(again, made / "test.csv")["metrics"]["accuracy"]["value"]
    assert again.report["metrics"]["test"]["accuracy"]["value"] == measured
    with pytest.raises(BundleError, match="was pruned already: prune the one that it was made from"):
        do(made, "prune:0.2,heal=0", tmp_path / "twice", again)


def test_the_share_is_of_the_weights_in_heads_and_inner_layers(made: Path) -> None:
    source = hs.load(made / "bundle")
    options = _cut_options(source, Step("prune", {"share": 0.4}))
    # Half of these blocks' weights are in their heads, half in their neurons: 0.267 / 2 + 0.533 / 2 = 0.4.
    assert options["heads"] == pytest.approx(0.267, abs=0.01) and options["neurons"] == pytest.approx(0.533, abs=0.01)
    assert _cut_options(source, Step("prune", {"neurons": 0.5, "kind": "magnitude"})) == {
        "neurons": 0.5, "kind": "magnitude",
    }  # fmt: skip


def test_cut_and_healed(made: Path, tmp_path: Path) -> None:
    healed = do(made, "prune:0.5", tmp_path / "healed", heal=1)
    again = hs.load(tmp_path / "healed")
    source = hs.load(made / "bundle")
    assert blocks(again) < 0.6 * blocks(source)
    assert again.record["lineage"]["parent"] == source.record["lineage"]["id"] and healed.report is not None
    (stage,) = again.record["spec"]["stages"]
    assert [method["name"] for method in stage["methods"]] == ["freeze", "prune", "distil", "ema"]
    assert stage["training"]["epochs"] == 1
    assert again.record["spec"]["data"]["train"] == str(made / "train.csv")
    assert "teacher.json" in again.files


def test_fewer_blocks_of_a_pruned_model_stay_pruned(made: Path, tmp_path: Path) -> None:
    cut = do(made, "prune:0.5,heal=0", tmp_path / "cut")
    student = do(made, "distil:layers=1,epochs=1", tmp_path / "student", cut)
    again = hs.load(tmp_path / "student")
    assert len(again.model.backbone.blocks) == 1 and len(cut.model.backbone.blocks) == 2
    last = cut.model.backbone.blocks[1]
    assert blocks(again) == sum(p.numel() for p in last.parameters()) < blocks(cut)
    np.testing.assert_allclose(again.outputs(TEXTS), student.outputs(TEXTS), atol=1e-6)
    assert again.record["lineage"]["parent"] == cut.record["lineage"]["id"]
    assert again.model.backbone.source["layers"] == [1]


def test_a_shortened_model_is_a_copy_with_the_last_block_of_each_part(made: Path) -> None:
    source = hs.load(made / "bundle")
    short = shortened(source, 1)
    kept, old = short.model.backbone.blocks[0].state_dict(), source.model.backbone.blocks[1].state_dict()
    assert len(source.model.backbone.blocks) == 2
    assert all(torch.equal(kept[name], old[name]) for name in old)
    with pytest.raises(BackboneError, match="has 2 blocks: expected at most 2"):
        shortened(source, 3)
    source.record["surgery"] = [{"name": "lora", "options": {}}]
    with pytest.raises(MethodError, match="cannot shorten a model that holds the layers of 'lora'"):
        shortened(source, 1)


def test_training_rows_that_are_gone(made: Path, tmp_path: Path) -> None:
    source = hs.load(made / "bundle")
    source.record["spec"]["data"]["train"] = str(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"no longer at .*gone\.csv': give training rows, as --train FILE"):
        do(made, "prune:0.5", tmp_path / "out", source)
    cut = do(made, "prune:0.5,heal=0", tmp_path / "out", source, train=str(made / "train.csv"))
    assert blocks(cut) < blocks(source)
    source.record["spec"]["data"]["train"] = None
    with pytest.raises(DataError, match="were not in a file: give training rows, as --train FILE"):
        do(made, "prune:0.5", tmp_path / "other", source)


def test_options_that_a_step_does_not_have(made: Path, tmp_path: Path) -> None:
    for plan in ("prune:0.4,heal=0,kinds=taylor", "prune:0.4,heal=1,kinds=taylor"):
        with pytest.raises(MethodError, match="method 'prune' has no option 'kinds': did you mean 'kind'"):
            do(made, plan, tmp_path / "out")


def test_a_network_that_nothing_can_be_cut_out_of(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.methods.prune.find", lambda backbone: [])
    with pytest.raises(MethodError, match="no heads, neurons or channels can be cut out of"):
        _cut_options(hs.load(made / "bundle"), Step("prune", {"share": 0.4}))
