"""The forms that one bundle can be exported in: a graph for an engine, in full precision or in 8 bits, each judged."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from headstart import backbones, inference
from headstart import bundle as bundles
from headstart.bundle import Bundle
from headstart.bundle.runtime import GraphModel
from headstart.compression import graph as graphs
from headstart.compression.quality import Labelled, Quality, compare, refusal, test_rows
from headstart.encoded import Encoded
from headstart.errors import BundleError, ProofError
from headstart.evaluation import Report, measure_split

FILE = "onnx/model.onnx"

KEPT = (0.0, 0.25, 0.5, 0.75)
"""Shares of the layers that stay in full precision, tried in this order until the gate is passed."""

NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Form:
    """One form of a bundle. size: bytes of the graph. kept: layers left in full precision, of `layers`."""

    bundle: Bundle
    engine: str
    quantize: str | None
    quality: Quality | None
    kept: int
    layers: int
    size: int


@dataclass
class Forms:
    """Makes the forms of a bundle; what they share (the traced graph, the bundle's own answers) is made once.

    rows: what they are judged on; without, full precision is proven on the probe alone and 8 bits cannot be made.
    Raises BundleError for a bundle that is an export already, or that is of several tasks.
    """

    source: Bundle
    rows: Labelled | None
    eight: dict[int, bytes] = field(default_factory=dict)
    """Graphs in 8 bits by how many layers they leave alone, while they may be asked for again."""

    def __post_init__(self) -> None:
        if "runtime" in self.source.record:
            raise BundleError("this bundle is an export already; export the one that it was made from")

    @cached_property
    def encoded(self) -> Encoded:
        """The rows, or the probe's where there are none, as a batch takes them."""
        inputs = self.source.probe_inputs if self.rows is None else self.rows.inputs
        return Encoded.of(self.source.modality, self.source.model.backbone, inputs)

    @cached_property
    def graph(self) -> bytes:
        """The traced graph. Raises BundleError where the network cannot be exported."""
        return graphs.trace(self.source.model, self.encoded)

    @cached_property
    def worst(self) -> list[str]:
        """The layers with weights, that which 8 bits hurt most first."""
        errors = graphs.errors(self.graph)
        return sorted(errors, key=lambda name: -errors[name])

    @cached_property
    def answers(self) -> np.ndarray:
        """What the bundle itself says of the rows, (rows,K)."""
        return inference.outputs(self.source.model, self.encoded)

    def full(self, engine: str, limit: float | None = None) -> Form:
        """In full precision, with the bundle's answers to its probe. Raises ProofError where they differ."""
        model = GraphModel(self._reader(), self.graph, engine)
        twin = dataclasses.replace(self.source, model=model)  # type: ignore[arg-type]
        twin.prove()
        outputs, found = self._judged(model)
        if found is not None and limit is not None and not found.loss <= limit:
            raise ProofError(refusal("the export", found, limit, self.source.task.metric))
        return self._form(model, self.graph, engine, None, (outputs, found), [], graphs.layers(self.graph))

    def int8(self, engine: str, limit: float) -> Form:
        """In 8 bits, with as many layers left alone as the gate asks for. Raises ProofError where none passes it."""
        found: Quality | None = None
        for share in KEPT:
            kept = self.worst[: round(share * len(self.worst))]
            if len(kept) not in self.eight:
                self.eight[len(kept)] = graphs.quantised(self.graph, self.encoded, kept)
            graph = self.eight[len(kept)]
            model = GraphModel(self._reader(), graph, engine)
            outputs, found = self._judged(model)
            if found is None or found.loss <= limit:
                return self._form(model, graph, engine, "int8", (outputs, found), kept, len(self.worst))
        assert found is not None
        what = f"the export with {KEPT[-1]:.0%} of the layers left alone"
        raise ProofError(refusal(what, found, limit, self.source.task.metric))

    def _reader(self) -> Any:
        """A second backbone to prepare rows with; its weights do not matter."""
        backbone = self.source.model.backbone
        with tempfile.TemporaryDirectory() as folder:
            backbone.save_files(Path(folder))
            return backbones.rebuild(backbone.describe(), Path(folder))

    def _judged(self, model: GraphModel) -> tuple[np.ndarray | None, Quality | None]:
        if self.rows is None:
            return None, None
        outputs = inference.outputs(model, self.encoded)
        source = self.source
        return outputs, compare(source.task, source.temperature, self.answers, outputs, self.rows.targets)

    def _form(
        self,
        model: GraphModel,
        graph: bytes,
        engine: str,
        quantize: str | None,
        judged: tuple[np.ndarray | None, Quality | None],
        kept: list[str],
        layers: int,
    ) -> Form:
        facts = {"name": engine, "file": FILE, "quantize": quantize, "kept": kept}
        made = self._bundle(model, graph, facts)
        said = f"This model is an export for {NAMES[engine]}{' in 8 bits' if quantize else ''}"
        made.report = report_of(self.source, made, self.rows, judged[0], said)
        return Form(made, engine, quantize, judged[1], len(kept), layers, len(graph))

    def _bundle(self, model: GraphModel, graph: bytes, facts: Mapping[str, Any]) -> Bundle:
        """The new bundle, a child of the old one; its probe expects what the graph answers."""
        record = {
            **self.source.record,
            "runtime": dict(facts),
            "lineage": bundles.lineage(self.source.record["lineage"]["id"], "export"),
        }
        made = Bundle(
            model,  # type: ignore[arg-type]
            self.source.task, self.source.modality, record, self.source.probe_inputs, self.source.probe_outputs, {},
            {FILE: graph},
        )  # fmt: skip
        made.probe_outputs = made.outputs(self.source.probe_inputs)
        return made


def report_of(
    source: Bundle, made: Bundle, rows: Labelled | None, outputs: np.ndarray | None, said: str
) -> Report | None:
    """The report of the bundle that it was made from, with the figures of the new one and a note that says so.

    outputs: what the new one answers to the rows. Its test rows are measured too, where their file is still there.
    """
    base = {} if source.report is None else source.report.to_json()
    base.pop("format", None)
    if rows is None or outputs is None:
        note = f"{said}; the figures are those of the model that it was made from, whose answers it gives."
        return None if source.report is None else Report({**base, "notes": [*base["notes"], note]})
    pairs = [(rows, outputs)]
    more = test_rows(source) if rows.split != "test" else None
    if more is not None:
        pairs.append((more, made.outputs(more.inputs)))
    metrics: dict[str, Any] = {}
    splits: dict[str, Any] = {}
    for part, answered in pairs:
        import torch

        scores = made.task.scores(torch.from_numpy(answered), made.temperature).numpy()
        found = measure_split(made.task, scores, part.targets, inputs=part.inputs, row_ids=part.ids)
        metrics[part.split] = found.pop("metrics")
        splits[part.split] = found
    fresh = {
        "task": made.task.name, "modality": made.modality.name, "labels": list(made.task.labels),
        "metric": made.task.metric, "metrics": metrics, "splits": splits, "spec": made.record["spec"],
        "transfer": [], "robustness": {}, "calibration": {"temperature": made.temperature},
        "backbone": {k: made.record["base"][k] for k in ("ref", "source", "digest")},
    }  # fmt: skip
    note = f"{said}; the figures are its own, and stages, data and cost are of the model that it was made from."
    return Report({**base, **fresh, "notes": [*base.get("notes", []), note]})
