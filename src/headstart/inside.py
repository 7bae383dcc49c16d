"""The blocks of a backbone run in another way for the time of a training step, as long as nobody looks inside them.

A block's `forward` is replaced on the instance and put back afterwards, so hooks on a block itself are called as ever,
and a copy, a checkpoint or a finished model never see the replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Forward = Callable[..., Any]


def plain(modules: Sequence[nn.Module]) -> bool:
    """Whether these modules run as they were built: without hooks, and without tensors that stand in for weights.

    Methods that look into or change a pass do it by one of the two, and count on passes that they know of.
    """
    for module in modules:  # asked in every step, and generators would take three times as long
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        for value in module.__dict__.values():
            if isinstance(value, Tensor):
                return False
    return True


@contextmanager
def replaced(blocks: Sequence[nn.Module], make: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """Inside, each block runs `make(block, its forward)`."""
    own = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = make(block, block.forward)
        yield
    finally:
        for block, forward in own:
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.__dict__["forward"] = forward
