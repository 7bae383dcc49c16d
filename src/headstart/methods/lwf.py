"""Features shall stay near those of the pretrained network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from headstart.methods._checks import choice, number
from headstart.methods._rows import weighted
from headstart.methods._start import answer, frozen, places
from headstart.protocols import Context, Method
from headstart.values import View


@dataclass
class LwF(Method):
    """Keeps the features of each row near those that the starting network gives to it.

    Equation: weight * mean_i ||f_i - f0_i||^2 / ||f0_i||^2, f_i the features of row i and f0_i those of the frozen
    starting network for the same, equally changed row. With `of=tokens` the norms run over all tokens of a row (without
    padding), or all places of a feature map.

    Source: Li and Hoiem 2016 (Learning without Forgetting), section 3: what the old network answers to the new rows is
    kept while the new task is learned. There the answers are those of the old tasks' heads, by a softened
    cross-entropy; a pretrained backbone has no such head, so its features stand in, as in Romero et al. 2015 (FitNets).

    Requires: backbone parameters that learn; while none does the features stay as they are and the run says so.

    Shapes: pooled (N,D), tokens (N,T,D) or map (N,C,H,W) -> a scalar. The frozen network shares its memory with the
    starting values that the run keeps anyway: one copy of the weights.

    Neighbours: `l2sp` holds the weights, this one what they answer; `delta` weighs channels by their importance. The
    start answers without dropout, the network that learns with it, so the distance begins above zero; BatchNorm, which
    uses the batch there and its moving statistics here, adds more. One more pass without gradients a micro-batch.

    Example: `--method lwf:weight=1`; `hs.methods.LwF(weight=1.0, of="tokens")`.

    Defaults: weight = 1 is the paper's balance of old and new tasks (lambda, section 3). The paper's loss is another,
    so it is a place to start from. The division by ||f0||^2, so that one weight suits features of any scale, is ours.

    weight: strength; 1 charges as much for features of the wrong sign as 4 nats of loss. of: pooled, or tokens.
    """

    weight: float = 1.0
    of: str = "pooled"

    def __post_init__(self) -> None:
        number("lwf:weight", self.weight, 0, "such as weight=1; leave the method out for none", above=True)
        choice("lwf:of", self.of, ("pooled", "tokens"))

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; the frozen start stands beside it."""
        self.start_ = frozen(model, ctx)
        return model

    def passes(self) -> float:
        """A pass forwards is about a third of one forwards and backwards."""
        return 4 / 3

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`lwf`: the scaled relative distance to the start's features."""
        before = answer(self.start_, view.batch, ctx)
        if self.of == "pooled":
            now, then = view.features.pooled.float(), before.pooled.float()
        else:
            (now, here), (then, _) = places(view.features), places(before)
            now, then = (now * here[..., None]).flatten(1), (then * here[..., None]).flatten(1)
        distance = (now - then).square().sum(1) / then.square().sum(1).clamp_min(1e-12)
        return {"lwf": self.weight * weighted(distance, view.batch)}

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model as it is; the frozen start is let go."""
        del self.start_
        return model
