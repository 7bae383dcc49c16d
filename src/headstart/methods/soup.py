"""An average of the best validated checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.methods._checks import choice, whole
from headstart.protocols import Context, Method

Weights = dict[str, Tensor]


@dataclass
class Soup(Method):
    """Averages the weights of the best validated checkpoints of a run, if that does not validate worse.

    Equation: `uniform`: w = (1 / k) sum_i w_i over the k best checkpoints. `greedy`: from the best downwards, a
    checkpoint joins when the average with it validates at least as well as without.

    Source: Wortsman et al. 2022 (Model Soups), section 2, algorithm 1. There the ingredients are runs with different
    hyper-parameters; checkpoints of one run are those of Izmailov et al. 2018 (SWA), section 3.

    Requires: validation rows; without any nothing is collected and the model is left as it is.

    Shapes: k copies of the weights in CPU memory; tensors that do not change are held once.

    Neighbours: `ema` averages every step and combines with this one. BatchNorm statistics are averaged too, which is
    an approximation that holds for checkpoints this close together.

    Example: `--method soup:k=3,mix=greedy`; `hs.methods.Soup(k=3)`.

    Defaults: k = 3 keeps the checkpoints of a short run close together; `uniform` costs one extra validation,
    `greedy` k - 1. Either falls back to the best single checkpoint when the average validates worse.

    k: checkpoints kept. mix: uniform or greedy.
    """

    k: int = 3
    mix: str = "uniform"

    def __post_init__(self) -> None:
        whole("soup:k", self.k, 2, "such as k=3; one checkpoint is what a run keeps anyway")
        choice("soup:mix", self.mix, ("uniform", "greedy"))

    def after_validation(self, model: nn.Module, score: float, ctx: Context) -> None:
        """Keep the validated weights if they are among the k best."""
        if score != score:
            return
        kept: list[tuple[float, Weights]] = getattr(self, "kept_", [])
        place = next((i for i, (other, _) in enumerate(kept) if ctx.task.better(score, other)), len(kept))
        if place < self.k:
            kept.insert(place, (score, _copy(model, [weights for _, weights in kept])))
        self.kept_ = kept[: self.k]

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model with averaged weights. `mixed_` says afterwards how many checkpoints they average."""
        kept = getattr(self, "kept_", [])
        self.mixed_ = len(kept)
        if len(kept) < 2:
            return model
        joined = self._choose([weights for _, weights in kept], model, ctx)
        model.load_state_dict(average(joined))
        self.mixed_ = len(joined)
        return model

    def _choose(self, checkpoints: list[Weights], model: nn.Module, ctx: Context) -> list[Weights]:
        """The checkpoints to average. With nothing to judge by, `uniform` takes all and `greedy` the best alone."""
        best, validate = checkpoints[:1], ctx.validate
        if validate is None:
            return checkpoints if self.mix == "uniform" else best

        def score(candidates: list[Weights]) -> float:
            model.load_state_dict(average(candidates))
            return validate(model)

        joined, reached = best, score(best)
        trials = [checkpoints] if self.mix == "uniform" else [[extra] for extra in checkpoints[1:]]
        for trial in trials:
            candidates = trial if self.mix == "uniform" else [*joined, *trial]
            value = score(candidates)
            if value == value and not ctx.task.better(reached, value):
                joined, reached = candidates, value
        return joined

    def state(self) -> dict[str, Any]:
        """Scores, each distinct tensor once, and which of them make up each checkpoint."""
        kept = getattr(self, "kept_", [])
        number: dict[int, str] = {}
        tensors: Weights = {}
        recipes = []
        for _, weights in kept:
            for value in weights.values():
                if id(value) not in number:
                    number[id(value)] = str(len(number))
                    tensors[number[id(value)]] = value
            recipes.append({name: number[id(value)] for name, value in weights.items()})
        return {"scores": [score for score, _ in kept], "recipes": recipes, "tensors": tensors}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Go on from a state; an empty one is a run that validated nothing."""
        if not state:
            return
        recipes = [{name: state["tensors"][key] for name, key in recipe.items()} for recipe in state["recipes"]]
        self.kept_ = list(zip([float(score) for score in state["scores"]], recipes, strict=True))


def average(checkpoints: Sequence[Weights]) -> Weights:
    """The mean of every floating point tensor, summed in float64; other tensors are the first checkpoint's."""
    found: Weights = {}
    for name, first in checkpoints[0].items():
        others = [weights[name] for weights in checkpoints]
        if not first.is_floating_point() or all(other is first for other in others):
            found[name] = first
            continue
        total = torch.zeros_like(first, dtype=torch.float64)
        for other in others:
            total += other
        found[name] = (total / len(others)).to(first.dtype)
    return found


def _copy(model: nn.Module, earlier: Sequence[Weights]) -> Weights:
    """The weights in CPU memory. A tensor equal to one that is kept already is the same tensor."""
    found: Weights = {}
    for name, value in model.state_dict().items():
        here = value.detach().cpu()
        same = (weights[name] for weights in earlier if torch.equal(weights[name], here))
        known = next(same, None)
        found[name] = here.clone() if known is None else known
    return found
