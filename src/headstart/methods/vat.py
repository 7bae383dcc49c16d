"""Answers shall not change in the direction in which they change most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstart.attack import direction, noise, shifted, slope, within
from headstart.methods._attack import AttackMethod, radius, still
from headstart.methods._checks import number, whole
from headstart.methods._distance import divergence, of_task
from headstart.methods._draws import of_batch, rewound
from headstart.methods._rows import weighted
from headstart.protocols import Context
from headstart.values import Batch, View


@dataclass
class VAT(AttackMethod):
    """Keeps the answer to each row the same when the row moves in the direction that changes the answer most.

    Equation: weight * mean_i KL(p(x_i) || p(x_i + r_i)), r_i = eps * d_i, d_i found by power iteration: from a random
    direction, `steps` times d <- g / ||g||_2 with g the gradient of KL(p(x) || p(x + xi * d)) in d. p(x) is held fixed.
    The mean is over the rows of the micro-batch and, where the run has rows without labels, as many of those, drawn
    anew. With several labels a row the divergence is the mean over labels of that of one Bernoulli distribution each;
    for regression it is half the squared difference, that of Gaussians of unit variance.

    Source: Miyato et al. 2018 (Virtual Adversarial Training), sections 3.2 and 3.3.

    Requires: nothing; no label is read. Rows without labels are used where there are any (`--unlabelled`).

    Shapes: r is (N,T,V) for texts, (N,C,H,W) for pictures; changed pixels stay in [0, 1]; outputs (N,K) -> a scalar.

    Neighbours: `fgm` raises the loss of the label instead; `smart` looks for the worst point of a ball by projected
    steps. As a penalty it composes with every owner of `backward`; in passes without dropout, with which they search,
    it is 0. All passes of a batch have the same dropout and batch statistics, so that r alone is charged, and none
    moves running statistics. Rows without labels are not augmented by other methods.

    Example: `--method vat:eps=0.3 --unlabelled more.csv`; `hs.methods.VAT(eps=0.3)`.

    Defaults: weight = 1 and steps = 1 are the paper's (section 4). eps is that of `fgm`: 0.3 on token
    embeddings, 0.5 on (3,32,32) pictures, growing with the square root of the number of values; the paper tunes it. xi
    is a tenth of eps: the paper's 1e-6 leaves nothing but rounding in single precision.

    eps: l2 length of r. weight: strength. steps: power iterations. xi: length at which the gradient is taken.
    """

    eps: float | None = None
    weight: float = 1.0
    steps: int = 1
    xi: float | None = None

    def __post_init__(self) -> None:
        for name in ("eps", "xi"):
            if getattr(self, name) is not None:
                number(f"vat:{name}", getattr(self, name), 0, f"such as {name}=0.3", above=True)
        number("vat:weight", self.weight, 0, "such as weight=1; leave the method out for none", above=True)
        whole("vat:steps", self.steps, 1, "such as steps=1")

    def passes(self) -> float:
        """The rows; again without gradients; once an iteration; moved. Rows without labels double the last three."""
        return 1.0 + 1 / 3 + self.steps + 1.0

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`vat`: the scaled mean divergence; 0 in a pass that draws no dropout."""
        if not view.model.training:
            return {"vat": view.outputs.sum() * 0.0}
        generator = of_batch(ctx.generator, view.batch)
        found = self._smoothness(view.model, view.batch, ctx, generator)
        if ctx.unlabelled is not None:
            rows = torch.randint(len(ctx.unlabelled), (len(view.batch),), generator=generator)
            more = ctx.unlabelled.batch(rows.tolist()).to(view.outputs.device)
            found = (found + self._smoothness(view.model, more, ctx, generator)) / 2
        return {"vat": self.weight * found}

    def _smoothness(self, model: Any, batch: Batch, ctx: Context, generator: torch.Generator) -> Tensor:
        """The mean divergence over the rows of a batch."""
        zeros = self.centre(model, batch)
        eps = radius(self.eps, zeros, ctx, "l2")
        xi = self.xi if self.xi is not None else eps / 10
        # Each pass has its own autocast: weights cast without gradients must not be found again by one that needs them.
        with still(model), rewound(model), torch.no_grad(), ctx.autocast():
            answer = model(batch)[1].float()

        def apart(moved: Batch) -> Tensor:
            with ctx.autocast():
                outputs = model(moved)[1].float()
            return of_task(divergence, answer, outputs, ctx.task)

        d = noise(zeros, batch, generator)
        for _ in range(self.steps):
            with still(model), rewound(model):
                d = direction(slope(lambda moved: apart(moved).sum(), batch, xi * d), "l2")
        change = within(eps * d, batch).detach()
        with still(model):
            return weighted(apart(shifted(batch, change)), batch)
