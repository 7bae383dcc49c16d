"""How the steps of a run are computed. Every way gives the numbers of the plain one, within what it says itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from headstart import casting, compiling, recompute
from headstart.compiling import Compiled
from headstart.planning import Choice
from headstart.values import Batch


@dataclass(frozen=True)
class Ways:
    """precision: of forward passes, one of `casting.KINDS`. recompute: gradient checkpointing.

    compile: whether blocks are compiled, 'on', 'off' or 'auto', and then compiled: those that are. seconds: what the
    run is expected to take, where that is known.
    """

    precision: str = "fp32"
    recompute: bool = False
    compile: str = "off"
    seconds: float | None = None
    compiled: Compiled | None = None

    def pass_(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Around each forward pass."""
        return casting.running(model, self.precision)

    @contextmanager
    def step(self, model: nn.Module) -> Iterator[None]:
        """Around the passes of one step, forward and backward."""
        with ExitStack() as stack:
            if self.compiled is not None:
                stack.enter_context(self.compiled.within())
            if self.recompute:
                if self.compiled is not None:
                    # A second pass that ends early does so by an exception, which compiled code must not meet.
                    stack.enter_context(set_checkpoint_early_stop(False))
                stack.enter_context(recompute.within(model.backbone))
            yield

    def settled(self, model: nn.Module, batches: Callable[[], Sequence[Batch]]) -> tuple[Ways, Choice]:
        """These ways when it is decided whether blocks are compiled. batches: a short, a usual and a long one."""
        if self.compile == "off":
            return self, Choice(False)
        if self.compile == "on":
            return replace(self, compiled=compiling.all_of(model.backbone.blocks)), Choice(True, "as asked")  # type: ignore[union-attr, arg-type]
        if self.seconds is None or self.seconds < compiling.LONG:
            return self, Choice(False)
        with replace(self, compiled=None).step(model):
            found, choice = compiling.choose(model, batches(), self.seconds, lambda: self.pass_(model))
        return replace(self, compiled=found), choice
