"""Stochastic depth: whole blocks are skipped at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._checks import number
from headstart.methods._draws import branch, uniform
from headstart.protocols import Context, Method


@dataclass
class Depth(Method):
    """Skips blocks of the backbone at random while training, late ones more often.

    Equation: h_l = h_{l-1} + b (f_l(h_{l-1}) - h_{l-1}) / (1 - p_l), b ~ Bernoulli(1 - p_l) for each row, p_l = rate *
    l / L for block l of L; f_l is the block with its residual connection.

    Source: Huang et al. 2016 (Deep Networks with Stochastic Depth), section 3, with its linear rule. There the residual
    is scaled by 1 - p_l at use; dividing by it in training instead leaves the finished network as it is.

    Requires: blocks whose answer has the shape of their input; others are left alone, and where all change it the run
    is refused after its first step.

    Shapes: all stay. Every block runs for every row, so no time is saved.

    Neighbours: `dropout` drops single numbers. Networks that were built with stochastic depth of their own keep it. A
    backbone that is made of stages is taken by the blocks within them.

    Example: `--method depth:rate=0.1`; `hs.methods.Depth(rate=0.1)`.

    Defaults: rate = 0.1 is DeiT's (Touvron et al. 2021, table 9). The paper's 0.5 is for training from nothing.

    rate: chance that the last block is skipped for a row.
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        number("depth:rate", self.rate, 0, "such as rate=0.1; leave the method out for none", high=0.99, above=True)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model whose blocks are skipped in training; no layer and no name changes."""
        whole: Any = model
        units = list(_units(whole.backbone.blocks))
        self.generator_ = branch(ctx.generator)
        self.skippable_: set[int] = set()
        self.handles_ = [
            unit.register_forward_hook(
                _skip(self.rate * (i + 1) / len(units), i, self.generator_, self.skippable_), with_kwargs=True
            )
            for i, unit in enumerate(units)
        ]
        return model

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """Raises MethodError where no block was found that can be skipped."""
        if not self.skippable_:
            raise MethodError("'depth' found no block that keeps the shape of its input: leave it out on this backbone")

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


def _units(modules: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The blocks themselves; those of a stage one by one."""
    for module in modules:
        children = dict(module.named_children())
        inner = [children[name] for name in ("blocks", "layers") if _lists(children.get(name))]
        if _lists(module):
            yield from _units(list(module.children()))
        elif inner:
            yield from _units(inner)
        else:
            yield module


def _lists(module: Any) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


def _skip(rate: float, number: int, generator: torch.Generator, skippable: set[int]) -> Callable[..., Any]:
    """Forward hook of a block. A function, because a frozen copy of the backbone shares it and finds nothing to do."""

    def skip(block: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        after = output[0] if isinstance(output, tuple) else output
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        before = next((value for value in given if value.shape == after.shape), None)
        if before is None:
            return output
        skippable.add(number)
        if not block.training:
            return output
        kept = (uniform((len(after),), generator) >= rate).to(after.device, after.dtype) / (1 - rate)
        mixed = before + kept.view(-1, *[1] * (after.ndim - 1)) * (after - before)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    return skip
