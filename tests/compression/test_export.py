"""A bundle as an ONNX bundle: equal answers in full precision, a measured and gated loss in 8 bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from smaller import TEXTS

import headstart as hs
from headstart.bundle.runtime import ENGINES, GraphModel
from headstart.cli import run
from headstart.compression import export as exports
from headstart.compression import graph as graphs
from headstart.compression.forms import Form, Forms
from headstart.compression.timing import Speed
from headstart.encoded import Encoded
from headstart.errors import BundleError, DataError, ProofError, SpecError

pytest.importorskip("onnxruntime", reason="needs the onnx extra")
pytest.importorskip("onnxscript", reason="needs the onnx extra")
# The exporter's own use of torch and onnx_ir.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "UserWarning", "FutureWarning")
]


@pytest.fixture(scope="module")
def plain(made: Path) -> Path:
    hs.export(made / "bundle", made / "onnx")
    return made / "onnx"


def test_full_precision_answers_as_before(made: Path, plain: Path) -> None:
    before, after = hs.load(made / "bundle"), hs.load(plain)
    np.testing.assert_allclose(after.outputs(TEXTS), before.outputs(TEXTS), atol=1e-5)
    for text in TEXTS:  # a row alone, of any length, is what it is in a batch
        np.testing.assert_allclose(after.outputs([text]), before.outputs([text]), atol=1e-5)
    assert after.predict(TEXTS) == before.predict(TEXTS)
    assert after.record["lineage"]["parent"] == before.record["lineage"]["id"]
    assert not (plain / "model.safetensors").exists() and (plain / "onnx" / "model.onnx").is_file()


def test_an_export_can_be_moved_evaluated_and_saved_again(made: Path, plain: Path, tmp_path: Path) -> None:
    again = hs.load(plain).save(tmp_path / "again")
    measured = hs.evaluate(again, made / "test.csv")
    expected = hs.evaluate(made / "bundle", made / "test.csv")
    assert measured["metrics"]["accuracy"]["value"] == expected["metrics"]["accuracy"]["value"]
    with pytest.raises(BundleError, match="attack or mix the bundle it was made from"):
        hs.evaluate(again, made / "test.csv", robust=True)


def test_an_altered_graph_is_refused(plain: Path, tmp_path: Path) -> None:
    other = hs.load(plain).save(tmp_path / "other")
    content = bytearray((other / "onnx" / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (other / "onnx" / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="altered after the bundle was saved"):
        hs.load(other)


def test_eight_bits_are_smaller_and_their_loss_is_measured(
    made: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made / "int8"
    assert (
        run(["export", str(made / "bundle"), "--out", str(out), "--quantize", "int8", "--gate", "50%", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert told["data"] == str(made / "test.csv") and told["rows"] == 15 and told["metric"] == "accuracy"
    before, after = hs.load(made / "bundle"), hs.load(out)
    rows = (made / "test.csv").read_text(encoding="utf-8").splitlines()[1:]
    texts, kinds = zip(*(row.rsplit(",", 1) for row in rows), strict=True)
    for bundle, name in ((before, "before"), (after, "after")):
        found = np.mean([a == b for a, b in zip(bundle.predict(texts), kinds, strict=True)])
        assert told[name] == pytest.approx(float(found))
    assert told["loss"] == pytest.approx(told["before"] - told["after"])
    assert (out / "onnx" / "model.onnx").stat().st_size < (plain / "onnx" / "model.onnx").stat().st_size
    assert np.abs(after.outputs(TEXTS) - before.outputs(TEXTS)).max() > 0
    assert json.loads((out / "export.json").read_text(encoding="utf-8"))["loss"] == told["loss"]
    # Scales of activations are those of what runs together: rows and padding beside a row must not change it.
    alone = np.concatenate([after.outputs([text]) for text in TEXTS])
    assert np.array_equal(after.outputs(TEXTS), alone)
    assert len({len(text.split()) for text in TEXTS}) > 1


def test_a_gate_that_is_not_passed_refuses_and_writes_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quantiser that ruins the model; every share of layers left alone is tried first."""
    source, asked = hs.load(made / "bundle"), []
    graph = graphs.trace(source.model, Encoded.of(source.modality, source.model.backbone, TEXTS))
    source.model.head.weight.data.neg_()
    ruined = graphs.trace(source.model, Encoded.of(source.modality, source.model.backbone, TEXTS))

    def quantised(given: bytes, rows: Encoded, keep: list[str]) -> bytes:
        asked.append(len(keep))
        return ruined if len(keep) < 5 else graph

    monkeypatch.setattr(graphs, "quantised", quantised)
    with pytest.raises(ProofError, match=r"accuracy .* before, .* after, .* % worse, and the gate is 0\.50 %"):
        monkeypatch.setattr(graphs, "errors", lambda given: {"a": 1.0, "b": 2.0})
        hs.export(made / "bundle", made / "refused", quantize="int8", gate="0.5%")
    assert not (made / "refused").exists()
    monkeypatch.setattr(graphs, "errors", lambda given: {str(i): float(i) for i in range(8)})
    asked.clear()
    found = hs.export(made / "bundle", made / "rescued", quantize="int8", gate="0.5%")
    assert asked == [0, 2, 4, 6] and found.kept == 6 and found.layers == 8 and found.loss == 0


