"""Supervised contrast: rows of one class are pulled together, others pushed apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from headstart.methods._checks import choice, number
from headstart.protocols import Context, Method
from headstart.values import View


@dataclass
class Contrast(Method):
    """Pulls rows of one class together and pushes others apart, in the space of normalised features.

    Equation: with z = pooled / |pooled| and P(i) the other rows of row i's class in the batch,
    `supcon`: mean_i -1/|P(i)| sum_{p in P(i)} log( exp(z_i.z_p / t) / sum_{a != i} exp(z_i.z_a / t) );
    `cosine`: 1/2 mean over same-class pairs of (1 - z_i.z_j)^2 + 1/2 mean over other pairs of (z_i.z_j)^2.
    The result is multiplied by `strength` and added to the loss.

    Source: `supcon`: Khosla et al. 2020, equation 2; beside cross-entropy: Gunel et al. 2021, section 2. `cosine`: the
    loss of SetFit (Tunstall et al. 2022, section 3) over every pair of a batch, both kinds weighing the same.

    Requires: classes (one label a row). Batches with several rows of a class: `--set training.batches=pairs`.

    Shapes: pooled (N,D), labels (N,) -> a scalar; N^2 similarities, never more than a batch's.

    Neighbours: acts on features, so it composes with everything that changes inputs or parameters; with
    `training.task_weight=0` it trains the body alone (then solve the head in a second stage). A batch mixed by
    `mixup` has no single class a row and adds nothing.

    Example: `--method contrast:strength=0.3`; `hs.methods.Contrast(strength=0.3, kind="supcon")`.

    Defaults: strength 0.3 and temperature 0.1 lie inside the ranges of Gunel et al. 2021, appendix (0.1 to 0.9; 0.1 to
    0.9). They were the only values tried on Banking77, against none: a gain on validation rows for one seed.
    """

    strength: float = 0.3
    kind: str = "supcon"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        number("contrast:strength", self.strength, 0, "such as 0.3", above=True)
        number("contrast:temperature", self.temperature, 0, "such as 0.1", above=True)
        choice("contrast:kind", self.kind, ("supcon", "cosine"))

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`contrast`: the scaled loss over the batch's pairs; 0 where no two rows share a class."""
        labels = view.batch.labels
        pooled = view.features.pooled.float()
        if labels is None or labels.is_floating_point() or view.batch.mix is not None:
            return {"contrast": pooled.sum() * 0.0}
        z = functional.normalize(pooled, dim=1)
        same = labels[:, None] == labels[None]
        loss = self._supcon(z, same) if self.kind == "supcon" else _cosine(z, same)
        return {"contrast": self.strength * loss}

    def _supcon(self, z: Tensor, same: Tensor) -> Tensor:
        self_pair = torch.eye(len(z), dtype=torch.bool, device=z.device)
        similarity = (z @ z.T / self.temperature).masked_fill(self_pair, float("-inf"))
        log_share = similarity.log_softmax(1).masked_fill(self_pair, 0.0)
        positive = same & ~self_pair
        count = positive.sum(1)
        # Without a look at the numbers, for which a GPU would have to be waited for; a row alone in its class adds 0.
        return -((log_share * positive).sum(1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)

    def requires(self) -> dict[str, str]:
        """One class a row."""
        return {"task.classification": "it pulls together rows of one class"}


def _cosine(z: Tensor, same: Tensor) -> Tensor:
    upper = torch.ones(len(z), len(z), dtype=torch.bool, device=z.device).triu(1)
    error = (z @ z.T - same.to(z.dtype)).square()
    kinds = torch.stack([upper & same, upper & ~same])
    counts = kinds.sum((1, 2))
    means = (error * kinds).sum((1, 2)) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)
