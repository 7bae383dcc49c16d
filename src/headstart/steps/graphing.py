"""A step's passes as CUDA graphs: recorded once for each shape of batch, and then started by one call each.

A small network on a fast GPU waits for the processor, which starts some hundred kernels a pass. A recorded pass starts
them all at once and computes what they compute; random numbers go on from where the generator stands.

What runs on the processor runs only while a pass is recorded. So there are no graphs where a method makes passes or
gradients of its own, a pass that someone looks into runs plainly, and a network that draws random numbers on the
processor is not recorded at all.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from headstart.encoded import Encoded
from headstart.errors import SpecError
from headstart.inside import Forward, plain, replaced
from headstart.model import quiet
from headstart.running import set_modes
from headstart.spec import TrainingSpec
from headstart.steps import casting, costing
from headstart.steps.untouched import apart, untouched
from headstart.values import Batch, Choice, Features

WARM = 2
"""Plain passes before a recording: libraries choose their kernels and take their room in the first."""

PAIRS = 5
"""Steps in pairs for each batch that is tried, plain and recorded, turn about."""

CLEAR = 2.0
"""A gain that every batch shows at once is not timed again."""

STEPS = 10
"""What trying it takes, about, in plain steps."""

FASTER = 1.1
"""A recorded step must win by this factor."""

MOST = 64
"""Shapes that are recorded at most; rows of other shapes run plainly."""

PARTS = ("pooled", "tokens", "map")
"""Of `Features`, what gradients may come back to: methods add to the loss by what they make of it."""

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""How far gradients of the batches that are tried may differ, as a share of the largest, by precision."""


class Steps(Protocol):
    """How steps are made otherwise: what is asked here of `ways.Ways`."""

    @property
    def precision(self) -> str:
        """Of forward passes."""

    @property
    def recompute(self) -> bool:
        """Whether blocks run a second time."""

    @property
    def pack(self) -> bool:
        """Whether rows lose their padding."""

    def step(self, model: nn.Module) -> AbstractContextManager[None]:
        """Around the passes of a step."""