def test_the_layers_named_stay_in_full_precision(made: Path, plain: Path) -> None:
    import onnx

    source = hs.load(made / "bundle")
    graph = (plain / "onnx" / "model.onnx").read_bytes()
    rows = Encoded.of(source.modality, source.model.backbone, TEXTS)
    worst = graphs.errors(graph)
    assert len(worst) == 13  # six products in each of two blocks, and the head
    assert all(0 < value < 0.02 for value in worst.values())

    def integer(content: bytes) -> int:
        return sum(node.op_type == "MatMulInteger" for node in onnx.load_from_string(content).graph.node)

    assert integer(graphs.quantised(graph, rows)) - integer(graphs.quantised(graph, rows, list(worst)[:3])) == 3


def test_pictures(tmp_path: Path) -> None:
    """A convolutional network: equal in full precision, fixed scales in 8 bits."""
    pytest.importorskip("timm")
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 90, (32, 32, 3), np.uint8) + np.uint8(120 * (i % 2)) for i in range(24)]
    labels = ["dark" if i % 2 == 0 else "light" for i in range(24)]
    model = hs.fit(
        pictures, labels, backbone="timm:resnet18", methods=["freeze:probe"],
        spec={"backbone": {"pretrained": False, "image_size": 32}}, out=tmp_path / "bundle",
    )  # fmt: skip
    hs.export(tmp_path / "bundle", tmp_path / "onnx")
    exported = hs.load(tmp_path / "onnx")
    np.testing.assert_allclose(exported.outputs(pictures[:5]), model.outputs(pictures[:5]), atol=1e-3)
    for place, kind in enumerate(("dark", "light")):
        folder = tmp_path / "rows" / kind
        folder.mkdir(parents=True)
        from PIL import Image

        for i in range(place, 12, 2):
            Image.fromarray(pictures[i]).save(folder / f"{i}.png")
    found = hs.export(tmp_path / "bundle", tmp_path / "int8", quantize="int8", gate=0.99, rows=tmp_path / "rows")
    assert found.rows == 12 and found.bytes[1] < found.bytes[0] / 3
    graph = (tmp_path / "int8" / "onnx" / "model.onnx").read_bytes()
    assert graphs.convolutional((tmp_path / "onnx" / "onnx" / "model.onnx").read_bytes())
    assert b"QuantizeLinear" in graph and b"ConvInteger" not in graph


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"format": "tflite"}, SpecError, "expected a format of onnx, openvino, auto, received 'tflite'"),
        ({"quantize": "int4"}, SpecError, "expected quantize 'int8', or none for full precision, received 'int4'"),
        (
            {"gate": "lots"},
            SpecError,
            "expected a gate from 0 to 1 or a percentage, such as 0.5% or 0.005, received 'lots'",
        ),
        ({"gate": "120%"}, SpecError, "expected a gate from 0 to 1"),
        ({"format": "auto", "quantize": "int8"}, SpecError, "format 'auto' tries 8 bits by itself: leave quantize out"),
        ({"task": "topic"}, BundleError, "there is no task 'topic' in this model"),
        ({"rows": "missing.csv"}, DataError, "missing.csv"),
    ],
)
def test_bad_options(made: Path, options: dict[str, str], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as caught:
        hs.export(made / "bundle", made / "bad", **options)  # type: ignore[arg-type]
    assert sentence in str(caught.value) and not (made / "bad").exists()


def test_bad_bundles(made: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="an export already"):
        hs.export(plain, made / "bad")
    with pytest.raises(BundleError, match="already holds a bundle"):
        hs.export(made / "bundle", plain)
    source = hs.load(made / "bundle")
    source.record["spec"]["data"] |= {"validation": None, "test": str(made / "gone.csv")}
    with pytest.raises(DataError, match="give labelled rows, as --rows FILE"):
        hs.export(source, made / "bad", quantize="int8")
    rows = Encoded.of(source.modality, source.model.backbone, TEXTS)
    monkeypatch.setattr(source.model.backbone, "modality", "audio")
    with pytest.raises(BundleError, match="export writes models of text and image, and this one reads audio"):
        graphs.trace(source.model, rows)


def test_an_export_has_a_report_of_its_own_figures(made: Path) -> None:
    hs.export(made / "bundle", made / "reported", quantize="int8", gate="99%")
    bundle = hs.load(made / "reported")
    assert bundle.report is not None
    measured = hs.evaluate(bundle, made / "test.csv")["metrics"]["accuracy"]["value"]
    assert bundle.report["metrics"]["test"]["accuracy"]["value"] == measured
    assert bundle.report["notes"][-1].startswith("This model is an export for ONNX Runtime in 8 bits; the figures are")
    page = (made / "reported" / "report.html").read_text(encoding="utf-8")
    assert "This model is an export for ONNX Runtime in 8 bits" in page


def test_without_labelled_rows_the_report_says_whose_figures_it_holds(made: Path, tmp_path: Path) -> None:
    source = hs.load(made / "bundle")
    source.record["spec"]["data"]["test"] = None
    hs.export(source, tmp_path / "out")
    report = hs.load(tmp_path / "out").report
    assert report is not None and source.report is not None
    assert report["metrics"] == source.report["metrics"]
    assert "the figures are those of the model that it was made from" in report["notes"][-1]


def test_full_precision_looks_at_no_errors_of_layers(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "errors", lambda graph: pytest.fail("not needed"))
    assert hs.export(made / "bundle", tmp_path / "out").layers == 13


def test_a_loaded_export_holds_its_graph_once(plain: Path, tmp_path: Path) -> None:
    """In its engine alone: the file is read when it is asked for, and checked then."""
    copy = hs.load(plain).save(tmp_path / "copy")
    bundle = hs.load(copy)
    file = copy / "onnx" / "model.onnx"
    content = file.read_bytes()
    held = [value for value in vars(bundle.files).values() if isinstance(value, bytes)]
    assert not held and bundle.files["onnx/model.onnx"] == content
    assert sorted(bundle.files) == ["export.json", "onnx/model.onnx"] and len(bundle.files) == 2
    bundle.save(copy, overwrite=True)  # over itself
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(BundleError, match="was altered since the bundle was loaded"):
        bundle.save(tmp_path / "again")
    file.unlink()
    with pytest.raises(BundleError, match="is gone since the bundle was loaded: load it from where it is now"):
        bundle.save(tmp_path / "again")


def test_openvino_answers_as_before(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    found = hs.export(made / "bundle", tmp_path / "out", format="openvino")
    assert found.format == "openvino" and found.loss == 0
    before, after = hs.load(made / "bundle"), hs.load(tmp_path / "out")
    for rows in (TEXTS, TEXTS[:1]):
        np.testing.assert_allclose(after.outputs(rows), before.outputs(rows), atol=1e-4)
    first = after.outputs(TEXTS)
    after.outputs(TEXTS[::-1])
    np.testing.assert_array_equal(first, after.outputs(TEXTS))  # an answer is not written over by the next


def test_auto_keeps_the_fastest_within_the_gate(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, float] = {}

    def in_turn(models: dict[str, object], inputs: object) -> dict[str, Speed]:
        return {name: Speed(1, 1, asked.get(name, 0.5), asked.get(name, 0.5)) for name in models}

    monkeypatch.setattr(exports, "in_turn", in_turn)
    asked.update(torch=1.0, onnx=2.0)
    command = ["export", str(made / "bundle"), "--format", "auto", "--gate", "99%", "--json"]
    assert run([*command, "--out", str(tmp_path / "onnx")]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out.strip().splitlines()[-1])
    assert (told["format"], told["quantize"]) == ("onnx", None)
    assert [form["form"] for form in told["forms"] if form.get("kept")] == ["onnx"]
    assert {"torch", "onnx", "onnx int8"} <= {form["form"] for form in told["forms"]}
    assert "(kept)" in printed.err and "torch: 1.0 ms a row" in printed.err
    assert hs.load(tmp_path / "onnx").record["runtime"]["name"] == "onnx"
    # Nothing is faster: the bundle stays what it was, and says whose child it is.
    asked.update(onnx=0.9)
    assert run([*command, "--out", str(tmp_path / "torch")]) == 0
    assert "so torch's own was kept" in capsys.readouterr().err
    kept, source = hs.load(tmp_path / "torch"), hs.load(made / "bundle")
    np.testing.assert_array_equal(kept.outputs(TEXTS), source.outputs(TEXTS))
    assert "runtime" not in kept.record and kept.record["lineage"]["parent"] == source.record["lineage"]["id"]


def test_auto_leaves_out_what_is_not_installed_or_does_not_pass(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exports.importlib.util.find_spec
    monkeypatch.setattr(exports.importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name))

    def refused(self: Forms, engine: str, limit: float) -> Form:
        raise ProofError(f"too much for {limit}")

    monkeypatch.setattr(Forms, "int8", refused)
    found = hs.export(made / "bundle", tmp_path / "out", format="auto", gate=0)
    out = {form["form"]: form["refused"] for form in found.forms if "refused" in form}
    assert out == {
        "openvino": "not installed: pip install 'headstart[openvino]'", "onnx int8": "too much for 0.0",
    }  # fmt: skip
    said = exports.lines(found)
    assert "  openvino: out, not installed: pip install 'headstart[openvino]'" in said


def test_an_engine_that_is_not_known(plain: Path) -> None:
    source = hs.load(plain)
    with pytest.raises(BundleError, match="this bundle is run by 'tpu'; this version of Headstart knows onnx"):
        GraphModel(source.model.backbone, plain / "onnx" / "model.onnx", "tpu")
    for engine, name in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")):
        pytest.importorskip("openvino")
        with pytest.raises(BundleError, match=f"{name} cannot run this model"):
            ENGINES[engine](b"not a graph")
