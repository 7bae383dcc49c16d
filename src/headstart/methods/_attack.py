"""What adversarial methods share: norms of whole rows, their default radii, passes that leave statistics alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.protocols import Context
from headstart.values import Batch

TEXT_RADIUS = 0.3
"""Largest l2 length of a row's change of token embeddings.

Miyato et al. use 5 on embeddings scaled to unit variance; the tables of BERT-like networks have a standard deviation of
0.04 to 0.06, which makes it 0.2 to 0.3.
"""

PICTURE_RADIUS = 0.5 / math.sqrt(3 * 32 * 32)
"""Root mean square change of a pixel value: the l2 radius of 0.5 that is customary for CIFAR pictures (3,32,32)."""

AUDIO_RADIUS = 1e-3
"""Root mean square change of a sample: 34 dB below speech of a usual level (0.05). Not tuned."""

AUDIO_BOUND = 2e-3
"""Largest change of one sample, of full scale 1. Not tuned."""

PIXEL_BOUND = 8 / 255
"""Largest change of one pixel value: Madry et al. 2018, section 5, on CIFAR."""


def row_norms(change: Tensor, norm: str) -> Tensor:
    """(N,1,...): the l2 length, or the largest absolute value, of each row taken as one vector."""
    flat = change.flatten(1)
    length = flat.norm(dim=1) if norm == "l2" else flat.abs().amax(dim=1)
    return length.view(-1, *[1] * (change.ndim - 1))


def direction(gradient: Tensor, norm: str) -> Tensor:
    """The step of unit size that raises a linear function most: g / ||g||_2, or sign(g)."""
    if norm == "linf":
        return gradient.sign()
    return gradient / row_norms(gradient, "l2").clamp_min(1e-12)


def radius(asked: float | None, change: Tensor, ctx: Context, norm: str) -> float:
    """The asked radius, or the default for this input and norm."""
    if asked is not None:
        return asked
    values = change[0].numel()
    if not ctx.modality.continuous:
        return TEXT_RADIUS
    mean, bound = (AUDIO_RADIUS, AUDIO_BOUND) if ctx.modality.name == "audio" else (PICTURE_RADIUS, PIXEL_BOUND)
    return mean * math.sqrt(values) if norm == "l2" else bound


def within(change: Tensor, batch: Batch) -> Tensor:
    """The change cut so that changed pixels stay in [0, 1]; embeddings and waves have no bounds."""
    if "pixels" not in batch.inputs:
        return change
    pixels = batch.inputs["pixels"]
    base = pixels if batch.shift is None else pixels + batch.shift
    return (base + change).clamp(0, 1) - base


def shifted(batch: Batch, change: Tensor) -> Batch:
    """The batch with this change on top of the shift that it may have already."""
    return batch.replace(shift=change if batch.shift is None else batch.shift + change)


def slope(loss_of: Callable[[Batch], Tensor], batch: Batch, change: Tensor) -> Tensor:
    """The gradient of the loss in the change. Leaves nothing in any parameter's `grad`."""
    change = change.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(shifted(batch, change)), change, allow_unused=True)
    if gradient is None:
        raise MethodError("this backbone ignores a shift of its input, so it cannot be attacked; leave the method out")
    return gradient.detach()


def attacked(model: Any, batch: Batch) -> Tensor:
    """Zeros shaped like the continuous input of this batch. Raises MethodError outside a run."""
    if model is None:
        raise MethodError("an adversarial method needs the model to attack: call adapt(model, ctx) before backward")
    zeros: Tensor = model.backbone.zero_shift(batch)
    return zeros


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Passes inside train as usual, dropout and batch statistics included, but move no running statistics."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats
    ]
    for module in norms:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in norms:
            module.track_running_stats = True
