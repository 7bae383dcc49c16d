"""A plain average of the weights of the last part of training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.methods._averaging import AveragingMethod
from headstart.methods._checks import number, whole
from headstart.model import quiet
from headstart.protocols import Context
from headstart.values import Batch


@dataclass
class SWA(AveragingMethod):
    """Validates and keeps the uniform average of the weights since a point of the run.

    Equation: a = (1 / n) sum_i w_i over the weights w_i after each step that ends beyond the share `start` of the run.
    BatchNorm statistics are those of a itself: the mean of the means and variances that a has on recent batches.

    Source: Izmailov et al. 2018 (Averaging Weights Leads to Wider Optima), section 3.2, algorithm 1. There one set of
    weights is taken an epoch or cycle, and statistics are computed over all training rows; here every step's weights,
    since fine-tuning has few epochs, and the statistics of the epoch's last batches.

    Requires: nothing. Owns `weights`, so it excludes `ema`. Before `start` the run's own weights are validated; with
    validation rows the best validated weights are kept, averaged or not.

    Shapes: one float32 copy of every learning parameter. Where the network has BatchNorm, the inputs of the last
    `batches` micro-batches of an epoch too.

    Neighbours: `ema` forgets, this one weighs all alike. The paper's steps stay large while it averages: `--set
    training.schedule=constant`. `sam` seeks the same flat minima in another way and combines with this one.

    Example: `--method swa:start=0.75`; `hs.methods.SWA(start=0.75)`.

    Defaults: start = 0.75 is the paper's (section 4.1: from three quarters of the budget). batches = 20 gives
    statistics of some hundred rows.

    start: share of the run after which weights are averaged, in [0, 1). batches: micro-batches, as the run draws them,
    without augmentation, that BatchNorm statistics are computed on.
    """

    start: float = 0.75
    batches: int = 20

    def __post_init__(self) -> None:
        number("swa:start", self.start, 0, "such as start=0.75", high=0.999)
        whole("swa:batches", self.batches, 1, "such as batches=20")

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; it is remembered."""
        self.model_ = model
        self.recent_: deque[Batch] = deque(maxlen=self.batches)
        self.statistics_: dict[str, Tensor] = {}
        return model

    def share(self, ctx: Context) -> float | None:
        """1 / n for the n-th weights."""
        done = (ctx.progress.step + 1) / max(1, ctx.progress.steps)
        return 1 / self.steps_ if done > self.start else None

    def stream(self, batches: Iterable[Batch], ctx: Context) -> Iterator[Batch]:
        """The same batches; the last ones of an epoch in which weights are averaged are remembered."""
        self.recent_.clear()
        needed = (ctx.progress.epoch + 1) / ctx.progress.epochs > self.start and _norms(self.model_)
        for batch in batches:
            if needed:
                self.recent_.append(batch)
            yield batch

    def weights(self) -> Mapping[str, Tensor] | None:
        """The averages with BatchNorm statistics of their own. None before `start`."""
        found = super().weights()
        return None if found is None else {**found, **self._statistics(found)}

    def _statistics(self, averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The buffers of the BatchNorms that move, as the averaged network makes them on the remembered batches."""
        norms = {name: norm for name, norm in _norms(self.model_).items() if norm.training}
        if not norms or not self.recent_:
            return self.statistics_
        fresh: dict[str, Tensor] = {}
        for name, norm in norms.items():
            for key, buffer in norm.named_buffers():
                fresh[f"{name}.{key}"] = torch.ones_like(buffer) if key == "running_var" else torch.zeros_like(buffer)
        values = {name: averages[name] for name, _ in self.model_.named_parameters()} | fresh
        device = next(self.model_.parameters()).device
        with torch.no_grad(), _collecting(self.model_, list(norms.values())):
            for batch in self.recent_:
                torch.func.functional_call(self.model_, values, (batch.to(device),))
        return fresh

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model as it is; the remembered batches are let go."""
        self.recent_.clear()
        return model

    def state(self) -> dict[str, Any]:
        """Also the statistics, for a run that goes on with nothing left to train."""
        found = super().state()
        return {**found, "statistics": self._statistics(super().weights() or {})} if found else {}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Go on from a state; an empty one is a run that has averaged nothing."""
        super().load_state(state, model)
        self.statistics_ = {name: value.clone() for name, value in state.get("statistics", {}).items()}


def _norms(model: nn.Module) -> dict[str, Any]:
    """The BatchNorms that keep statistics, by name."""
    kind = nn.modules.batchnorm._BatchNorm
    return {name: m for name, m in model.named_modules() if isinstance(m, kind) and m.running_mean is not None}


@contextmanager
def _collecting(model: nn.Module, norms: list[Any]) -> Iterator[None]:
    """The model as at inference, but these BatchNorms use the batch and keep a plain mean of what they see."""
    momenta = [norm.momentum for norm in norms]
    with quiet(model), ExitStack() as stack:
        for norm in norms:
            norm.momentum = None
            # Training for its own answer alone, so that other methods' hooks find a layer at inference.
            stack.callback(norm.register_forward_pre_hook(_train).remove)
            stack.callback(norm.register_forward_hook(_settle, prepend=True).remove)
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _train(norm: nn.Module, args: Any) -> None:
    norm.training = True


def _settle(norm: nn.Module, args: Any, output: Any) -> None:
    norm.training = False
