"""How the steps of a run are computed. Every way gives the numbers of the plain one, within what it says itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from headstart.ahead import Ahead
from headstart.encoded import Encoded
from headstart.parts import Parts
from headstart.spec import TrainingSpec
from headstart.steps import casting, compiling, graphing, memory, packing, recompute
from headstart.steps.compiling import Compiled
from headstart.steps.graphing import Graphed
from headstart.steps.memory import Weighed
from headstart.steps.precision import Precision
from headstart.values import Batch, Choice


def told(**choices: Choice | Ahead | Parts) -> dict[str, Any]:
    """Choices for the report, those that say why."""
    return {name: {"on": choice.on, "why": choice.why} for name, choice in choices.items() if choice.why}


@dataclass(frozen=True)
class Settled:
    """What a stage's steps are made in, decided once. seconds: what the stage is expected to take, where measured."""

    precision: Precision
    memory: Weighed
    packing: Choice
    graphs: Choice
    compile: str
    seconds: float | None = None

    @classmethod
    def of(
        cls, model: nn.Module, rows: Encoded, training: TrainingSpec, precision: Precision, *, epochs: int = 1,
        passes: Sequence[str] = (),
    ) -> Settled:  # fmt: skip
        """Decide, on a copy of the model after the stage's surgery, with gradients for what learns.

        epochs: of the stage. passes: names of methods that make passes of their own in a step.

        Raises SpecError where something is asked for that this network cannot do.
        """
        weighed = memory.choose(model, rows, training, precision.name)
        ways = Ways(precision.name, weighed.choice.on, pack=training.packing == "on")
        graphs = graphing.choose(model, rows, training, ways, epochs=epochs, passes=passes)
        asked = training.cuda_graphs == "on"
        beyond = math.inf if asked else graphs.gain if graphs.on else 1.0
        packed = packing.choose(model, rows, training, precision.name, epochs=epochs, beyond=beyond)
        if packed.on:  # rows of a size of their own cannot be recorded
            graphs = replace(graphs, on=False)
        return cls(precision, weighed, packed, graphs, training.compile)

    @property
    def ways(self) -> Ways:
        """The ways of the stage's run."""
        return Ways(
            self.precision.name, self.memory.choice.on, self.packing.on, self.compile, self.seconds,
            graphed=Graphed() if self.graphs.on else None,
        )  # fmt: skip

    def said(self) -> tuple[str, ...]:
        """For the plan, what is not done plainly, and what was looked into and left."""
        memory, packed, graphs = self.memory.choice, self.packing, self.graphs
        lines = [f"gradient checkpointing ({memory.why})" if memory.on else memory.why]
        lines.append(f"rows without their padding ({packed.why})" if packed.on else packed.why)
        lines.append("blocks compiled" if self.compile == "on" else "")
        lines.append(f"passes as CUDA graphs ({graphs.why})" if graphs.on else graphs.why)
        return tuple(line for line in lines if line)

    def record(self) -> dict[str, Any]:
        """For the report, the same."""
        return told(gradient_checkpointing=self.memory.choice, packing=self.packing, cuda_graphs=self.graphs)


@dataclass(frozen=True)
class Ways:
    """precision: of forward passes, one of `casting.KINDS`. recompute: gradient checkpointing.
    pack: rows without their padding.

    compile: whether blocks are compiled, 'on', 'off' or 'auto', and then compiled: those that are. seconds: what the
    run is expected to take, where that is known. graphed: passes as CUDA graphs.
    """

    precision: str = "fp32"
    recompute: bool = False
    pack: bool = False
    compile: str = "off"
    seconds: float | None = None
    compiled: Compiled | None = None
    graphed: Graphed | None = None

    def pass_(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Around each forward pass."""
        return casting.running(model, self.precision)

    @contextmanager
    def step(self, model: nn.Module) -> Iterator[None]:
        """Around the passes of one step, forward and backward."""
        with ExitStack() as stack:
            if self.pack:
                stack.enter_context(packing.within(model))
            if self.compiled is not None:
                stack.enter_context(self.compiled.within())
            if self.recompute:
                if self.compiled is not None:
                    # A second pass that ends early does so by an exception, which compiled code must not meet.
                    stack.enter_context(set_checkpoint_early_stop(False))
                stack.enter_context(recompute.within(model.backbone))
            if self.graphed is not None:
                stack.enter_context(self.graphed.within(model))
            yield

    def settled(self, model: nn.Module, batches: Callable[[], Sequence[Batch]]) -> tuple[Ways, Choice]:
        """These ways when it is decided whether blocks are compiled. batches: a short, a usual and a long one."""
        if self.compile == "off":
            return self, Choice(False)
        if self.compile == "on":
            return replace(self, compiled=compiling.all_of(model.backbone.blocks)), Choice(True, "as asked")  # type: ignore[union-attr, arg-type]
        if self.seconds is None or self.seconds < compiling.LONG:
            return self, Choice(False)
        with replace(self, compiled=None, graphed=None).step(model):
            found, choice = compiling.choose(model, batches(), self.seconds, lambda: self.pass_(model))
        return replace(self, compiled=found), choice
