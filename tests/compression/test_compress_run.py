"""Ways to a smaller model side by side: every step a bundle, nothing done twice, a gate, a table and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from smaller import TEXTS

import headstart as hs
from headstart.cli import run
from headstart.compression import run as runs
from headstart.compression.run import Compression, Row
from headstart.compression.timing import Speed
from headstart.errors import BundleError, DataError, SpecError

pytest.importorskip("onnxruntime", reason="needs the onnx extra")
pytest.importorskip("onnxscript", reason="needs the onnx extra")
# The exporter's own use of torch and onnx_ir.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "UserWarning", "FutureWarning")
]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds that do not depend on the machine: each model twice as fast as the one before."""

    def in_turn(models: dict[str, Any], inputs: Any) -> dict[str, Speed]:
        return {name: Speed(8 / 2**i, 10.0 * 2**i, 2.0**i, 2.0**i) for i, name in enumerate(models)}

    monkeypatch.setattr(runs, "in_turn", in_turn)


@pytest.fixture(scope="module")
def folder(made: Path) -> Path:
    """Two ways that share their first step."""
    plans = ["prune:0.5,heal=0 int8", "prune:0.5,heal=0 distil:layers=1,epochs=1"]
    said: list[str] = []

    def listen(event: str, figures: Any) -> None:
        if event == "stage":
            said.append(figures["name"])

    hs.compress(made / "bundle", made / "ways", plans, gate="99%", listen=listen)
    assert said == ["prune:0.5,heal=0", "prune:0.5,heal=0 int8", "prune:0.5,heal=0 distil:layers=1,epochs=1"]
    return made / "ways"


def test_each_step_is_a_bundle_with_its_figures(made: Path, folder: Path) -> None:
    found = json.loads((folder / "compress.json").read_text(encoding="utf-8"))
    start, cut, eight, student = found["table"]
    assert [row["name"] for row in found["table"]] == [
        "start", "prune:0.5,heal=0", "prune:0.5,heal=0 int8", "prune:0.5,heal=0 distil:layers=1,epochs=1",
    ]  # fmt: skip
    lineage = {}
    for row in found["table"]:
        bundle = hs.load(row["folder"])
        lineage[row["name"]] = bundle.record["lineage"]
        measured = hs.evaluate(bundle, made / "test.csv")["metrics"]["accuracy"]["value"]
        assert row["value"] == measured and row["test"] is None  # the test rows are those that choose
        assert row["loss"] == pytest.approx(start["value"] - row["value"])
        assert row["state"] == "done" and row["latency_ms"] > 0 and row["rows_per_second"] > 0
    assert lineage[cut["name"]]["parent"] == lineage["start"]["id"]
    assert lineage[eight["name"]]["parent"] == lineage[student["name"]]["parent"] == lineage[cut["name"]]["id"]
    assert start["parameters"] > cut["parameters"] > student["parameters"] > eight["parameters"] == 0
    assert start["bytes"] > cut["bytes"] > eight["bytes"]
    best = next(row for row in found["table"] if row["best"])
    assert best["name"] == found["best"]
    assert hs.load(folder / "best").predict(TEXTS) == hs.load(best["folder"]).predict(TEXTS)
    page = (folder / "compress.html").read_text(encoding="utf-8")
    assert all(row["name"] in page for row in found["table"]) and "<svg" in page


def test_steps_that_are_there_are_not_done_again(
    made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, timed: None
) -> None:
    def never(*args: Any, **more: Any) -> None:
        raise AssertionError("this was done already")

    monkeypatch.setattr(runs, "learn", never)
    monkeypatch.setattr("headstart.compression.graph.quantised", never)
    before = json.loads((folder / "compress.json").read_text(encoding="utf-8"))
    plans = ["prune:0.5,heal=0 int8", "prune:0.5,heal=0 distil:layers=1,epochs=1"]
    again = hs.compress(made / "bundle", folder, plans, gate="99%")
    for old, new in zip(before["table"], again.to_json()["table"], strict=True):
        assert {k: old[k] for k in ("name", "value", "loss", "bytes")} == {
            k: new[k] for k in ("name", "value", "loss", "bytes")
        }
    with pytest.raises(AssertionError, match="done already"):  # another gate may leave other layers alone
        hs.compress(made / "bundle", folder, plans, gate="98%")
    assert again.best == again.table[-1].name  # the fastest by these speeds


