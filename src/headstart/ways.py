"""How the steps of a run are computed. Every way gives the numbers of the plain one, within what it says itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from headstart import casting, recompute


@dataclass(frozen=True)
class Ways:
    """precision: of forward passes, one of `casting.KINDS`. recompute: gradient checkpointing."""

    precision: str = "fp32"
    recompute: bool = False

    def pass_(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Around each forward pass."""
        return casting.running(model, self.precision)

    @contextmanager
    def step(self, model: nn.Module) -> Iterator[None]:
        """Around the passes of one step, forward and backward."""
        with ExitStack() as stack:
            if self.recompute:
                stack.enter_context(recompute.within(model.backbone))
            yield
