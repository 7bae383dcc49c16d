"""Convex combinations of two rows and of their labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headstart.errors import MethodError
from headstart.methods._mixing import check, draw, mixed
from headstart.protocols import Context, Method
from headstart.values import Batch, Mix


@dataclass
class Mixup(Method):
    """Trains on convex combinations of two rows: pixels of pictures, waves of sounds, pooled features of texts.

    Equation: x~ = s x_i + (1 - s) x_j, y~ = s y_i + (1 - s) y_j, with s ~ Beta(alpha, alpha) for each row and j drawn
    by permuting the batch. For texts x is the pooled feature vector (N,D) that the head reads.

    Source: Zhang et al. 2018 (mixup), section 2; for features Verma et al. 2019 (Manifold Mixup), section 2; for
    texts Guo et al. 2019, section 3 (senMixup).

    Requires: a task that can mix labels (`task.mix`).

    Shapes: pixels (N,C,H,W) or waves (N,S) -> the same, a mixed sound as long as the longer one; labels (N,) or
    (N,K) -> (N,K); weights (N,) are mixed alike.

    Neighbours: `cutmix` pastes a rectangle instead of blending, `manifold` mixes hidden states at a random block. Two
    of them in one run compose in the order listed: the second mixes rows that are mixed already; on texts the states
    of a row are mixed once. `augment` belongs before it. Two rows of different origin are never mixed.

    Example: `--method mixup:alpha=0.2`; `hs.methods.Mixup(alpha=0.2)`.

    Defaults: alpha = 0.2 is in the range 0.1 to 0.4 that Zhang et al. find best on ImageNet (section 3). Every row is
    mixed, each with its own share; the paper's code draws one share a batch, which has the same expectation.

    alpha: above 0; 1 is a uniform share. probability: of a row being mixed at all.
    """

    alpha: float = 0.2
    probability: float = 1.0

    def __post_init__(self) -> None:
        check("mixup", self.alpha, self.probability)

    def requires(self) -> dict[str, str]:
        """Labels must be mixable."""
        return {"task.mix": "mixed rows need mixed labels"}

    def transform(self, batch: Batch, ctx: Context) -> Batch:
        """The batch with mixed pixels or waves, or with `mix` set where the input is text."""
        partner, share = draw(batch, ctx, self.alpha, self.probability)
        changed = mixed(batch, ctx, partner, share)
        if "wave" in batch.inputs:
            wave, lengths = batch.inputs["wave"], batch.inputs["lengths"]
            blend = share[:, None].to(wave.dtype)
            longer = torch.where(share < 1, torch.maximum(lengths, lengths[partner]), lengths)
            blended = {"wave": blend * wave + (1 - blend) * wave[partner], "lengths": longer}
            return changed.replace(inputs={**batch.inputs, **blended})
        if "pixels" not in batch.inputs:
            if batch.mix is not None:
                raise MethodError("the features of this batch are mixed already: list one mixing method for texts")
            return changed.replace(mix=Mix(partner, share))
        pixels = batch.inputs["pixels"]
        blend = share[:, None, None, None].to(pixels.dtype)
        return changed.replace(inputs={**batch.inputs, "pixels": blend * pixels + (1 - blend) * pixels[partner]})
