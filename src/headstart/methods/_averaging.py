"""What running averages of the weights have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.protocols import Context, Method


@dataclass
class AveragingMethod(Method):
    """Keeps an average of every learning parameter in float32, and owns `weights`.

    A method says with which share the newest weights enter. `steps_` counts the times they did.
    """

    @abstractmethod
    def share(self, ctx: Context) -> float | None:
        """The share of the newest weights, in (0, 1]; None leaves the average alone. `steps_` counts this one too."""

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """Move the average. A parameter that begins to learn later joins with its value of that moment."""
        taken = getattr(self, "steps_", 0)
        self.steps_ = taken + 1
        share = self.share(ctx)
        if share is None:
            self.steps_ = taken
            return
        if not hasattr(self, "shadow_"):
            self.shadow_: dict[str, Tensor] = {}
        if getattr(self, "epoch_", None) != ctx.progress.epoch:
            self._list(model)
            self.epoch_ = ctx.progress.epoch
        with torch.no_grad():
            values = {name: p.detach().float() for name, p in self.parameters_ if name in self.shadow_}
            if values:
                torch._foreach_lerp_([self.shadow_[name] for name in values], list(values.values()), share)
            joined = {name: p for name, p in self.parameters_ if p.requires_grad and name not in self.shadow_}
            self.shadow_ |= {name: p.detach().float().clone() for name, p in joined.items()}
            self.buffers_ = {name: value.detach().clone() for name, value in self.model_buffers_}
        if joined:
            self._list(model)

    def _list(self, model: nn.Module) -> None:
        """What the model holds: a walk through it takes as long as its pass on a GPU, so it is made once an epoch.

        Also under which name of the averages each entry of the state dict stands; tied weights share one.
        """
        self.parameters_, self.model_buffers_ = list(model.named_parameters()), list(model.named_buffers())
        owner = {id(p): name for name, p in self.parameters_}
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
        self._list(model)
