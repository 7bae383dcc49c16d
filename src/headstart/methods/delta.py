"""Feature maps shall stay near those of the pretrained network, important channels nearest."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.methods._checks import flag, number
from headstart.methods._rows import weighted
from headstart.methods._start import frozen, places
from headstart.model import Model
from headstart.protocols import Context, Method
from headstart.values import Batch, Features, View

SOFTNESS = 5.0
"""What standardised importances are divided by before the softmax, as in the authors' code."""


@dataclass
class Delta(Method):
    """Keeps each row's feature map near the starting network's, channels that matter for the task most.

    Equation: weight * mean_i sum_c a_c ||m_ic - m0_ic||^2, plus (beta / 2) * ||v||^2 over the head's parameters v. m_ic
    is channel c of row i's map (all its places, or all tokens without padding), m0_ic that of the frozen start, a =
    softmax(z / 5) with z the standardised importances. The importance of channel c is the mean over rows of -sum_p
    m0_icp dL_i / dm0_icp.

    Source: Li et al. 2019 (DELTA), section 3. The importance there is the rise of the loss L_i, with a head solved on
    frozen features, when the channel is removed; a pass a channel. Here it is that rise to first order (Molchanov et
    al. 2017, section 2.2), one gradient for all channels, and taken as a running mean over the rows of the first epoch
    instead of before training. The paper compares four layers of a ResNet, this the last. Standardising and the 5 are
    from the authors' code.

    Requires: backbone parameters that learn. A head that starts from a probe (`training.head=probe`, the default)
    makes importances mean something from the first step.

    Shapes: tokens (N,T,D), else map (N,C,H,W), else pooled (N,D) -> two scalars, `delta` and, where beta is not 0,
    `delta_head`. Where a backbone pools something else than the map that it shows, all channels weigh the same.

    Neighbours: `lwf` holds pooled features, all channels alike; `l2sp` holds weights. One more pass a micro-batch,
    without gradients for the parameters.

    Example: `--method delta:weight=0.01`; `hs.methods.Delta(weight=0.01)`.

    Defaults: 0.01 for weight and beta are those of the authors' code; the paper chooses the weight on validation rows.

    weight: alpha of the paper. beta: the head's strength; 0 leaves the head alone. attend: false weighs all channels
    alike, the paper's baseline.
    """

    weight: float = 0.01
    beta: float = 0.01
    attend: bool = True

    def __post_init__(self) -> None:
        number("delta:weight", self.weight, 0, "such as weight=0.01; leave the method out for none", above=True)
        number("delta:beta", self.beta, 0, "such as beta=0.01; 0 leaves the head alone")
        flag("delta:attend", self.attend)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; the frozen start and its head stand beside it."""
        whole: Any = model
        self.start_ = Model(frozen(model, ctx), deepcopy(whole.head)).eval().requires_grad_(False)
        self.importance_: Tensor | None = None
        self.rows_ = 0
        return model

    def passes(self) -> float:
        """A pass forwards is about a third of one forwards and backwards."""
        return 4 / 3

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`delta`: the scaled distance to the start's map."""
        if self.attend and ctx.progress.epoch == 0 and view.model.training:
            before = self._measure(view.batch, ctx)
        else:
            with torch.no_grad(), ctx.autocast():
                before, _ = self.start_(view.batch)
        (now, here), (then, _) = places(view.features), places(before)
        distance = ((now - then.detach()).square() * here[..., None]).sum(1)
        return {"delta": self.weight * weighted(distance @ self._attention(now.shape[2], now.device), view.batch)}

    def _measure(self, batch: Batch, ctx: Context) -> Features:
        """The start's features of these rows, whose channels' importances are noted."""
        # A shift of the input by zero that wants a gradient makes autograd follow a network whose weights want none.
        nothing = self.start_.backbone.zero_shift(batch).requires_grad_()
        shift = nothing if batch.shift is None else batch.shift.detach() + nothing
        features: Features
        with torch.enable_grad():
            with ctx.autocast():
                features, outputs = self.start_(batch.replace(shift=shift))
            if batch.labels is None:
                return features
            loss = ctx.task.loss(outputs.float(), batch.labels).sum()
        shown = next(x for x in (features.tokens, features.map, features.pooled) if x is not None)
        (slope,) = torch.autograd.grad(loss, shown, allow_unused=True)
        if slope is not None:
            channel = -1 if features.tokens is not None else 1
            rise = -(shown.detach() * slope).float().movedim(channel, 0).flatten(1).sum(1)
            self.importance_ = rise if self.importance_ is None else self.importance_ + rise
            self.rows_ += len(batch)
        return features

    def _attention(self, channels: int, device: torch.device) -> Tensor:
        """(channels,), the weights a_c, which sum to 1."""
        if self.importance_ is None:
            return torch.full((channels,), 1 / channels, device=device)
        mean = self.importance_ / self.rows_
        standard = (mean - mean.mean()) / mean.std(correction=0).clamp_min(1e-12)
        return (standard / SOFTNESS).softmax(0)

    def prior(self, model: nn.Module, ctx: Context) -> dict[str, Tensor]:
        """`delta_head`: the pull of the head towards zero."""
        if not self.beta:
            return {}
        whole: Any = model
        squares = [p.float().square().sum() for p in whole.head.parameters() if p.requires_grad]
        return {"delta_head": self.beta / 2 * torch.stack(squares).sum()} if squares else {}

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model as it is; the frozen start is let go."""
        del self.start_
        return model

    def state(self) -> dict[str, Any]:
        """Importances so far, and the head with which they are measured."""
        if not hasattr(self, "start_"):
            return {}
        found = {"rows": self.rows_, "head": self.start_.head.state_dict()}
        return found if self.importance_ is None else {**found, "importance": self.importance_}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Go on from a state."""
        if not state:
            return
        device = next(model.parameters()).device
        self.start_.head.load_state_dict(state["head"])
        self.rows_ = int(state["rows"])
        self.importance_ = state["importance"].to(device) if "importance" in state else None
