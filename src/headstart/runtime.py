"""Other ways to run a finished model than torch: a bundle may hold an ONNX graph in place of its weights."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import BundleError, MissingExtra
from headstart.protocols import Backbone
from headstart.values import Batch, Features

INPUTS = {"text": ("input_ids", "attention_mask"), "image": ("pixels",)}
"""What a graph reads, by modality: the names of a batch's inputs."""

OUTPUTS = ("outputs", "pooled")
"""What a graph gives: the head's raw outputs (N,K) and the pooled features (N,D), both float32."""


class GraphBackbone(nn.Module):
    """A backbone of which only what prepares rows is left: its preprocessing, tokenizer and record."""

    def __init__(self, backbone: Backbone, graph: GraphModel) -> None:
        # The network's weights are not wanted and must not be found as parameters of this module.
        self.__dict__.update(_whole=backbone.to("meta"), _graph=graph)
        super().__init__()
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_whole"], name)

    def forward(self, batch: Batch) -> Features:
        """The pooled features (N,D) alone."""
        features: Features = self.__dict__["_graph"](batch)[0]
        return features


class GraphModel(nn.Module):
    """Stands in for `Model`: batch -> (features, outputs), by ONNX Runtime on the processor, without gradients.

    graph: the ONNX file's content. Threads are those that torch has. Raises MissingExtra without onnxruntime,
    BundleError for a graph that it cannot run.
    """

    def __init__(self, backbone: Backbone, graph: bytes) -> None:
        super().__init__()
        # Where a module's rows must be is asked of its first parameter.
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)
        self.names = INPUTS[backbone.modality]
        self.session = session(graph)
        self.backbone = GraphBackbone(backbone, self)

    def forward(self, batch: Batch) -> tuple[Features, Tensor]:
        """Pooled features (N,D) and outputs (N,K). Raises BundleError for a batch with a shift or mixed rows."""
        if batch.shift is not None or batch.mix is not None:
            raise BundleError("an exported model answers rows as they are: attack or mix the bundle it was made from")
        wanted = {name: batch.inputs[name].numpy() for name in self.names}
        outputs, pooled = self.session.run(list(OUTPUTS), wanted)
        return Features(torch.from_numpy(pooled)), torch.from_numpy(outputs)


def session(graph: bytes) -> Any:
    """An inference session on the processor."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "onnx", "an exported model") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions have no common base that is public
        reason = " ".join(str(error).split()).replace(os.sep, "/")
        raise BundleError(f"ONNX Runtime cannot run this model: {reason[:200]}") from None