class _Replay(torch.autograd.Function):
    """The recorded passes as one operation. `anchor` makes it part of a graph of gradients; it gets none itself."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, recorded: Recorded) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        ctx.set_materialize_grads(False)
        recorded.ahead.replay()
        return tuple(tensor.detach() for tensor in recorded.made.values())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
        ctx.recorded.back(gradients)
        return None, None


@dataclass
class Recorded:
    """Two graphs of one shape of batch, and the tensors that they read and write.

    inputs: what the first reads. features: what it writes. made: the part of it that gradients come back to, with the
    outputs (N,K) first. gradients: those of `made`, which the second reads. sums: gradients that it adds to, by
    parameter. ahead, behind: the graphs of the forward and the backward pass.
    """

    owner: Graphed
    inputs: dict[str, Tensor]
    features: Features | None = None
    made: dict[str, Tensor] = field(default_factory=dict)
    gradients: list[Tensor] = field(default_factory=list)
    sums: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    ahead: Any = None
    behind: Any = None

    def run(self, batch: Batch) -> tuple[Features, Tensor]:
        """The forward pass of a batch of this shape."""
        for name, value in batch.inputs.items():
            self.inputs[name].copy_(value, non_blocking=True)
        self.owner.busy = True
        anchor = torch.zeros((), device=self.gradients[0].device, requires_grad=True)
        found = dict(zip(self.made, _Replay.apply(anchor, self), strict=True))
        outputs = found.pop("outputs")
        assert self.features is not None
        return replace(self.features, **found), outputs

    def back(self, gradients: Sequence[Tensor | None]) -> None:
        """Run the backward pass; gradients are then where a plain pass puts them, added to those that stand there."""
        fresh = {parameter: own for parameter, own in self.sums.items() if parameter.grad is not own}
        if fresh:
            torch._foreach_zero_(list(fresh.values()))
        for own, gradient in zip(self.gradients, gradients, strict=True):
            own.zero_() if gradient is None else own.copy_(gradient)
        self.behind.replay()
        for parameter, own in fresh.items():
            # A plain pass of the same step may have been here before.
            parameter.grad = own if parameter.grad is None else parameter.grad + own
        self.owner.busy = False


@dataclass
class Graphed:
    """Recorded passes by shape of batch. failed: why recording was given up, after which all runs plainly.

    busy: whether a forward pass waits for its backward pass, whose memory no other recorded pass may use. sums: where
    all recorded passes leave their gradients, so that memory does not grow with the shapes. parts, parameters: of the
    model, listed once: surgery comes before the first step, and to walk through a model takes as long as its pass.
    """

    failed: str = ""
    busy: bool = False
    made: dict[tuple[Any, ...], Recorded] = field(default_factory=dict)
    sums: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    pool: Any = None
    parts: list[nn.Module] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model's passes with gradients are recorded ones, where that is possible."""
        self.busy = False
        if not self.parts:
            self.parts, self.parameters = list(model.modules()), list(model.parameters())
        with replaced([model], lambda model, forward: partial(self._run, model, forward)):
            yield

    def _run(self, model: nn.Module, forward: Forward, batch: Batch) -> Any:
        if self.failed or self.busy or not torch.is_grad_enabled() or not self._usual(batch):
            return forward(batch)
        key = (_shape(batch), self._state())
        recorded = self.made.get(key)
        if recorded is None and len(self.made) < MOST:
            try:
                recorded = self.made[key] = self._record(model, forward, batch)
            except Exception as error:  # networks do many things that cannot be recorded
                self.failed = " ".join(str(error).split())[:200] or type(error).__name__
                torch.cuda.synchronize()
        if recorded is None:
            return forward(batch)
        return recorded.run(batch)

    def _usual(self, batch: Batch) -> bool:
        """Whether a pass of this batch is the network's own: nothing is added or mixed in, and nobody looks inside."""
        return batch.shift is None and batch.mix is None and batch.kept is None and plain(self.parts[1:])

    def _state(self) -> tuple[Any, ...]:
        """What else a recording depends on: who learns, the modes, the precision."""
        learning = tuple([p.requires_grad for p in self.parameters])
        modes = tuple([part.training for part in self.parts])
        precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        return learning, modes, precision

    def _record(self, model: nn.Module, forward: Forward, batch: Batch) -> Recorded:
        """Both passes of a batch, recorded; the model, its gradients and random numbers are left as they were."""
        recorded = Recorded(self, {name: value.clone() for name, value in batch.inputs.items()})
        own = batch.replace(inputs=recorded.inputs, labels=None)
        learning = [p for p in self.parameters if p.requires_grad]

        def ahead() -> None:
            features, outputs = forward(own)
            parts = {name: part for name in PARTS if (part := getattr(features, name)) is not None}
            # Detached, so that what the pass kept for its backward pass can go with it.
            recorded.features = replace(features, **{name: part.detach() for name, part in parts.items()})
            recorded.made = {n: part for n, part in {"outputs": outputs, **parts}.items() if part.requires_grad}

        def gradients() -> dict[nn.Parameter, Tensor]:
            if not recorded.gradients:
                recorded.gradients = [torch.zeros_like(part) for part in recorded.made.values()]
            made = list(recorded.made.values())
            found = torch.autograd.grad(made, learning, recorded.gradients, allow_unused=True)
            return {p: gradient for p, gradient in zip(learning, found, strict=True) if gradient is not None}

        def behind() -> None:
            moved = gradients()
            torch._foreach_add_([recorded.sums[p] for p in moved], list(moved.values()))

        with untouched(model, gradients=False), _uncached():
            with _aside():
                before = _drawn()
                for _ in range(WARM):
                    ahead()
                    moved = gradients()
                if _drawn() != before:
                    raise RuntimeError("the network draws random numbers on the processor")
            for parameter in moved:
                self.sums.setdefault(parameter, torch.zeros_like(parameter))
            recorded.sums = {parameter: self.sums[parameter] for parameter in moved}
            # What autograd holds of the passes aside belongs to their stream, on which no recording may wait.
            del moved
            recorded.made, recorded.features = {}, None
            recorded.ahead, recorded.behind = self._captured(ahead), self._captured(behind)
        recorded.made = {name: part.detach() for name, part in recorded.made.items()}
        return recorded

    def _captured(self, work: Callable[[], None]) -> Any:
        """The kernels that this starts, as a graph; what it reads and writes has its place from now on."""
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            work()
        return graph


@contextmanager
def _aside() -> Iterator[None]:
    """Inside, work goes to a stream of its own, as it does while a graph is recorded."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


def choose(
    model: nn.Module, rows: Encoded, training: TrainingSpec, ways: Steps, *, epochs: int, passes: Sequence[str]
) -> Choice:
    """Whether a stage is to record its passes: as asked, or where it pays, recording included.

    model: a copy after the stage's surgery, with gradients switched on for what learns. ways: how its steps are made
    otherwise. epochs: of the stage. passes: names of methods that make passes of their own in a step.

    Raises SpecError when it is asked for and cannot be had.
    """
    asked = training.cuda_graphs == "on"
    if training.cuda_graphs == "off":
        return Choice(False)
    reason = _why_not(model, ways, passes)
    if reason is None:
        chosen = costing.batches(rows, training, backward=True)
        if not asked and epochs * len(chosen) < costing.WORTH * STEPS:
            return Choice(False)
        batches = _three(rows, chosen, next(model.parameters()).device)
        set_modes(model, keep_stats=training.running_stats == "keep")
        shapes = len({(len(index), rows.prepared.room(index)) for index in chosen})
        choice, reason = measured(model, batches, ways, steps=epochs * len(chosen), shapes=shapes)
        if not asked:
            return choice if reason is None else Choice(False, f"passes cannot be CUDA graphs: {reason}")
        if reason is None:
            return replace(choice, on=True, why="as asked")
    if asked:
        raise SpecError(f"training.cuda_graphs = 'on' cannot be had here: {reason}. Leave it out")
    return Choice(False)


def _why_not(model: nn.Module, ways: Steps, passes: Sequence[str]) -> str | None:
    """Why passes are not even tried, if so."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return f"it needs a GPU with CUDA, and this run is on '{device}'"
    if passes:
        return f"'{passes[0]}' makes passes of its own"
    if ways.pack:
        return "packed rows have a size of their own in each batch"
    if ways.recompute:
        return "gradient checkpointing runs blocks a second time"
    if ways.precision == "bf16_weights":
        return "bf16 weights are made anew for each pass"
    return None


