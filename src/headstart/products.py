"""Layers' products of matrices in float32 on a processor, by oneDNN where it is quicker than what torch takes itself.

torch multiplies by MKL, which was seen to reach less than half of what AMD processors with AVX-512 can do (109 of 245
GFLOP/s). Both are float32 throughout and differ by rounding; which is faster is measured.
"""

from __future__ import annotations

import time
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 16
"""Rows from which oneDNN may multiply; it is slower to begin with."""

NUMBERS = 2**13
"""Of the other factor, likewise."""

EVEN = 16
"""oneDNN makes kernels for each number of rows and keeps them (some 0.3 MB a layer). What a service is asked for has
any number, so passes that only answer fill rows up to a multiple of this, which was seen to take a tenth longer."""

MANY = 512
"""Rows from which they are not: they come from batches that are cut to be of like size."""

TRIED = (256, 384, 1536)
"""Rows, and columns of either factor, of what is timed: a layer of a small network on a batch of short texts."""

PAIRS = 5

FASTER = 1.4
"""oneDNN must win by this. Where both use all that a processor has they differ by less, and a choice that noise could
change would change the last digits of results from run to run."""


class Linear(nn.Linear):
    """torch's module, multiplying as this file says."""

    def forward(self, input: Tensor) -> Tensor:  # its argument has this name in torch
        """(..., in_features) -> (..., out_features)."""
        return linear(input, self.weight, self.bias)


KINDS = (nn.Linear, Linear)
"""Types of layers that compute as torch's own do; other subclasses may do anything."""


def hasten(network: nn.Module) -> None:
    """Makes torch's own layers of this network `Linear`; weights, hooks and names stay."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As torch's: states (..., K), weight (V,K) and bias (V,) -> (..., V). Gradients of gradients are to be had."""
    if not fits(states, weight):
        return nn.functional.linear(states, weight, bias)
    rows = states.reshape(-1, states.shape[-1])
    made: Tensor = _Product.apply(rows, weight, bias) if torch.is_grad_enabled() else _answer(rows, weight, bias)
    return made.view(*states.shape[:-1], len(weight))


def fits(states: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to multiply these. What is compiled or exported is left to torch, and all where it is off."""
    wanted: bool = torch.backends.mkldnn.enabled  # type: ignore[assignment]
    if not wanted or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    plain = states.dtype == weight.dtype == torch.float32 and states.device.type == weight.device.type == "cpu"
    if not plain or weight.numel() < NUMBERS or states.numel() < ROWS * states.shape[-1]:
        return False
    return faster(torch.get_num_threads())


def _answer(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `_product`, by one of few kernels."""
    count = len(rows)
    lacking = -count % EVEN if count < MANY else 0
    return _product(nn.functional.pad(rows, (0, 0, 0, lacking)) if lacking else rows, weight, bias)[:count]


class _Product(torch.autograd.Function):
    """left (N,K), right (V,K) and bias (V,) -> left @ right.T + bias."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(left, right)
        return _product(left, right, bias)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        (slope,), (left, right) = slopes, ctx.saved_tensors
        slope = slope.contiguous()
        wanted = ctx.needs_input_grad
        return (
            _Product.apply(slope, right.t(), None) if wanted[0] else None,
            _Product.apply(slope.t(), left.t(), None) if wanted[1] else None,
            slope.sum(0) if wanted[2] else None,
        )


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    # What torch's own compiler calls for a layer on a processor.
    made: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return made


@cache
def faster(threads: int) -> bool:
    """Whether oneDNN is, on this processor with so many threads; not where torch comes without it."""
    rows, width, wide = TRIED
    gains = []
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            left, right = torch.ones(rows, width), torch.ones(wide, width)
            for _ in range(PAIRS + 1):
                spent = []
                for multiply in (nn.functional.linear, _product):
                    started = time.thread_time()  # others that wait for work would count, too
                    multiply(left, right, None)
                    spent.append(time.thread_time() - started)
                gains.append(spent[0] / spent[1])
    except (AttributeError, RuntimeError):
        return False
    return median(gains[1:]) >= FASTER  # the first warms up
