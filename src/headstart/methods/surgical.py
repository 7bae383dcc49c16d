"""Only the blocks learn in which the data asks for most change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._checks import flag, refuse, whole
from headstart.protocols import Context, Method
from headstart.values import Batch, Group


@dataclass
class Surgical(Method):
    """Measures how much the training rows pull at each block, and lets the most pulled one learn, or each accordingly.

    Equation: r_b = mean over batches of ||g_b||_2 / ||w_b||_2, w_b all weights of part b and g_b the gradient of the
    task's loss to them; the parts are the stem, each block and the tail. The `blocks` parts of highest r learn, all
    others are frozen. With `soft` every part learns at r_b / max r times the learning rate, measured anew at the start
    of every epoch.

    Source: Lee et al. 2023 (Surgical Fine-Tuning Improves Adaptation to Distribution Shifts): one block alone, and r
    and `soft` as Auto-RGN. There r is taken for each tensor and the single block is found by trying all of them; here a
    part is a block of the backbone, and r chooses the single one too.

    Requires: labels. Owns `groups`, so it excludes `freeze`, `lora`, `ia3`, `adapter` and `prompt`.

    Shapes: gradients of the whole backbone for the time of the measurement.

    Neighbours: `freeze:top=1` always takes the last block, `freeze:decay` lets rates fall with depth whatever the data.
    The rows are looked at as they stand, before augmentation and without penalties, dropout or movement of BatchNorm
    statistics. What was chosen stands in the notes of the report. The plan, made before, counts every part.

    Example: `--method surgical:blocks=2` or `--method surgical:soft=true`; `hs.methods.Surgical(soft=True)`.

    Defaults: blocks = 1 is the paper's setting. batches = 8 is not tuned. The rate used when the user gives none is
    1e-4: the run's own for texts; on pictures of ants and bees it did better than their 3e-4, one seed.

    blocks: how many parts learn. soft: all learn, at their own rates. batches: how many are measured on; a pass forward
    and back each.
    """

    blocks: int = 1
    soft: bool = False
    batches: int = 8

    def __post_init__(self) -> None:
        whole("surgical:blocks", self.blocks, 1, "such as blocks=1")
        flag("surgical:soft", self.soft)
        whole("surgical:batches", self.batches, 1, "such as batches=8")
        if self.soft and self.blocks != 1:
            raise MethodError(
                "surgical:soft lets every part learn, surgical:blocks chooses some: leave one of them out"
            )

    def groups(self, model: nn.Module, ctx: Context) -> list[Group]:
        """The chosen parts, or all with their rates; every part where no batch can be looked at."""
        parts = _parts(model.backbone)
        if self.blocks > len(parts):
            raise refuse("surgical:blocks", f"at most {len(parts)}, the number of parts", self.blocks, "choose fewer")
        measured = getattr(self, "epoch_", None)
        if measured is None or (self.soft and measured != ctx.progress.epoch):
            if ctx.batches is None:
                return [Group(tuple(p for parameters in parts.values() for p in parameters))]
            self.ratios_ = self._measure(model, parts, ctx)
            self.epoch_ = ctx.progress.epoch
        self.names_ = list(parts)
        rates = self._rates()
        return [Group(parameters, rates[name]) for name, parameters in parts.items() if rates[name] > 0]

    def _measure(self, model: nn.Module, parts: Mapping[str, tuple[nn.Parameter, ...]], ctx: Context) -> list[float]:
        """r of every part. Flags and modes are left as they were."""
        every = [p for parameters in parts.values() for p in parameters]
        flags = [p.requires_grad for p in every]
        found: list[list[Tensor]] = []
        try:
            for parameter in every:
                parameter.requires_grad_(True)
            with ctx.quiet(model):
                for batch in islice(ctx.batches() if ctx.batches else (), self.batches):
                    slopes = torch.autograd.grad(_loss(model, batch, ctx), every, allow_unused=True)
                    of = {id(p): slope for p, slope in zip(every, slopes, strict=True)}
                    found.append([_ratio(parameters, of) for parameters in parts.values()])
        finally:
            for parameter, learns in zip(every, flags, strict=True):
                parameter.requires_grad_(learns)
        means = torch.stack([torch.stack(row) for row in found]).mean(0)
        if not bool(torch.isfinite(means).all()) or not float(means.max()) > 0:
            raise MethodError(
                f"'surgical' found no part of the backbone that the loss pulls at (ratios {means.tolist()}); use freeze"
            )
        return [float(value) for value in means]

    def _rates(self) -> dict[str, float]:
        """The rate of every part, as a factor on the learning rate; 0 is frozen."""
        ratios = dict(zip(self.names_, self.ratios_, strict=True))
        if self.soft:
            return {name: ratio / max(ratios.values()) for name, ratio in ratios.items()}
        best = sorted(ratios, key=lambda name: -ratios[name])[: self.blocks]
        return {name: float(name in best) for name in ratios}

    def learning_rate(self, modality: str) -> float | None:
        """1e-4."""
        return 1e-4

    def notes(self) -> list[str]:
        """What was chosen, and by which numbers."""
        if not hasattr(self, "ratios_"):
            return []
        listed = ", ".join(f"{name} {ratio:.2g}" for name, ratio in zip(self.names_, self.ratios_, strict=True))
        if self.soft:
            return [f"surgical: gradient over weight in the last epoch, which the rates follow: {listed}"]
        chosen = " and ".join(name for name, rate in self._rates().items() if rate)
        return [f"surgical: {chosen} learned; gradient over weight at the start: {listed}"]

    def state(self) -> dict[str, Any]:
        """What was measured, and when."""
        return {"ratios": self.ratios_, "epoch": self.epoch_} if hasattr(self, "ratios_") else {}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Go on with the same choice."""
        if state:
            self.ratios_ = [float(value) for value in state["ratios"]]
            self.epoch_ = int(state["epoch"])


def _parts(backbone: Any) -> dict[str, tuple[nn.Parameter, ...]]:
    """Parameters by part, from the input upwards; what two parts share belongs to the upper one."""
    blocks = list(backbone.blocks)
    pieces: list[tuple[str, list[Any]]] = [
        ("the stem", list(backbone.stem)),
        *((f"block {number} of {len(blocks)}", [block]) for number, block in enumerate(blocks, 1)),
        ("the tail", list(backbone.tail)),
    ]
    seen: set[int] = set()
    found: dict[str, tuple[nn.Parameter, ...]] = {}
    for name, modules in reversed(pieces):
        mine: list[nn.Parameter] = []
        for module in modules:
            for parameter in [module] if isinstance(module, nn.Parameter) else module.parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    mine.append(parameter)
        if mine:
            found[name] = tuple(mine)
    return dict(reversed(found.items()))


def _loss(model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
    """The task's loss of a batch, its rows by weight."""
    if batch.labels is None:
        raise MethodError("'surgical' measures the gradient of the task's loss, and a training batch has no labels")
    with ctx.autocast():
        outputs = model(batch)[1]
    losses = ctx.task.loss(outputs.float(), batch.labels)
    return (losses * batch.weight).sum() / batch.weight.sum().clamp_min(1e-12)


def _ratio(parameters: tuple[nn.Parameter, ...], slopes: Mapping[int, Tensor | None]) -> Tensor:
    """The length of the gradient over that of the weights."""
    gradient = [slope.float().norm() for p in parameters if (slope := slopes[id(p)]) is not None]
    weight = torch.stack([p.detach().float().norm() for p in parameters]).norm()
    return torch.stack(gradient).norm() / weight.clamp_min(1e-12) if gradient else torch.zeros_like(weight)
