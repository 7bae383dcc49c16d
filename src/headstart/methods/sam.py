"""Sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._attack import still
from headstart.methods._checks import flag, number
from headstart.methods._draws import rewound
from headstart.protocols import Context, Method
from headstart.values import Batch

FLOOR = 0.01
"""Added to the size of each weight by ASAM, so that weights of zero move too."""


@dataclass
class SAM(Method):
    """Takes the gradient where the loss is highest near the weights, which leads to flat minima.

    Equation: the gradient of L at w + e, e = rho * g / ||g||_2, g = the gradient of L at w over all that learns. With
    `adaptive`, e = rho * T^2 g / ||T g||_2, T the diagonal matrix of |w| + 0.01 for weights of two or more dimensions
    and 1 for biases and norms.

    Source: Foret et al. 2021 (SAM), section 2, algorithm 1. `adaptive`: Kwon et al. 2021 (ASAM), section 3, algorithm
    1.

    Requires: nothing. Owns `backward`, so it excludes `fgm` and `pgd`.

    Shapes: one copy of the learning parameters for the time of a micro-batch.

    Neighbours: `swa` and `ema` seek flat minima by averaging and combine with this one. With accumulation, or several
    processes, each micro-batch climbs on its own: this is the paper's m-sharpness (section 4.1) with m = the
    micro-batch, and not the same as one big batch. Penalties climb too, priors do not. Both passes draw the same
    dropout from torch's generators; BatchNorm statistics move in the first. Two passes a micro-batch.

    Example: `--method sam:rho=0.05`; `hs.methods.SAM(rho=0.5, adaptive=True)`.

    Defaults: rho = 0.05 is SAM's (section 3.1); with `adaptive` it is 0.5, ASAM's for CIFAR-10, as is the 0.01.

    rho: length of the step uphill; left out, as above. adaptive: measure it in the size of each weight.
    """

    rho: float | None = None
    adaptive: bool = False

    def __post_init__(self) -> None:
        if self.rho is not None:
            number("sam:rho", self.rho, 0, "such as rho=0.05; leave the method out for none", above=True)
        flag("sam:adaptive", self.adaptive)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; it is remembered."""
        self.model_ = model
        return model

    def remains(self) -> bool:
        """The model keeps no trace of the training."""
        return False

    def passes(self) -> float:
        """At the weights, and uphill of them."""
        return 2.0

    def backward(self, batch: Batch, loss_of: Callable[[Batch], Tensor], ctx: Context) -> Tensor:
        """Gradients of the loss uphill; returns the loss at the weights themselves."""
        model: nn.Module | None = getattr(self, "model_", None)
        if model is None:
            raise MethodError("'sam' needs the model whose weights it moves: call adapt(model, ctx) before backward")
        learning = [p for p in model.parameters() if p.requires_grad]
        with rewound(model):
            loss = loss_of(batch)
        slopes = torch.autograd.grad(loss, learning, allow_unused=True)
        home = [p.detach().clone() for p in learning]
        try:
            self._climb(learning, slopes)
            with still(model):
                ctx.backward(loss_of(batch))
        finally:
            with torch.no_grad():
                for p, value in zip(learning, home, strict=True):
                    p.copy_(value)
        return loss.detach()

    @torch.no_grad()
    def _climb(self, parameters: list[nn.Parameter], slopes: tuple[Tensor | None, ...]) -> None:
        """Move the parameters by e."""
        moved = [(p, slope, self._size(p)) for p, slope in zip(parameters, slopes, strict=True) if slope is not None]
        if not moved:
            return
        length = torch.stack([(size * slope).float().norm() for _, slope, size in moved]).norm().clamp_min(1e-12)
        rho = (0.5 if self.adaptive else 0.05) if self.rho is None else self.rho
        for p, slope, size in moved:
            p.add_(size**2 * slope * (rho / length))

    def _size(self, p: Tensor) -> Tensor:
        """The diagonal of T that belongs to this parameter."""
        return p.abs() + FLOOR if self.adaptive and p.ndim >= 2 else torch.ones((), device=p.device, dtype=p.dtype)
