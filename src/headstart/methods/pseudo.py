"""The model's own sure answers on unlabelled rows are learned as if they were labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._checks import number
from headstart.methods._unlabelled import NEED, Count, believe, draw, guessed_loss
from headstart.protocols import Context, Method
from headstart.values import View


@dataclass
class Pseudo(Method):
    """Learns from unlabelled rows the class that the model itself finds likeliest, once it is sure.

    Equation: a(t) / n sum_i 1[max p(u_i) >= threshold] H(argmax p(u_i), p'(u_i)), over n = mu * N unlabelled rows u,
    p the answers of the model at rest and p' those with which it learns. a rises with the share t of the run that is
    done: 0 before `start`, then weight * (t - start) / (full - start), `weight` from `full` on.

    Source: Lee 2013 (Pseudo-Label), equations 15 and 16 and section 2.2, where every row is believed (threshold 0);
    the threshold is that of Sohn et al. 2020, section 2.1 and equation 4 without its views.

    Requires: classes (one label a row), and rows without labels (`--unlabelled`).

    Shapes: outputs (n,K) of unlabelled rows -> a scalar.

    Neighbours: `fixmatch` guesses on a weak view and learns on a strong one. As a penalty it composes with everything
    else; methods that change the batch (`mixup`, `augment`) change the labelled rows alone. The guess is made without
    dropout; BatchNorm uses its running statistics for the guess and the unlabelled rows' own for learning, and its
    running statistics follow the labelled rows alone.

    Example: `--unlabelled more.csv --method pseudo:threshold=0.9`; `hs.methods.Pseudo(threshold=0.9)`.

    Defaults: threshold = 0.95 is FixMatch's (table 4). start and full: the paper begins after 100 of MNIST's epochs and
    is at full weight after 600; here 0.1 and 0.6 of the run. weight = 1 is FixMatch's, where the paper has 3. mu = 1
    keeps the cost near twice a run's. None was tuned here.

    threshold: least probability of a guess that is learned. weight: a at its full. start, full: shares of the run.
    mu: unlabelled rows for each labelled one.
    """

    threshold: float = 0.95
    weight: float = 1.0
    start: float = 0.1
    full: float = 0.6
    mu: float = 1.0

    def __post_init__(self) -> None:
        number("pseudo:threshold", self.threshold, 0, "a probability such as threshold=0.95", high=1)
        number("pseudo:weight", self.weight, 0, "such as weight=1; leave the method out for none", above=True)
        number("pseudo:start", self.start, 0, "a share of the run such as start=0.1", high=1)
        number("pseudo:full", self.full, 0, "a share of the run such as full=0.6", high=1)
        number("pseudo:mu", self.mu, 0, "unlabelled rows for each labelled one, such as mu=1", above=True)
        if self.full < self.start:
            raise MethodError(
                f"expected pseudo:full to be at least pseudo:start, received full={self.full!r} and "
                f"start={self.start!r}; such as start=0.1,full=0.6"
            )
        self.count_ = Count()

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; the count of believed rows starts anew."""
        self.count_ = Count()
        return model

    def remains(self) -> bool:
        """The model keeps no surgery."""
        return False

    def passes(self) -> float:
        """The rows, a pass forwards over the unlabelled ones (about a third of both), and one both ways."""
        return 1 + self.mu * 4 / 3

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`pseudo`: the scaled loss of the sure guesses; 0 before `start`, when nothing is passed through."""
        scale = self._scale(ctx.progress.fraction)
        if scale == 0:
            return {"pseudo": view.outputs.sum() * 0.0}
        batch, _ = draw(view.batch, self.mu, ctx)
        likeliest, classes = believe(view.model, batch, ctx)
        kept = likeliest >= self.threshold
        self.count_.add(kept, ctx)
        return {"pseudo": scale * guessed_loss(view.model, batch, classes, kept, ctx)}

    def _scale(self, done: float) -> float:
        if done < self.start:
            return 0.0
        if done >= self.full:
            return self.weight
        return self.weight * (done - self.start) / (self.full - self.start)

    def notes(self) -> list[str]:
        """How many rows were believed."""
        return [self.count_.note("pseudo", self.threshold)]

    def requires(self) -> dict[str, str]:
        """One class a row, and rows without labels."""
        return dict(NEED)

    def state(self) -> dict[str, Any]:
        """The count so far."""
        return self.count_.state()

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """The inverse of `state`."""
        self.count_ = Count.of(state)
