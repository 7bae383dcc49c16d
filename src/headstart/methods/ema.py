"""A running average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.methods._checks import number
from headstart.protocols import Context, Method


@dataclass
class EMA(Method):
    """Validates and keeps an exponential moving average of the weights instead of the last ones.

    Equation: a_t = d_t a_{t-1} + (1 - d_t) w_t after optimiser step t = 1, 2, ..., with d_t = min(decay, (1 + t) /
    (10 + t)) and a_0 the weights that step 1 produced.

    Source: Szegedy et al. 2016 (Rethinking Inception), section 8, evaluate such an average; averaging goes back to
    Polyak and Juditsky 1992. The warm-up of d is that of TensorFlow's ExponentialMovingAverage.

    Requires: nothing. Owns `weights`: what is validated and kept is the average, so nothing is left to do at the end.

    Shapes: one float32 copy of every learning parameter; buffers (BatchNorm statistics) are copied as they are.

    Neighbours: `soup` averages a few validated checkpoints, and combines with this one: it then averages averages.

    Example: `--method ema:decay=0.999`; `hs.methods.EMA(decay=0.999)`.

    Defaults: decay = 0.999 is the smaller of the two values that TensorFlow's documentation recommends; runs of a few
    hundred steps never reach it, because the warm-up rules them.

    decay: in [0, 1); larger is slower.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        number("ema:decay", self.decay, 0, "such as decay=0.999", high=1 - 1e-9)

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """Move the average. A parameter that begins to learn later joins with its value of that moment."""
        if not hasattr(self, "shadow_"):
            self.shadow_: dict[str, Tensor] = {}
            self.steps_ = 0
        self.steps_ += 1
        decay = min(self.decay, (1 + self.steps_) / (10 + self.steps_))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                value = parameter.detach().float()
                if name in self.shadow_:
                    self.shadow_[name].lerp_(value, 1 - decay)
                elif parameter.requires_grad:
                    self.shadow_[name] = value.clone()
            self.buffers_ = {name: value.detach().clone() for name, value in model.named_buffers()}
        self._remember(model)

    def _remember(self, model: nn.Module) -> None:
        """Under which name of the averages each entry of the state dict stands; tied weights share one."""
        owner = {id(p): name for name, p in model.named_parameters()}
        live = model.state_dict(keep_vars=True)
        self.names_ = {name: owner[id(value)] for name, value in live.items() if owner.get(id(value)) in self.shadow_}
        self.live_ = {name: value.detach() for name, value in live.items()}

    def weights(self) -> Mapping[str, Tensor] | None:
        """The whole state: averages where there are any, else the model's own tensors. None before the first step."""
        if not hasattr(self, "shadow_"):
            return None
        found: dict[str, Tensor] = {}
        for name, value in self.live_.items():
            if name in self.names_:
                found[name] = self.shadow_[self.names_[name]].to(value.dtype, copy=True)
            else:
                found[name] = self.buffers_.get(name, value)
        return found

    def state(self) -> dict[str, Any]:
        """The step count, the averages and the buffers."""
        if not hasattr(self, "shadow_"):
            return {}
        return {"steps": self.steps_, "shadow": dict(self.shadow_), "buffers": dict(self.buffers_)}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Go on from a state; an empty one is a run that took no step."""
        if not state:
            return
        where = {name: p.device for name, p in model.named_parameters()}
        self.steps_ = int(state["steps"])
        self.shadow_ = {name: value.to(where[name], copy=True) for name, value in state["shadow"].items()}
        self.buffers_ = {name: value.clone() for name, value in state["buffers"].items()}
        self._remember(model)
