"""The numbers that forward passes run in: float32, bf16 by autocast, or bf16 throughout with float32 master weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headstart import inference, tables
from headstart.inside import replaced

KINDS = ("fp32", "bf16", "bf16_weights")
"""`training.precision` without `auto`. Weights, losses, heads, pooling over tokens and updates are float32 in each."""


def running(model: nn.Module, kind: str) -> AbstractContextManager[Any]:
    """Inside, passes of the model run in this precision.

    bf16: torch decides for each operation, and casts its weights. bf16_weights: the network's weights are cast once,
    and what it computes stays bf16; torch's norms add up in float32 all the same. Gradients reach the float32 weights.
    """
    if kind == "bf16_weights":
        return _cast(model)
    return inference.running(next(model.parameters()).device, kind)


@contextmanager
def _cast(model: nn.Module) -> Iterator[None]:
    """Inside, the network's parameters are bf16 copies that gradients flow through.

    What stands above the network (pooling, layers on it, the head) keeps float32. So does BatchNorm, whose moving
    statistics are float32. Large tables are not copied; what is looked up in them is cast.
    """
    whole: Any = model
    network: nn.Module = getattr(whole.backbone, "network", whole.backbone)
    large = [m for m in network.modules() if type(m) is nn.Embedding and m.weight.numel() >= tables.LEAST]
    made: dict[int, Tensor] = {}
    swapped: list[tuple[nn.Module, str, Any]] = []
    try:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) or module in large:
                continue
            for name, value in module._parameters.items():
                if value is not None and value.dtype == torch.float32:
                    copy: Any = made.setdefault(id(value), value.to(torch.bfloat16))
                    swapped.append((module, name, value))
                    module._parameters[name] = copy
        with replaced(large, lambda table, forward: lambda ids: forward(ids).to(torch.bfloat16)):
            yield
    finally:
        for module, name, value in swapped:
            module._parameters[name] = value
