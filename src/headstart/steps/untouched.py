"""Passes that are tried out leave no trace in a model, and what they give is compared with what plain ones give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


NEXT_TO_NOTHING = 1e-3
"""Share of the largest gradient of all below which one is rounding: that of a key's bias is zero but for it."""


def apart(ones: Sequence[Tensor | None], others: Sequence[Tensor | None], tolerance: float) -> bool:
    """Whether some tensor differs from its other by more than this share of its largest number, or is only one.

    For numbers next to nothing the share is that of `NEXT_TO_NOTHING` of the largest of all.
    """
    if any((one is None) is not (other is None) for one, other in zip(ones, others, strict=True)):
        return True
    pairs = [(one, other) for one, other in zip(ones, others, strict=True) if one is not None and other is not None]
    sizes = [float(one.abs().max()) for one, _ in pairs]
    least = max(1e-6, NEXT_TO_NOTHING * max(sizes, default=0.0))
    gaps = [float((one - other).abs().max()) for one, other in pairs]
    return any(not gap <= tolerance * max(least, size) for gap, size in zip(gaps, sizes, strict=True))
