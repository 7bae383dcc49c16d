"""Weights that are swapped for their starting values at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.methods._checks import number
from headstart.methods._draws import branch
from headstart.protocols import Context, Method

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers whose weight is mixed."""


@dataclass
class Mixout(Method):
    """Swaps a random share of the weights for their starting values in each training pass.

    Equation: w' = ((1 - m) w + m w0 - p w0) / (1 - p) with m ~ Bernoulli(p) for each weight and w0 its starting value,
    so that w' is w on average.

    Source: Lee et al. 2020 (Mixout), section 3, equation 5. As in the authors' code it is the weights of linear layers
    that are mixed; here also those of convolutions. Their dropout is switched off; here it stays as it is unless
    `dropout:hidden=0` is given too.

    Requires: backbone weights that learn and were there at the start. With `lora`, `adapter` or `freeze:probe` none is
    and there is nothing to mix.

    Shapes: one mixed copy of the learning weights a pass, beside a copy of their starting values.

    Neighbours: `l2sp` pulls towards the same values; the paper shows mixout to be such a pull that adapts along the
    way. Passes without dropout (validation, the search of `fgm` and `pgd`) see the plain weights. Every micro-batch
    draws anew.

    Example: `--method mixout:p=0.7`; `hs.methods.Mixout(p=0.7)`.

    Defaults: p = 0.7 is the smallest of the values that the paper tries when fine-tuning BERT (0.7, 0.8, 0.9).

    p: the share that is swapped, in [0, 1).
    """

    p: float = 0.7

    def __post_init__(self) -> None:
        number("mixout:p", self.p, 0, "such as p=0.7; leave the method out for none", high=0.99, above=True)

    def requires(self) -> dict[str, str]:
        """Starting values."""
        return {"run.start": "it swaps weights for their starting values"}

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model with its backbone mixed in every training pass; no layer and no name changes."""
        whole: Any = model
        backbone: nn.Module = whole.backbone
        self.generator_ = branch(ctx.generator, next(backbone.parameters()).device)
        mixed = [m for m in backbone.modules() if isinstance(m, LAYERS) and m.weight in ctx.start]
        before, after = _hooks(mixed, ctx.start, self.p, self.generator_)
        self.handles_ = [
            backbone.register_forward_pre_hook(before),
            backbone.register_forward_hook(after, always_call=True),
        ]
        return model

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model without the hooks."""
        for handle in self.handles_:
            handle.remove()
        return model

    def state(self) -> dict[str, Any]:
        """Where the draws stand."""
        return {"generator": self.generator_.get_state()} if hasattr(self, "generator_") else {}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Go on with the same draws."""
        if state:
            self.generator_.set_state(state["generator"])


def _hooks(
    layers: list[Any], start: Mapping[nn.Parameter, Tensor], p: float, generator: torch.Generator
) -> tuple[Callable[..., None], Callable[..., None]]:
    """What runs before and after a pass of the backbone.

    A mixed weight stands in the layer's own attributes, where Python looks before the module's parameters: names,
    state and optimiser never see it. Functions, not methods, because a copy of the backbone shares them: a frozen copy
    never trains and must find nothing to do.
    """

    def before(backbone: nn.Module, args: Any) -> None:
        if not backbone.training:
            return
        drawn: dict[int, Tensor] = {}
        for layer in layers:
            weight = layer.weight
            if weight.requires_grad:
                if id(weight) not in drawn:  # a weight that two layers share is one weight
                    drawn[id(weight)] = mix(weight, start[weight].to(weight.device), p, generator)
                layer.__dict__["weight"] = drawn[id(weight)]

    def after(backbone: nn.Module, args: Any, output: Any) -> None:
        for layer in layers:
            layer.__dict__.pop("weight", None)

    return before, after


def mix(weight: Tensor, start: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """The equation; gradients reach the weights that were not swapped."""
    swapped = torch.empty_like(weight, requires_grad=False).bernoulli_(p, generator=generator).bool()
    return (torch.where(swapped, start, weight) - p * start) / (1 - p)
