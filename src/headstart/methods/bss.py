"""Directions in which a batch hardly varies shall vanish."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.methods._checks import number, whole
from headstart.protocols import Context, Method
from headstart.values import View


@dataclass
class BSS(Method):
    """Shrinks the smallest singular values of each batch's features, against negative transfer.

    Equation: weight * sum of s_i^2 over the k smallest singular values s_i of the micro-batch's pooled features F, a
    matrix (N,D).

    Source: Chen et al. 2019 (Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage), section 4.2.
    The largest value is always left alone, so that a last batch of one row is not shrunk as a whole; this is ours.

    Requires: backbone parameters that learn.

    Shapes: pooled (N,D) -> a scalar; one singular value decomposition of N times D numbers a micro-batch.

    Neighbours: made to be combined with `l2sp` or `delta`, which keep what transfers while this lets go of what does
    not. A batch is a micro-batch: accumulation makes smaller matrices, whose smallest values are larger.

    Example: `--method bss:weight=0.001,k=1`; `hs.methods.BSS(weight=0.001, k=1)`.

    Defaults: weight = 0.001 and k = 1 are the paper's (section 5, and its study of k).

    weight: eta of the paper. k: how many singular values are shrunk.
    """

    weight: float = 0.001
    k: int = 1

    def __post_init__(self) -> None:
        number("bss:weight", self.weight, 0, "such as weight=0.001; leave the method out for none", above=True)
        whole("bss:k", self.k, 1, "such as k=1")

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`bss`: the scaled sum of the smallest squared singular values."""
        values = torch.linalg.svdvals(view.features.pooled.float())
        smallest = values[1:][-self.k :]
        return {"bss": self.weight * smallest.square().sum()}