def _three(rows: Encoded, batches: Sequence[np.ndarray], device: torch.device) -> list[Batch]:
    """A short, a usual and a long batch."""
    order = sorted(batches, key=lambda index: int(rows.prepared.lengths[index].max()))
    return [rows.batch(order[place * (len(order) - 1) // 2].tolist()).to(device) for place in range(3)]


def measured(
    model: nn.Module, batches: Sequence[Batch], ways: Steps, *, steps: int, shapes: int
) -> tuple[Choice, str | None]:
    """Whether a run of so many steps, with batches of so many shapes, is faster with recorded passes; why there are
    none. Random numbers, statistics and gradients of the model are left as they were.
    """
    found, recording = Graphed(), 0.0
    times: tuple[list[float], list[float]] = ([], [])
    with untouched(model), ways.step(model):
        for batch in batches:
            _step(model, batch, ways.precision)
            with found.within(model):
                recording += _step(model, batch, ways.precision)
        if found.failed or not found.made:
            return Choice(False), found.failed or "a method looks into the network"
        if any(_differs(model, batch, ways, found) for batch in batches):
            return Choice(False), "recorded passes do not give what plain ones give"
        for _ in range(PAIRS):
            for batch in batches:
                times[0].append(_step(model, batch, ways.precision))
                with found.within(model):
                    times[1].append(_step(model, batch, ways.precision))
            if all(plain > CLEAR * own for plain, own in zip(*times, strict=True)):
                break
    plainly, graphed = map(median, times)
    gain, spent = plainly / graphed, recording / len(batches) * min(shapes, MOST)
    on = gain >= FASTER and graphed * steps + spent < plainly * steps
    why = f"both passes are {gain:.1f} times as fast as CUDA graphs, recorded in {spent:.1f} s"
    return Choice(on, why, gain), None


def _differs(model: nn.Module, batch: Batch, ways: Steps, found: Graphed) -> bool:
    """Whether gradients by recorded passes are not those of plain ones, without dropout: a mask that hides nothing is
    left out of a plain pass, and another kernel then draws other numbers.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    made = []
    for wrapped in (nullcontext(), found.within(model)):
        with quiet(model), wrapped:
            _step(model, batch, ways.precision, keep=True)
            made.append([None if p.grad is None else p.grad.clone() for p in learning])
            model.zero_grad(set_to_none=True)
    plain, recorded = made
    return apart(plain, recorded, TOLERANCE[ways.precision])


def seconds(model: nn.Module, batch: Batch, precision: str) -> float | None:
    """What both passes of a batch take as CUDA graphs, which is what the GPU takes; None where they cannot be recorded.

    The model is left as it was.
    """
    found = Graphed()
    with untouched(model), found.within(model):
        times = [_step(model, batch, precision) for _ in range(PAIRS + 1)][1:]
    return median(times) if found.made and not found.failed else None


def _step(model: nn.Module, batch: Batch, precision: str, *, keep: bool = False) -> float:
    """Seconds of a forward and a backward pass. keep: whether gradients stay."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    with casting.running(model, precision):
        features, outputs = model(batch)
    (outputs.float().square().mean() + features.pooled.float().square().mean()).backward()
    torch.cuda.synchronize()
    spent = time.perf_counter() - started
    if not keep:
        model.zero_grad(set_to_none=True)
    return spent


def _shape(batch: Batch) -> tuple[Any, ...]:
    return tuple((name, tuple(value.shape), value.dtype) for name, value in sorted(batch.inputs.items()))


@contextmanager
def _uncached() -> Iterator[None]:
    """Inside, autocast casts weights in every pass: a recorded pass must read the weights of its own day."""
    on, kind = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with torch.autocast("cuda", kind, enabled=on, cache_enabled=False):
        yield


def _drawn() -> tuple[Any, ...]:
    """Where the processor's generators of random numbers stand."""
    numbers: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), numbers[1].tobytes(), numbers[2], hash(random.getstate())