def test_the_gate_ends_a_line_with_its_figure_and_the_others_go_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    real = runs.learn

    def ruined(*args: Any, **more: Any) -> hs.Bundle:
        model = real(*args, **more)
        model.model.head.weight.data.neg_()
        model.probe_outputs = model.outputs(model.probe_inputs)
        model.save(args[3], overwrite=True)
        return model

    monkeypatch.setattr(runs, "learn", ruined)
    out = tmp_path / "out"
    plan = ["--plan", "prune:0.5,heal=0 onnx", "--plan", "onnx", "--plan", "prune:0.5,heal=0,gate=off onnx:gate=off"]
    assert run(["compress", str(made / "bundle"), "--out", str(out), *plan, "--gate", "2%", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out.strip().splitlines()[-1])
    states = {row["name"]: row["state"] for row in found["table"]}
    assert states == {
        "start": "done", "prune:0.5,heal=0": "stopped", "onnx": "done",
        "prune:0.5,heal=0,gate=off": "done", "prune:0.5,heal=0,gate=off onnx:gate=off": "done",
    }  # fmt: skip
    stopped = found["table"][1]
    assert stopped["loss"] > 0.02 and f"{100 * stopped['loss']:.2f} % worse" in stopped["reason"]
    assert "and the gate is 2.00 %; the line ends here" in stopped["reason"]
    # A gate of its own lets a step pass; `best` keeps to the gate of all.
    assert found["best"] == "onnx"
    assert "stopped by the gate" in printed.err and "onnx" in printed.err


def test_a_step_that_cannot_be_done_is_said_and_the_others_go_on(made: Path, tmp_path: Path, timed: None) -> None:
    found = hs.compress(made / "bundle", tmp_path / "out", ["distil:layers=9 int8", "prune:0.3,heal=0"], gate="99%")
    start, failed, cut = found.table
    assert (failed.name, failed.state, cut.state) == ("distil:layers=9", "failed", "done")
    assert "has 2 blocks: expected at most 2" in failed.reason and failed.value is None
    assert start.frontier or cut.frontier
    said = "\n".join(runs.lines(found))
    assert "distil:layers=9" in said and "failed: " in said


def test_a_share_alone_is_a_plan_and_the_test_rows_are_measured_beside(made: Path, tmp_path: Path, timed: None) -> None:
    source = hs.load(made / "bundle")
    few = tmp_path / "few.csv"
    few.write_text("\n".join((made / "test.csv").read_text(encoding="utf-8").splitlines()[:7]), encoding="utf-8")
    source.record["spec"]["data"]["validation"] = str(few)
    found = hs.compress(source, tmp_path / "out", prune=0.5, heal_epochs=0, gate="99%")
    measured = hs.evaluate(tmp_path / "out" / "steps" / "prune-0.5", made / "test.csv")["metrics"]["accuracy"]["value"]
    assert found.rows == 6 and found.table[1].test == measured
    assert found.plans == ["prune:0.5"] and [row.name for row in found.table] == ["start", "prune:0.5"]
    assert found.table[1].parameters < found.table[0].parameters


def test_a_model_that_lies_nowhere_is_saved_as_the_start(made: Path, tmp_path: Path, timed: None) -> None:
    model = hs.load(made / "bundle")
    model.folder = None
    hs.compress(model, tmp_path / "out", prune=0.5, heal_epochs=0, gate="99%")
    start = hs.load(tmp_path / "out" / "steps" / "start")
    assert start.record["lineage"] == model.record["lineage"]
    cut = hs.load(tmp_path / "out" / "steps" / "prune-0.5")
    assert cut.record["lineage"]["parent"] == model.record["lineage"]["id"]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({}, SpecError, "expected a plan such as 'prune:0.4 int8', or a share to prune, received neither"),
        ({"plan": "prune:0.4", "heal_epochs": -1}, SpecError, "expected epochs to heal of at least 0, received -1"),
        ({"plan": "shrink"}, SpecError, "there is no step 'shrink' to compress by"),
        ({"plan": "int8", "gate": "lots"}, SpecError, "expected a gate from 0 to 1"),
        ({"plan": "int8", "rows": "missing.csv"}, DataError, "missing.csv"),
        ({"plan": "int8", "task": "topic"}, BundleError, "there is no task 'topic' in this model"),
        ({"prune": 0.9}, SpecError, "expected a share to prune above 0 and up to 0.8"),
    ],
)
def test_bad_options(made: Path, tmp_path: Path, options: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as caught:
        hs.compress(made / "bundle", tmp_path / "out", **options)
    assert sentence in str(caught.value) and not (tmp_path / "out").exists()


def test_bad_bundles(made: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="an export already; compress the one that it was made from"):
        hs.compress(folder / "steps" / "prune-0.5-heal-0+int8", tmp_path / "out", "int8")
    with pytest.raises(BundleError, match="holds the steps of another bundle: choose another --out or --overwrite"):
        hs.compress(folder / "steps" / "prune-0.5-heal-0", folder, "int8")
    source = hs.load(made / "bundle")
    source.record["spec"]["data"]["test"] = None
    with pytest.raises(DataError, match="no rows were found: give labelled rows, as --rows"):
        hs.compress(source, tmp_path / "out", "int8")


def test_what_no_other_model_beats() -> None:
    def row(name: str, value: float, ms: float, size: int) -> Row:
        return Row(name, "done", value=value, loss=0.0, latency_ms=ms, bytes=size)

    table = [row("a", 0.9, 10, 100), row("b", 0.9, 5, 50), row("c", 0.8, 4, 60), row("d", 0.7, 6, 70)]
    found = Compression("x", "accuracy", True, 1, "rows", 0.01, [], [*table, Row("e", "failed")])
    runs.mark_frontier(found)
    assert [r.frontier for r in found.table] == [False, True, True, False, False]
    errors = Compression("x", "rmse", False, 1, "rows", 0.01, [], [row("a", 0.9, 5, 50), row("b", 0.8, 5, 50)])
    runs.mark_frontier(errors)
    assert [r.frontier for r in errors.table] == [False, True]
