"""Other ways to run a finished model than torch: a bundle may hold an ONNX graph in place of its weights.

Two engines run such a graph, ONNX Runtime and OpenVINO; which one a bundle wants stands in its record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.errors import BundleError, MissingExtra
from headstart.protocols import Backbone
from headstart.values import Batch, Features

INPUTS = {"text": ("input_ids", "attention_mask"), "image": ("pixels",)}
"""What a graph reads, by modality: the names of a batch's inputs."""

OUTPUTS = ("outputs", "pooled")
"""What a graph gives: the head's raw outputs (N,K) and the pooled features (N,D), both float32."""


SCALED_BY_BATCH = b"DynamicQuantizeLinear"
"""The operation that scales activations by the largest of the batch, padding and all, so that a row's answer would
depend on the rows beside it."""

Run = Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]
"""Inputs by name -> what `OUTPUTS` names."""


class GraphBackbone(nn.Module):
    """A backbone of which only what prepares rows is left: its preprocessing, tokenizer and record."""

    def __init__(self, backbone: Backbone, run: Run) -> None:
        # The network's weights are not wanted and must not be found as parameters of this module. It knows the engine,
        # not the model: two that know each other stay in memory until Python looks for such cycles.
        self.__dict__.update(_whole=backbone.to("meta"), _run=run)
        super().__init__()
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_whole"], name)

    def forward(self, batch: Batch) -> Features:
        """The pooled features (N,D) alone."""
        return _asked(self.__dict__["_run"], self.modality, batch)[0]


class GraphModel(nn.Module):
    """Stands in for `Model`: batch -> (features, outputs), by an engine on the processor, without gradients.

    graph: the ONNX file or its content; only the engine keeps it. engine: `onnx` for ONNX Runtime, or `openvino`.
    Threads are those that torch has. Raises MissingExtra without the engine's library, BundleError for an engine that
    there is none of, or a graph that it cannot run.
    """

    def __init__(self, backbone: Backbone, graph: bytes | Path, engine: str = "onnx") -> None:
        super().__init__()
        # Where a module's rows must be is asked of its first parameter.
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)
        self.modality = backbone.modality
        if engine not in ENGINES:
            raise BundleError(f"this bundle is run by '{engine}'; this version of Headstart knows {', '.join(ENGINES)}")
        self.answer: Run = ENGINES[engine](graph)
        if SCALED_BY_BATCH in (graph.read_bytes() if isinstance(graph, Path) else graph):
            self.answer = _one_by_one(self.answer)
        self.backbone = GraphBackbone(backbone, self.answer)

    def forward(self, batch: Batch) -> tuple[Features, Tensor]:
        """Pooled features (N,D) and outputs (N,K). Raises BundleError for a batch with a shift or mixed rows."""
        return _asked(self.answer, self.modality, batch)


def _asked(run: Run, modality: str, batch: Batch) -> tuple[Features, Tensor]:
    if batch.shift is not None or batch.mix is not None:
        raise BundleError("an exported model answers rows as they are: attack or mix the bundle it was made from")
    outputs, pooled = run({name: batch.inputs[name].numpy() for name in INPUTS[modality]})
    return Features(torch.from_numpy(pooled)), torch.from_numpy(outputs)


def _one_by_one(run: Run) -> Run:
    """The same, but rows are answered alone and without padding: one by one costs next to nothing on one thread."""

    def answer(inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        found = [run(_alone(inputs, row)) for row in range(len(next(iter(inputs.values()))))]
        outputs, pooled = (np.concatenate(each) for each in zip(*found, strict=True))
        return outputs, pooled

    return answer


def _alone(inputs: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """One row, (1,...); of a text what its mask shows."""
    own = {name: values[row : row + 1] for name, values in inputs.items()}
    mask = own.get("attention_mask")
    if mask is None or not mask.any():
        return own
    shown = mask[0].nonzero()[0]
    return {name: values[:, shown[0] : shown[-1] + 1] for name, values in own.items()}


def onnx_runtime(graph: bytes | Path) -> Run:
    """ONNX Runtime on the processor."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "onnx", "an exported model") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    content = str(graph) if isinstance(graph, Path) else graph
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions have no common base that is public
        raise _refusal("ONNX Runtime", error) from None
    return lambda inputs: tuple(session.run(list(OUTPUTS), dict(inputs)))


def openvino(graph: bytes | Path) -> Run:
    """OpenVINO on the processor, in float32 where the graph is; by itself it would use bfloat16 where it can."""
    try:
        import openvino as library
    except ImportError:
        raise MissingExtra("openvino", "openvino", "a model exported for OpenVINO") from None
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        core = library.Core()
        compiled = core.compile_model(core.read_model(graph), "CPU", hints)
    except Exception as error:  # whatever it cannot read or compile ends in a RuntimeError or a kind of its own
        raise _refusal("OpenVINO", error) from None

    def run(inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        # It may write its answers into the same memory next time, so they are copied.
        found = compiled(dict(inputs), share_inputs=False)
        outputs, pooled = (np.array(found[name]) for name in OUTPUTS)
        return outputs, pooled

    return run


ENGINES: Mapping[str, Callable[[bytes | Path], Run]] = {"onnx": onnx_runtime, "openvino": openvino}
"""What a bundle's record calls the engine -> what makes it from a graph."""


def _refusal(engine: str, error: Exception) -> BundleError:
    reason = " ".join(str(error).split()).replace(os.sep, "/")
    return BundleError(f"{engine} cannot run this model: {reason[:200]}")
