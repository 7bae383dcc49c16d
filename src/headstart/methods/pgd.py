"""Adversarial training by projected gradient ascent on the input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from headstart.attack import ascend, inside, shifted
from headstart.methods._attack import AttackMethod, check_radius, norm_of, radius, still
from headstart.methods._checks import choice, flag, number, whole
from headstart.protocols import Context
from headstart.values import Batch


@dataclass
class PGD(AttackMethod):
    """Trains on the worst inputs that several projected gradient steps find within a small ball.

    Equation: clean * L(x) + (1 - clean) * L(x + d_K), with d_0 random in the ball and d_{k+1} = P(d_k + step *
    u(g_k)), g_k the gradient of L in x at x + d_k; P projects each row into the ball ||d|| <= eps; u(g) = g / ||g||_2
    for `l2`, sign(g) for `linf`.

    Source: Madry et al. 2018, section 2; for token embeddings Zhu et al. 2020 (FreeLB), section 3, where it is the
    K-step baseline.

    Requires: nothing. Owns `backward`, so it excludes `fgm` and `freelb`.

    Shapes: d is (N,T,V) for texts, (N,C,H,W) for pictures, (N,S) for sounds; changed pixels stay in [0, 1].

    Neighbours: `fgm` is one step of full length; `freelb` learns from every step of the search. The search runs without
    dropout and without moving BatchNorm statistics; the changed rows then train like any others, leaving running
    statistics to the clean rows where there are any. A network with BatchNorm wants `training.running_stats=keep`:
    trained on MNIST digits, EfficientNet-lite0 withstood nothing without (benchmarks). steps + 2 passes a micro-batch,
    one less with clean = 0.

    Example: `--method pgd:steps=3,eps=0.3`; `hs.methods.PGD(steps=3, norm="l2")`.

    Defaults: norm is l2 for texts (Zhu et al.) and linf for pictures (Madry et al.). eps is 8/255 for linf on
    pictures (Madry et al., section 5) and otherwise as for `fgm`: 0.3 on token embeddings, 0.5 on (3,32,32) pictures,
    growing with the square root of the number of values; 0.002 for linf on sounds, not tuned. steps = 3 is the
    K of Zhu et al. step = 2.5 eps / steps, so that the border can be reached from anywhere (Madry et al., section 5).
    clean = 0.5 is Goodfellow et al. 2015, section 6; 0 is Madry's.

    eps: the ball's radius. steps: K. step: length of one. norm: auto, l2 or linf. clean: share of the clean loss, in
    [0, 1). random: start inside the ball rather than at its centre.
    """

    eps: float | None = None
    steps: int = 3
    step: float | None = None
    norm: str = "auto"
    clean: float = 0.5
    random: bool = True

    def __post_init__(self) -> None:
        for name in ("eps", "step"):
            if getattr(self, name) is not None:
                number(f"pgd:{name}", getattr(self, name), 0, f"such as {name}=0.3", above=True)
        whole("pgd:steps", self.steps, 1, "such as steps=3")
        choice("pgd:norm", self.norm, ("auto", "l2", "linf"))
        number("pgd:clean", self.clean, 0, "such as clean=0.5; leave the method out for clean rows alone", high=0.99)
        flag("pgd:random", self.random)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; it is remembered. Raises MethodError for an l-infinity ball of unknown size."""
        check_radius("pgd", self.eps, self.norm, ctx)
        self.model_ = model
        return model

    def passes(self) -> float:
        """One a step of the search, one for the changed rows, one for the clean rows if they count."""
        return self.steps + 1.0 + (self.clean > 0)

    def backward(self, batch: Batch, loss_of: Callable[[Batch], Tensor], ctx: Context) -> Tensor:
        """Gradients of the weighted sum of both losses; returns that sum."""
        model: Any = getattr(self, "model_", None)
        start = self.centre(model, batch)
        with ctx.quiet(model):
            change = self._search(start, batch, loss_of, ctx)
        if not self.clean:
            loss = loss_of(shifted(batch, change))
            ctx.backward(loss)
            return loss.detach()
        clean = self.clean * loss_of(batch)
        ctx.backward(clean)
        with still(model):
            adversarial = (1 - self.clean) * loss_of(shifted(batch, change))
        ctx.backward(adversarial)
        return clean.detach() + adversarial.detach()

    def _search(self, start: Tensor, batch: Batch, loss_of: Callable[[Batch], Tensor], ctx: Context) -> Tensor:
        """The change that K steps reach, inside the ball and the bounds of pixels."""
        norm = norm_of(self.norm, ctx)
        eps = radius(self.eps, start, ctx, norm)
        change = inside(start, eps, norm, batch, ctx.generator) if self.random else start
        return ascend(loss_of, batch, change, eps, norm, self.steps, self.step)
