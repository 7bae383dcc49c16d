"""Convex combinations of the hidden states of two rows, at a block drawn anew for each batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headstart.errors import MethodError
from headstart.methods._checks import whole
from headstart.methods._mixing import check, draw, mixed
from headstart.protocols import Context, Method
from headstart.values import Batch, Mix


@dataclass
class Manifold(Method):
    """Trains on convex combinations of two rows' hidden states at a random block of the backbone.

    Equation: h~_k = s h_k(x_i) + (1 - s) h_k(x_j), y~ = s y_i + (1 - s) y_j, with k drawn evenly from the blocks
    `first` to `last` for each batch, h_k what block k receives, s = max(l, 1 - l), l ~ Beta(alpha, alpha) for each row
    and j drawn by permuting the batch. For tokens of texts: where row i has a token and row j has none (padding), h_k
    of row i stays as it is.

    Source: Verma et al. 2019 (Manifold Mixup), section 2. Taking the larger of l and 1 - l changes nothing for
    pictures, where the pairs (i, j) and (j, i) are drawn alike; for texts it is done by Chen et al. 2020 (MixText).

    Requires: a task that can mix labels (`task.mix`).

    Shapes: states of a block (N,T,V) or (N,C,H,W) -> the same; labels (N,) or (N,K) -> (N,K); weights (N,) are mixed
    alike.

    Neighbours: `mixup` mixes pixels of pictures and pooled features of texts; on texts the two exclude each other.
    A mixed text keeps the attention mask of its own row i, the one it mostly is: states of padding never enter, and
    what row j has beyond the end of row i is lost. (With the union of both masks the blocks below k would attend to
    padding.) Two rows of different origin are never mixed.

    Example: `--method manifold:alpha=1`; `hs.methods.Manifold(alpha=1, last=5)`.

    Defaults: alpha = 0.2 is `mixup`'s, for networks that are fine-tuned for a few epochs; the paper trains from nothing
    with 2. All blocks may be drawn, where the paper takes the input and the first blocks of a ResNet; untuned.

    alpha: above 0; 1 is a uniform share. probability: of a row being mixed at all. first: the lowest block whose input
    may be mixed; 0 is what the stem gives. last: the highest; none is the last block.
    """

    alpha: float = 0.2
    probability: float = 1.0
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        check("manifold", self.alpha, self.probability)
        whole("manifold:first", self.first, 0, "such as first=0, the lowest block")
        if self.last is not None:
            whole("manifold:last", self.last, self.first, "the number of a block, such as last=5; leave it out for all")

    def requires(self) -> dict[str, str]:
        """Labels must be mixable."""
        return {"task.mix": "mixed rows need mixed labels"}

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; its blocks are counted. Raises MethodError where the options name none of them."""
        whole_model: Any = model
        count = len(whole_model.backbone.blocks)
        if self.first >= count or (self.last is not None and self.last >= count):
            raise MethodError(
                f"expected manifold:first and manifold:last to be blocks from 0 to {count - 1}, "
                f"received first={self.first}, last={self.last}"
            )
        self.blocks_ = range(self.first, count if self.last is None else self.last + 1)
        return model

    def remains(self) -> bool:
        """The model keeps no trace of the training."""
        return False

    def transform(self, batch: Batch, ctx: Context) -> Batch:
        """The batch with mixed labels, and `mix` saying at which block its rows are mixed."""
        if not hasattr(self, "blocks_"):
            raise MethodError("'manifold' needs to see the model first: call adapt(model, ctx) before transform")
        if batch.mix is not None:
            raise MethodError("the features of this batch are mixed already: list one mixing method for texts")
        partner, share = draw(batch, ctx, self.alpha, self.probability)
        share = torch.maximum(share, 1 - share)
        place = torch.randint(len(self.blocks_), (1,), generator=ctx.generator, device=ctx.generator.device)
        return mixed(batch, ctx, partner, share).replace(mix=Mix(partner, share, self.blocks_[int(place)]))
