"""A bundle as an ONNX bundle, in full precision or in 8 bits, with what that cost measured on labelled rows."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart import backbones, data, inference
from headstart import bundle as bundles
from headstart.bundle import Bundle
from headstart.compress import graph as graphs
from headstart.encoded import Encoded
from headstart.errors import BundleError, DataError, ProofError, SpecError
from headstart.runtime import GraphModel

FILE = "onnx/model.onnx"
GATE = 0.01
"""The largest loss of the main metric that is allowed when none is given."""

KEPT = (0.0, 0.25, 0.5, 0.75)
"""Shares of the layers that stay in full precision, tried in this order until the gate is passed."""

TIMED_ROWS, TURNS = 64, 5


Measured = tuple[float, float, float, float]
"""The main metric before and after, by how much it got worse, the share of equal predictions."""


@dataclass(frozen=True)
class Exported:
    """What an export did. before and after: the main metric on `rows` rows of `data`, None without labelled rows.

    agreement: share of the rows with the same prediction. loss: by how much the metric got worse: points of a metric
    between 0 and 1, else a share of the metric before. bytes and rows_per_second: before, after; the latter on one
    machine, both in turn. kept: layers left in full precision, of `layers`.
    """

    folder: Path
    format: str
    quantize: str | None
    metric: str
    rows: int
    data: str | None
    before: float | None
    after: float | None
    loss: float | None
    gate: float | None
    agreement: float | None
    kept: int
    layers: int
    bytes: tuple[int, int]
    rows_per_second: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def export(
    bundle: Bundle | str | Path,
    out: str | Path,
    *,
    format: str = "onnx",
    quantize: str | None = None,
    gate: str | float | None = None,
    rows: str | Path | None = None,
    task: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the bundle as one that ONNX Runtime answers from; the probe and labelled rows say that it still can.

    quantize: `int8`, or None for the same numbers as before (proven on the probe). gate: the largest loss of the main
    metric, such as `0.5%` or 0.005; 1 % for int8 when left out. Where int8 loses more, the layers whose weights suffer
    most are left in full precision, up to three quarters of them. rows: a file of labelled rows to measure on; when
    left out, the validation or test rows that the bundle was made with, if their files are still there. task: of
    several, the one to export.

    Raises SpecError for options that cannot be used, DataError where there are no labelled rows to measure int8 on,
    BundleError for a network that cannot be exported, ProofError when the gate is not passed: nothing is written then.
    """
    limit = _check(format, quantize, gate)
    source = bundle if isinstance(bundle, Bundle) else bundles.load(bundle)
    source = source if task is None else source.only(task)
    if source.tasks:
        raise SpecError(f"a model of several tasks is exported one at a time: say --task {source.tasks[0]}")
    if "runtime" in source.record:
        raise BundleError("this bundle is an export already; export the one that it was made from")
    if (Path(out) / "bundle.json").exists() and not overwrite:
        raise BundleError(f"'{out}' already holds a bundle; choose another folder or pass --overwrite")
    labelled = _labelled(source, rows, quantize)
    inputs = source.probe_inputs if labelled is None else labelled[1]
    encoded = Encoded.of(source.modality, source.model.backbone, inputs)
    graph = graphs.trace(source.model, encoded)
    layers = graphs.errors(graph)
    answers = None if labelled is None else source.outputs(inputs)

    reader = _reader(source)

    def measured(candidate: bytes) -> tuple[GraphModel, Measured | None]:
        model = GraphModel(reader, candidate)
        if labelled is None or answers is None:
            return model, None
        return model, _loss(source, answers, inference.outputs(model, encoded), labelled[2])

    kept: Sequence[str] = ()
    if quantize is None:
        model, found = measured(graph)
        _prove(source, model)
    else:
        model, found, kept, graph = _quantise(graph, encoded, layers, limit, source.task.metric, measured)
    if found is not None and limit is not None and not found[2] <= limit:
        raise ProofError(_refusal(found, limit, source.task.metric, tried=""))
    before, after, loss, agreement = found or (None, None, None, None)
    speed = _speed(source, model, inputs[:TIMED_ROWS])
    made = _bundle(source, model, graph, {"quantize": quantize, "kept": list(kept)})
    outcome = Exported(
        Path(out), format, quantize, source.task.metric, 0 if labelled is None else len(inputs),
        None if labelled is None else labelled[0], before, after, loss, limit, agreement, len(kept), len(layers),
        (sum(p.numel() * p.element_size() for p in source.model.parameters()), len(graph)), speed,
    )  # fmt: skip
    told = {key: value for key, value in outcome.to_json().items() if key != "folder"}
    made.record["runtime"]["measured"] = told
    made.files = {**made.files, "export.json": (json.dumps(told, indent=2) + "\n").encode()}
    made.save(out, overwrite=overwrite)
    return outcome


def _check(format: str, quantize: str | None, gate: str | float | None) -> float | None:
    """The gate as a number. Raises SpecError."""
    if format != "onnx":
        raise SpecError(f"export writes the format 'onnx', received '{format}'")
    if quantize not in (None, "int8"):
        raise SpecError(f"expected quantize 'int8', or none for full precision, received '{quantize}'")
    if gate is None:
        return None if quantize is None else GATE
    text = str(gate).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise SpecError(f"expected a gate from 0 to 1 or a percentage, such as 0.5% or 0.005, received '{gate}'")
    return value


