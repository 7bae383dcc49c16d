"""A rectangle of one picture pasted into another, labels mixed by area."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.methods._draws import uniform
from headstart.methods._mixing import check, draw, mixed, pixels_of
from headstart.protocols import Context, Method
from headstart.values import Batch


@dataclass
class CutMix(Method):
    """Pastes a random rectangle of one picture into another and mixes the labels by area.

    Equation: x~ = M * x_i + (1 - M) * x_j, y~ = s y_i + (1 - s) y_j, where M is 0 in a rectangle of height H sqrt(1 -
    l) and width W sqrt(1 - l) around a uniform centre, cut at the border, l ~ Beta(alpha, alpha), and s is the share
    of M that is 1.

    Source: Yun et al. 2019 (CutMix), section 3.1.

    Requires: pictures (`modality.continuous`) and a task that can mix labels (`task.mix`).

    Shapes: pixels (N,C,H,W) -> the same; labels (N,) or (N,K) -> (N,K); weights (N,) are mixed alike.

    Neighbours: `mixup` blends whole pictures. Both in one run compose in the order listed: the second mixes rows that
    are mixed already. `augment` belongs before it. Two rows of different origin are never mixed.

    Example: `--method cutmix:alpha=1.0`; `hs.methods.CutMix(alpha=1.0)`.

    Defaults: alpha = 1, a uniform share, and every row mixed are what the paper uses on ImageNet (section 4.1). Each
    row has its own rectangle; the paper's code draws one a batch, which has the same expectation.

    alpha: above 0. probability: of a row being mixed at all.
    """

    alpha: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        check("cutmix", self.alpha, self.probability)

    def requires(self) -> dict[str, str]:
        """Pictures, and labels that can be mixed."""
        return {
            "modality.image": "a rectangle can only be pasted into pictures",
            "task.mix": "mixed rows need mixed labels",
        }

    def transform(self, batch: Batch, ctx: Context) -> Batch:
        """The batch with pasted pixels."""
        pixels = pixels_of(batch, "cutmix")
        partner, share = draw(batch, ctx, self.alpha, self.probability)
        height, width = pixels.shape[2:]
        rows = _spans(share, height, ctx)
        columns = _spans(share, width, ctx)
        inside = rows[:, :, None] & columns[:, None, :]
        area = 1 - inside.float().mean(dim=(1, 2))
        pasted = torch.where(inside[:, None], pixels[partner], pixels)
        return mixed(batch, ctx, partner, area).replace(inputs={**batch.inputs, "pixels": pasted})


def _spans(share: Tensor, size: int, ctx: Context) -> Tensor:
    """(N,size) bool: the rectangle's extent along one side, of length size * sqrt(1 - share), cut at the border."""
    length = (size * (1 - share).sqrt()).floor()[:, None]
    centre = (uniform((len(share), 1), ctx.generator).to(share.device) * size).floor()
    start = centre - (length / 2).floor()
    place = torch.arange(size, device=share.device)[None]
    return (place >= start) & (place < start + length)
