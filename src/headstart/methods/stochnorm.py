"""Batch normalisation by batch or moving statistics, drawn for each channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._checks import number
from headstart.methods._draws import branch, uniform
from headstart.protocols import Context, Method


@dataclass
class StochNorm(Method):
    """Normalises each channel by the batch's or by the moving statistics, at random, while training.

    Equation: y_c = gamma_c ((1 - s) (x - mean_B) / sqrt(var_B + eps) + s (x - mean_M) / sqrt(var_M + eps)) + beta_c
    with s ~ Bernoulli(p) for each channel c of each layer and pass, B the batch and M the moving statistics.

    Source: Kou et al. 2020 (Stochastic Normalization), section 3.

    Requires: a backbone with BatchNorm; others are refused. Layers that do not learn normalise by moving statistics
    anyway.

    Shapes: all stay. The activations of each normalisation are held twice.

    Neighbours: a regulariser for small data, like `dropout` and `depth`; the pretrained moving statistics keep a say,
    which small batches need. As in the authors' code, the moving statistics have seen the batch when they are used.

    Example: `--method stochnorm:p=0.5`; `hs.methods.StochNorm(p=0.5)`.

    Defaults: p = 0.5 is the paper's (section 4).

    p: chance of the moving statistics; 1 uses nothing else.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        number("stochnorm:p", self.p, 0, "such as p=0.5; leave the method out for none", high=1, above=True)

    def requires(self) -> dict[str, str]:
        """Statistics of the batch to choose from."""
        return {"run.statistics": "it draws between the batch's statistics and the moving ones"}

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model whose BatchNorms draw their statistics; no layer and no name changes."""
        whole: Any = model
        norms = [m for m in whole.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        norms = [norm for norm in norms if norm.running_mean is not None]
        if not norms:
            raise MethodError("'stochnorm' changes BatchNorm layers and this backbone has none: leave it out")
        self.generator_ = branch(ctx.generator)
        hook = _draw(self.p, self.generator_)
        self.handles_ = [norm.register_forward_hook(hook) for norm in norms]
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


def _draw(p: float, generator: torch.Generator) -> Callable[..., Any]:
    """Forward hook of a BatchNorm: its answer, with that of inference in the drawn channels.

    Some libraries' layers do more, such as an activation; all of it acts on each number alone, so that choosing between
    two finished answers is choosing between two normalisations.
    """

    def draw(norm: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not norm.training:
            return output
        moving = (uniform((output.shape[1],), generator) < p).to(output.device)
        norm.training = False
        try:
            settled: Tensor = norm.forward(*args)
        finally:
            norm.training = True
        return torch.where(moving.view(1, -1, *[1] * (output.ndim - 2)), settled, output)

    return draw
