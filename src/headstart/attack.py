"""Attacks on a model's continuous input: geometry of the ball, steps that raise a loss, their usual radii.

Used by adversarial methods while a model learns, and by `robustness` to measure one that has learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from headstart.errors import MethodError
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


def usual_norm(*, modality: str) -> str:
    """linf for pictures (Madry et al. 2018) and sounds, l2 for token embeddings (Zhu et al. 2020)."""
    return "l2" if modality == "text" else "linf"


def usual_radius(change: Tensor, norm: str, *, modality: str) -> float:
    """The customary radius for this input, (N,...), and norm."""
    if modality == "text":
        return TEXT_RADIUS
    mean, bound = (AUDIO_RADIUS, AUDIO_BOUND) if modality == "audio" else (PICTURE_RADIUS, PIXEL_BOUND)
    return mean * math.sqrt(change[0].numel()) if norm == "l2" else bound


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


def project(change: Tensor, eps: float, norm: str) -> Tensor:
    """Each row moved to the nearest point of the ball of radius eps."""
    if norm == "linf":
        return change.clamp(-eps, eps)
    return change * (eps / row_norms(change, "l2").clamp_min(1e-12)).clamp(max=1.0)


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


def real(zeros: Tensor, batch: Batch) -> Tensor:
    """Ones shaped like the continuous input, with zeros at padding, whose change would have no effect."""
    if "lengths" in batch.inputs:
        return (torch.arange(zeros.shape[1], device=zeros.device)[None] < batch.inputs["lengths"][:, None]).to(zeros)
    mask = batch.inputs.get("attention_mask")
    return torch.ones_like(zeros) if mask is None else mask[..., None].to(zeros).expand_as(zeros)


def noise(zeros: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """A random direction of unit length for each row, zero at padding."""
    normal = torch.randn(tuple(zeros.shape), generator=generator, device=generator.device).to(zeros)
    return direction(normal * real(zeros, batch), "l2")


def cube(zeros: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [-1, 1), zero at padding."""
    spot = torch.rand(tuple(zeros.shape), generator=generator, device=generator.device)
    return (2 * spot - 1).to(zeros) * real(zeros, batch)


def inside(zeros: Tensor, eps: float, norm: str, batch: Batch, generator: torch.Generator) -> Tensor:
    """A random point of the ball for each row: uniform in the cube, or of uniform length in a uniform direction."""
    if norm == "linf":
        return within(eps * cube(zeros, batch, generator), batch)
    length = torch.rand((len(zeros), *[1] * (zeros.ndim - 1)), generator=generator, device=generator.device)
    return within(eps * length.to(zeros) * noise(zeros, batch, generator), batch)


def slope(loss_of: Callable[[Batch], Tensor], batch: Batch, change: Tensor) -> Tensor:
    """The gradient of the loss in the change. Leaves nothing in any parameter's `grad`."""
    change = change.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(shifted(batch, change)), change, allow_unused=True)
    if gradient is None:
        raise MethodError("this backbone ignores a shift of its input, so it cannot be attacked; leave the attack out")
    return gradient.detach()


def climb(change: Tensor, gradient: Tensor, step: float, eps: float, norm: str, batch: Batch) -> Tensor:
    """One step of this length along the gradient, back into the ball and the bounds of pixels."""
    return within(project(change + step * direction(gradient, norm), eps, norm), batch).detach()


def ascend(
    loss_of: Callable[[Batch], Tensor],
    batch: Batch,
    start: Tensor,
    eps: float,
    norm: str,
    steps: int,
    step: float | None = None,
) -> Tensor:
    """The change that this many projected steps reach from `start` (Madry et al. 2018, section 2).

    loss_of: a scalar in which rows are added, so that each climbs by its own gradient. step: 2.5 eps / steps when left
    out, with which the border can be reached from anywhere (section 5).
    """
    length = 2.5 * eps / steps if step is None else step
    change = start
    for _ in range(steps):
        change = climb(change, slope(loss_of, batch, change), length, eps, norm, batch)
    return change.detach()
