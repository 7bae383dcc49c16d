"""A model as an ONNX graph, and that graph with 8-bit weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.bundle.runtime import INPUTS, OUTPUTS
from headstart.encoded import Encoded
from headstart.errors import BundleError, MissingExtra
from headstart.values import Batch

OPSET = 20
LAYERS = ("MatMul", "Gemm", "Conv")
"""The operations whose weights are quantised."""

CALIBRATE = 64
"""Rows that the ranges of activations are read from, where a network needs fixed ones."""


class _Forward(nn.Module):
    """The model as a function of tensors alone, in the order of `INPUTS`."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        inputs = dict(zip(self.names, tensors, strict=True))
        rows = tensors[0].shape[0]
        none = tensors[0].new_zeros((rows,), dtype=torch.int64)
        batch = Batch(inputs=inputs, labels=None, weight=none.float(), origin=none, row=none)
        pooled = self.model.backbone.features(batch).pooled.float()
        return self.model.head(pooled), pooled


def trace(model: Any, rows: Encoded) -> bytes:
    """The model as an ONNX file, any number of rows and tokens; `rows` are examples.

    Raises MissingExtra without the exporter, BundleError for a modality that is not exported or a network that the
    exporter cannot follow.
    """
    modality = model.backbone.modality
    if modality not in INPUTS:
        raise BundleError(f"export writes models of {' and '.join(INPUTS)}, and this one reads {modality}")
    names = INPUTS[modality]
    batch = rows.batch(list(range(min(2, len(rows)))) * 2)  # one row would be taken for a constant size
    if set(batch.inputs) - set(names):
        more = sorted(set(batch.inputs) - set(names))
        raise BundleError(f"export cannot write this model: its tokenizer gives {', '.join(more)} too")
    free = torch.export.Dim.DYNAMIC
    shape = {0: free, 1: free} if modality == "text" else {0: free}
    try:
        import onnxscript  # noqa: F401  the exporter itself asks for it late and less clearly
    except ImportError:
        raise MissingExtra("onnxscript", "onnx", "exporting a model") from None
    try:
        program = torch.onnx.export(
            _Forward(model, names).eval(), tuple(batch.inputs[name] for name in names), dynamo=True, verbose=False,
            input_names=list(names), output_names=list(OUTPUTS), dynamic_shapes=(tuple(shape for _ in names),),
            opset_version=OPSET,
        )  # fmt: skip
    except Exception as error:  # whatever the exporter cannot follow ends in one of many kinds
        reason = " ".join(str(error).split())
        raise BundleError(f"torch cannot export this network to ONNX: {reason[:300]}") from None
    if program is None:
        raise BundleError("torch cannot export this network to ONNX")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        program.save(path, external_data=False)
        return path.read_bytes()


def layers(graph: bytes) -> int:
    """How many layers have weights."""
    import onnx

    model = onnx.load_from_string(graph)
    weights = {item.name for item in model.graph.initializer}
    return sum(node.op_type in LAYERS and node.input[1] in weights for node in model.graph.node)


def errors(graph: bytes) -> dict[str, float]:
    """Name of each layer with weights -> relative error of those weights in 8 bits, one scale a channel."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(graph)
    weights = {item.name: item for item in model.graph.initializer}
    found: dict[str, float] = {}
    for node in model.graph.node:
        if node.op_type in LAYERS and node.input[1] in weights:
            value: Any = np.asarray(numpy_helper.to_array(weights[node.input[1]]), dtype=np.float64)
            # The channels of the output: first of a convolution, last of a product.
            value = (
                value.reshape(value.shape[0], -1) if node.op_type == "Conv" else value.reshape(-1, value.shape[-1]).T
            )
            scale = np.maximum(np.abs(value).max(axis=1, keepdims=True), 1e-12) / 127
            lost = float(np.linalg.norm(value - np.rint(value / scale) * scale))
            found[node.name] = lost / max(1e-12, float(np.linalg.norm(value)))
    return found


def quantised(graph: bytes, rows: Encoded, keep: Iterable[str] = ()) -> bytes:
    """The graph with 8-bit weights, one scale a channel; the layers named in `keep` stay as they are.

    Activations are scaled as they come (dynamic) in networks of matrix products. Networks with convolutions get fixed
    scales instead (static), read from `rows`, because those are slow and coarse when scaled as they come.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, ready, out = (Path(folder) / f"{name}.onnx" for name in ("source", "ready", "out"))
        source.write_bytes(graph)
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        prepared = ready.read_bytes()
        shared = {"per_channel": True, "nodes_to_exclude": list(keep), "weight_type": QuantType.QInt8}
        if convolutional(prepared):
            quantize_static(
                str(ready), str(out), _Reader(rows), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                # Weights of 7 bits: products of 8 by 8 overflow on processors without VNNI, and answers drift.
                reduce_range=True,
                op_types_to_quantize=[*LAYERS, "Add", "Clip", "GlobalAveragePool"], **shared,
            )  # fmt: skip
        else:
            quantize_dynamic(str(ready), str(out), op_types_to_quantize=[*LAYERS[:2], "Gather"], **shared)
        return out.read_bytes()


def convolutional(graph: bytes) -> bool:
    """Whether most layers with weights are convolutions."""
    import onnx

    kinds = [node.op_type for node in onnx.load_from_string(graph).graph.node if node.op_type in LAYERS]
    return 2 * kinds.count("Conv") > len(kinds)


class _Reader:
    """Rows for calibration, in the form that ONNX Runtime asks for."""

    def __init__(self, rows: Encoded) -> None:
        chosen = np.linspace(0, len(rows) - 1, min(CALIBRATE, len(rows))).astype(int).tolist()
        self.batches: Iterator[Mapping[str, np.ndarray]] = (
            {name: value.numpy() for name, value in rows.batch(chosen[start : start + 16]).inputs.items()}
            for start in range(0, len(chosen), 16)
        )

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next batch of inputs, None after the last."""
        return next(self.batches, None)
