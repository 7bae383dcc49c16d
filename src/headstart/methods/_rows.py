"""Means over the rows of a micro-batch."""

from __future__ import annotations

from torch import Tensor

from headstart.values import Batch


def weighted(values: Tensor, batch: Batch) -> Tensor:
    """The mean of values (N,) over the rows, each counting as it does in the loss; 0 where none counts."""
    weight = batch.weight.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp_min(1e-12)
