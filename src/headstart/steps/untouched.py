"""Passes that are tried out leave no trace in a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
