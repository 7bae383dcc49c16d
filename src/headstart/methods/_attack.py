"""What adversarial methods share: the model they attack, their radii, passes that leave statistics alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from headstart.attack import usual_norm, usual_radius
from headstart.errors import MethodError
from headstart.protocols import Context, Method
from headstart.values import Batch


def radius(asked: float | None, change: Tensor, ctx: Context, norm: str) -> float:
    """The asked radius, or the usual one for this input and norm."""
    return asked if asked is not None else usual_radius(change, norm, modality=ctx.modality.name)


def norm_of(asked: str, ctx: Context) -> str:
    """The asked norm, or for `auto` the usual one for this input."""
    return asked if asked != "auto" else usual_norm(modality=ctx.modality.name)


def check_radius(name: str, eps: float | None, norm: str, ctx: Context) -> None:
    """Raises MethodError for an l-infinity ball of token embeddings whose size nobody gave."""
    if norm == "linf" and eps is None and not ctx.modality.continuous:
        raise MethodError(
            f"{name}:norm=linf has no usual radius for token embeddings: give {name}:eps, such as eps=0.01"
        )


class AttackMethod(Method):
    """A method that trains on moved inputs and leaves no surgery; it says when running statistics move meanwhile."""

    moving_ = False

    def centre(self, model: Any, batch: Batch) -> Tensor:
        """Zeros shaped like the continuous input of this batch. Raises MethodError outside a run."""
        if model is None:
            raise MethodError("an adversarial method needs the model to attack: call adapt(model, ctx) before backward")
        self.moving_ = self.moving_ or bool(_moving(model))
        zeros: Tensor = model.backbone.zero_shift(batch)
        return zeros

    def remains(self) -> bool:
        """The model keeps no trace of the training."""
        return False

    def notes(self) -> list[str]:
        """A warning where BatchNorm followed the statistics of each batch, which undoes adversarial training."""
        if not self.moving_:
            return []
        return [
            f"'{type(self).__name__.lower()}' trained with the statistics of each batch and is used with running ones, "
            f"which can undo all it brings: use --set training.running_stats=keep, or check with "
            f"--set evaluation.robust=true"
        ]


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Passes inside train as usual, dropout and batch statistics included, but move no running statistics."""
    norms = _moving(model)
    for module in norms:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in norms:
            module.track_running_stats = True


def _moving(model: nn.Module) -> list[Any]:
    """The BatchNorms that normalise by the batch and move their running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [
        module
        for module in model.modules()
        if isinstance(module, kind) and module.training and module.track_running_stats
    ]
