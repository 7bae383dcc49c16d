"""Rows without labels: which of them meet a micro-batch, what the model believes of them, how many were believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.errors import MethodError
from headstart.methods._attack import still
from headstart.methods._draws import branch
from headstart.protocols import Context
from headstart.values import Batch

if TYPE_CHECKING:
    from headstart.encoded import Encoded

NEED = {
    "task.classification": "it guesses one class a row",
    "run.unlabelled": "it learns from rows without labels; give them with --unlabelled (data.unlabelled in a spec)",
}
"""What methods that guess labels require of a run."""


def draw(batch: Batch, ratio: float, ctx: Context) -> tuple[Batch, torch.Generator]:
    """`ratio` times as many unlabelled rows as the batch has, on its device, and a generator for their views.

    Each micro-batch of a window draws its own rows; further passes over the same micro-batch (an attack, a second step
    on the way) meet the same ones, so that they see the same loss.
    """
    rows = ctx.unlabelled
    if rows is None or not len(rows):
        raise MethodError(f"'{ctx.owner}' has no unlabelled rows to draw from: give them with --unlabelled")
    own = np.random.SeedSequence([branch(ctx.generator).initial_seed(), *(batch.row + 1).tolist()])
    generator = torch.Generator().manual_seed(int(own.generate_state(1)[0]))
    count = max(1, math.ceil(ratio * len(batch)))
    return _take(rows, count, generator).to(batch.weight.device), generator


def _take(rows: Encoded, count: int, generator: torch.Generator) -> Batch:
    """Different rows while there are enough of them."""
    if count <= len(rows):
        index = torch.randperm(len(rows), generator=generator)[:count]
    else:
        index = torch.randint(len(rows), (count,), generator=generator)
    return rows.batch(index.tolist())


def believe(model: nn.Module, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
    """(N,) probabilities of the likeliest classes and (N,) these classes, as the model at rest answers."""
    with torch.no_grad(), ctx.autocast(), ctx.quiet(model):
        outputs = model(batch)[1]
    likeliest, classes = outputs.float().softmax(1).max(1)
    return likeliest, classes


def guessed_loss(model: nn.Module, batch: Batch, classes: Tensor, kept: Tensor, ctx: Context) -> Tensor:
    """Cross-entropy of the kept rows' guesses, summed, over ALL rows of the batch; running statistics stay."""
    if not bool(kept.any()):
        return torch.zeros((), device=classes.device)
    with ctx.autocast(), still(model):
        outputs = model(batch)[1]
    losses = functional.cross_entropy(outputs.float(), classes, reduction="none")
    return (losses * kept).sum() / len(batch)


@dataclass
class Count:
    """How many unlabelled rows were looked at and believed, epoch by epoch."""

    seen: dict[int, int] = field(default_factory=dict)
    passed: dict[int, int] = field(default_factory=dict)

    def add(self, kept: Tensor, ctx: Context) -> None:
        """The rows of one draw."""
        epoch = ctx.progress.epoch
        self.seen[epoch] = self.seen.get(epoch, 0) + len(kept)
        self.passed[epoch] = self.passed.get(epoch, 0) + int(kept.sum())

    def note(self, name: str, threshold: float) -> str:
        """The sentence for the report."""
        seen, passed = sum(self.seen.values()), sum(self.passed.values())
        if not seen:
            return f"'{name}' looked at no unlabelled rows"
        last = max(self.seen)
        share = 100 * self.passed[last] / self.seen[last]
        return (
            f"'{name}' believed {passed} of {seen} draws of unlabelled rows (probability of at least {threshold:g}), "
            f"{share:.0f} % of them in epoch {last + 1}, the last"
        )

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"seen": _texts(self.seen), "passed": _texts(self.passed)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Count:
        """The inverse of `state`."""
        seen, passed = ({int(k): int(v) for k, v in state.get(key, {}).items()} for key in ("seen", "passed"))
        return cls(seen, passed)


def _texts(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(key): value for key, value in counts.items()}