def _labelled(
    source: Bundle, rows: str | Path | None, quantize: str | None
) -> tuple[str, list[Any], np.ndarray] | None:
    """Name, inputs and encoded targets of the rows to measure on. Raises DataError where int8 has none."""
    asked = source.record["spec"]["data"]
    names = [rows] if rows is not None else [asked.get("validation"), asked.get("test")]
    path = next((str(name) for name in names if name is not None and (rows is not None or Path(name).exists())), None)
    if path is None:
        if quantize is None:
            return None
        raise DataError(
            "the loss of quality in 8 bits has to be measured, and the files of the validation and test rows that this "
            "bundle was made with are not there: give labelled rows, as --rows FILE"
        )
    columns = data.Columns.from_json(source.record["columns"])
    part = data.load_labelled(path, columns, labels=source.labels, encoding=str(asked["encoding"]))
    if len(part) == 0:
        raise DataError(f"'{path}' has no rows to measure on")
    inputs = part.inputs()
    return path, [inputs[i] for i in range(len(part))], source.task.encode(part.labels()).numpy()


def _reader(source: Bundle) -> Any:
    """A second backbone to prepare rows with; its weights do not matter."""
    with tempfile.TemporaryDirectory() as folder:
        source.model.backbone.save_files(Path(folder))
        return backbones.rebuild(source.model.backbone.describe(), Path(folder))


def _loss(source: Bundle, old: np.ndarray, new: np.ndarray, targets: np.ndarray) -> Measured:
    task = source.task
    scores = [task.scores(torch.from_numpy(found), source.temperature).numpy() for found in (old, new)]
    before, after = (float(task.measure(score, targets)[task.metric]) for score in scores)
    worse = before - after if task.better(1.0, 0.0) else after - before
    if not 0 <= before <= 1 or not task.better(1.0, 0.0):
        worse /= max(abs(before), 1e-12)
    first, second = (task.decode(score).prediction for score in scores)
    return before, after, worse, float(np.mean([a == b for a, b in zip(first, second, strict=True)]))


def _quantise(
    graph: bytes,
    rows: Encoded,
    layers: Mapping[str, float],
    limit: float | None,
    metric: str,
    measured: Callable[[bytes], tuple[GraphModel, Measured | None]],
) -> tuple[GraphModel, Measured | None, Sequence[str], bytes]:
    """The graph in 8 bits, with as many layers left alone as the gate asks for. Raises ProofError."""
    worst = sorted(layers, key=lambda name: -layers[name])
    found = None
    for share in KEPT:
        kept = worst[: round(share * len(worst))]
        candidate = graphs.quantised(graph, rows, kept)
        model, found = measured(candidate)
        if found is None or limit is None or found[2] <= limit:
            return model, found, kept, candidate
    raise ProofError(_refusal(found, limit, metric, tried=f" with {KEPT[-1]:.0%} of the layers left alone"))


def _refusal(found: Any, limit: float | None, metric: str, tried: str) -> str:
    return (
        f"the export loses too much{tried}: {metric} {found[0]:.4f} before, {found[1]:.4f} after, "
        f"{100 * found[2]:.2f} % worse, and the gate is {100 * (limit or 0):.2f} %; nothing was written"
    )


def _prove(source: Bundle, model: GraphModel) -> None:
    """Raises ProofError where the graph does not answer the probe as the bundle does."""
    twin = dataclasses.replace(source, model=model)  # type: ignore[arg-type]
    twin.prove()


def _speed(source: Bundle, model: GraphModel, inputs: Sequence[Any]) -> tuple[float, float]:
    """Rows a second of both, in turn, the median of a few turns."""
    some = Encoded.of(source.modality, source.model.backbone, inputs)
    times: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(TURNS + 1):
        for place, each in enumerate((source.model, model)):
            started = time.perf_counter()
            inference.outputs(each, some)
            if turn:
                times[place].append(time.perf_counter() - started)
    return tuple(round(len(some) / float(np.median(times[place])), 1) for place in (0, 1))  # type: ignore[return-value]


def _bundle(source: Bundle, model: GraphModel, graph: bytes, facts: Mapping[str, Any]) -> Bundle:
    """The new bundle, a child of the old one; its probe expects what the graph answers."""
    record = {
        **source.record,
        "runtime": {"name": "onnx", "file": FILE, **facts},
        "lineage": bundles.lineage(source.record["lineage"]["id"], "export"),
    }
    made = Bundle(
        model,  # type: ignore[arg-type]
        source.task, source.modality, record, source.probe_inputs, source.probe_outputs, {}, {FILE: graph},
    )  # fmt: skip
    made.probe_outputs = made.outputs(source.probe_inputs)
    return made


def lines(found: Exported) -> list[str]:
    """The outcome for a terminal."""
    said = []
    if found.before is not None and found.after is not None and found.agreement is not None:
        said.append(
            f"{found.metric} {found.before:.4f} before, {found.after:.4f} after, on {found.rows} rows of "
            f"'{found.data}'; {100 * found.agreement:.1f} % of the predictions are the same"
        )
    else:
        said.append("the answers to the stored probe are the same; no labelled rows to measure on were found")
    if found.kept:
        said.append(f"{found.kept} of {found.layers} layers stay in full precision, for the gate's sake")
    old, new = (size / 1e6 for size in found.bytes)
    before, after = found.rows_per_second
    said.append(
        f"{old:.1f} MB before, {new:.1f} after; {before:,.0f} rows/s before, {after:,.0f} after on this machine"
    )
    return [*said, f"done: the bundle is in '{found.folder}'"]
