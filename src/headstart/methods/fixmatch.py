"""A strong view of an unlabelled row shall get the class that the model is sure of on a weak view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._checks import number, whole
from headstart.methods._unlabelled import NEED, Count, believe, draw, guessed_loss
from headstart.methods._views import Views
from headstart.protocols import Context, Method
from headstart.values import View


@dataclass
class FixMatch(Method):
    """Learns, on strongly changed unlabelled rows, the class that the model is sure of on weakly changed ones.

    Equation: weight / n sum_i 1[max q_i >= threshold] H(argmax q_i, p(A(u_i))), q_i = p(a(u_i)), over n = mu * N
    unlabelled rows u; a and A are the weak and the strong view. Pictures: a flips (1/2) and shifts by up to 1/8 of the
    side; A applies `operations` of RandAugment to such a view and greys a square of half the side. Texts: a is the text
    itself; A makes one of the edits of `augment` on each row, at `rate`.

    Source: Sohn et al. 2020 (FixMatch), section 2.2, equation 4, and section 2.3. The views of texts are ours.

    Requires: classes (one label a row), rows without labels (`--unlabelled`); for pictures the `images` extra.

    Shapes: outputs (n,K) of unlabelled rows -> a scalar.

    Neighbours: `pseudo` is the same without views, with a weight that rises. As a penalty it composes with everything
    else; methods that change the batch (`mixup`, `augment`) change the labelled rows alone: list `augment` too for the
    paper's weak views of those. The guess is made without dropout; BatchNorm uses its running statistics for the guess
    and the strong views' own for learning, and its running statistics follow the labelled rows alone.

    Example: `--unlabelled more/ --method fixmatch:mu=4`; `hs.methods.FixMatch(mu=4)`.

    Defaults: threshold = 0.95 and weight = 1 are the paper's (table 4). mu = 2 where the paper has 7, for the cost's
    sake. operations = 2 and magnitude = 9 are RandAugment's for ImageNet (Cubuk et al. 2020, section 4). rate = 0.2 is
    twice EDA's. The last three were not tuned.

    threshold: least probability of a guess that is learned. weight: lambda_u of the paper. mu: unlabelled rows for each
    labelled one. operations, magnitude: of RandAugment, for pictures. rate: share of edited tokens, for texts.
    """

    threshold: float = 0.95
    weight: float = 1.0
    mu: float = 2.0
    operations: int = 2
    magnitude: int = 9
    rate: float = 0.2

    def __post_init__(self) -> None:
        number("fixmatch:threshold", self.threshold, 0, "a probability such as threshold=0.95", high=1)
        number("fixmatch:weight", self.weight, 0, "such as weight=1; leave the method out for none", above=True)
        number("fixmatch:mu", self.mu, 0, "unlabelled rows for each labelled one, such as mu=2", above=True)
        whole("fixmatch:operations", self.operations, 0, "such as operations=2")
        whole("fixmatch:magnitude", self.magnitude, 0, "such as magnitude=9", high=30)
        number("fixmatch:rate", self.rate, 0, "a share of the tokens such as rate=0.2", high=0.9, above=True)
        self.count_ = Count()

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; the views are made ready and the count of believed rows starts anew.

        Raises MethodError for a kind of input that has no views.
        """
        if ctx.modality.name not in ("text", "image"):
            raise MethodError(f"'fixmatch' has views of texts and pictures, this run reads {ctx.modality.name}")
        self.views_ = Views.of(model, ctx, self.operations, self.magnitude, self.rate, "fixmatch")
        self.count_ = Count()
        return model

    def remains(self) -> bool:
        """The model keeps no surgery."""
        return False

    def passes(self) -> float:
        """The rows, a pass forwards over weak views (about a third of both ways), and one both ways over strong."""
        return 1 + self.mu * 4 / 3

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`fixmatch`: the scaled loss of the sure guesses on strong views."""
        if not hasattr(self, "views_"):
            raise MethodError("'fixmatch' needs to see the model first: call adapt(model, ctx) before penalty")
        batch, generator = draw(view.batch, self.mu, ctx)
        likeliest, classes = believe(view.model, self.views_.weak(batch, generator), ctx)
        kept = likeliest >= self.threshold
        self.count_.add(kept, ctx)
        strong = self.views_.strong(batch, generator) if bool(kept.any()) else batch
        return {"fixmatch": self.weight * guessed_loss(view.model, strong, classes, kept, ctx)}

    def notes(self) -> list[str]:
        """How many rows were believed."""
        return [self.count_.note("fixmatch", self.threshold)]

    def requires(self) -> dict[str, str]:
        """One class a row, and rows without labels."""
        return dict(NEED)

    def state(self) -> dict[str, Any]:
        """The count so far."""
        return self.count_.state()

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """The inverse of `state`."""
        self.count_ = Count.of(state)
