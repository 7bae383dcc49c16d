"""Dropout on a processor for a quarter of its random numbers, which are most of what it costs there.

torch draws 32 bits or more for each number that may be dropped. Here 15 bits say whether it is, four to a draw of 64,
so that rates are those asked for to within 1/65,536; kept numbers are scaled by what is really kept, so that means
stay exact. Draws come from torch's generator: a seed drops the same, and saved states bring the same draws back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

BITS = 15
"""Of a draw, for each number. With the 16th, comparing them would overflow."""

INTEGERS = {2: torch.int16, 4: torch.int32}
"""Types of the bits of a number, by its size in bytes."""


def dropped(states: Tensor, rate: float) -> Tensor:
    """Each number zero with this probability, and scaled otherwise so that its mean stays.

    Source: Srivastava et al. 2014 (Dropout), section 4, in the inverted form of Caffe and torch.
    """
    if not light(states, rate):
        return nn.functional.dropout(states, rate)
    return keeping(states, kept(states.shape, rate), rate)


def light(states: Tensor, rate: float) -> bool:
    """Whether `kept` and `keeping` do for these states; others are left to torch."""
    return 0 < rate < 1 and states.device.type == "cpu" and states.element_size() in INTEGERS


def kept(shape: Sequence[int], rate: float) -> Tensor:
    """int16 of this shape: all bits where a number is kept, none where it is dropped."""
    size = math.prod(shape)
    drawn = torch.empty((size + 3) // 4, dtype=torch.int64).random_().view(torch.int16)[:size]
    # Numbers of 15 bits below the threshold are dropped: (threshold - 1 - number) is negative for all others, and its
    # sign, shifted through, is the mask.
    drawn.bitwise_and_(2**BITS - 1).neg_().add_(_threshold(rate) - 1).bitwise_right_shift_(15)
    return drawn.view(tuple(shape))


def keeping(states: Tensor, mask: Tensor, rate: float) -> Tensor:
    """What the mask of `kept` leaves of the states, scaled."""
    made: Tensor = _Masked.apply(states, mask, 2**BITS / (2**BITS - _threshold(rate)))
    return made


def _threshold(rate: float) -> int:
    return int(min(max(1, round(rate * 2**BITS)), 2**BITS - 1))


class _Masked(torch.autograd.Function):
    """scale * states where mask, whose bits are all set or none, and zero elsewhere.

    By the bits: numbers of one size meet numbers of one size, which processors do many at a time.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        bits = states.contiguous().view(INTEGERS[states.element_size()])
        made: Tensor = bits.bitwise_and(mask).view(states.dtype)
        return made.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (mask,) = ctx.saved_tensors
        return _Masked.apply(gradients[0], mask, ctx.scale), None, None


class Dropout(nn.Dropout):
    """torch's module, drawing as this file says."""

    def forward(self, states: Tensor) -> Tensor:
        """Of the shape of `states`."""
        return dropped(states, self.p) if self.training else states


def lighten(network: nn.Module) -> None:
    """Puts `Dropout` in the place of torch's own modules in this network, which has no weights less or more for it."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout and not child.inplace:
                setattr(module, name, Dropout(child.p).train(child.training))
