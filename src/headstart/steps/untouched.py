"""Passes that are tried out leave no trace in a model, and what they give is compared with what plain ones give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module, *, gradients: bool = True) -> Iterator[None]:
    """Passes inside leave no moved statistics, drawn numbers or gradients (which stay if `gradients` is false)."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with torch.random.fork_rng():
            yield
    finally:
        if gradients:
            model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers[name])


def apart(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors of one shape differ by more than this share of the largest number of the first."""
    return float((one - other).abs().max()) > tolerance * max(1e-6, float(one.abs().max()))
