"""Rows ready to be learned from: encoded inputs, targets and weights, from which batches are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstart.protocols import Backbone, Modality, Prepared, Task
from headstart.values import Batch


@dataclass(frozen=True)
class Encoded:
    """prepared: the inputs; targets: (rows,) or (rows,K), None when unlabelled; weight: (rows,); origin: (rows,); raw:
    what the rows were before a backbone's modality prepared them, where that is known.
    """

    prepared: Prepared
    targets: Tensor | None
    weight: Tensor
    origin: Tensor
    raw: Sequence[Any] | None = None

    @classmethod
    def of(
        cls,
        modality: Modality,
        backbone: Backbone,
        inputs: Sequence[Any],
        task: Task | None = None,
        labels: Sequence[Any] | None = None,
    ) -> Encoded:
        """Encode raw inputs, and labels where there are any. Raises DataError naming what cannot be encoded."""
        prepared = modality.prepare(inputs, backbone)
        targets = task.encode(labels) if task is not None and labels is not None else None
        rows = len(prepared)
        return cls(prepared, targets, torch.ones(rows), torch.zeros(rows, dtype=torch.int64), inputs)

    def extended(
        self, modality: Modality, backbone: Backbone, inputs: Sequence[Any], added: Sequence[tuple[int, Any]]
    ) -> Encoded:
        """These rows, whose raw inputs are given, and behind them those added: (index of a source, raw input).

        An added row has the target, weight and origin of its source.
        """
        raw = [*inputs, *(value for _, value in added)]
        prepared = modality.prepare(raw, backbone)
        index = torch.tensor([*range(len(self)), *(source for source, _ in added)], dtype=torch.int64)
        targets = None if self.targets is None else self.targets[index]
        return Encoded(prepared, targets, self.weight[index], self.origin[index], raw)

    def __len__(self) -> int:
        return len(self.prepared)

    def batch(self, rows: Sequence[int]) -> Batch:
        """The batch of these rows, in this order."""
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        return Batch(
            inputs=self.prepared.take(rows),
            labels=None if self.targets is None else self.targets[index],
            weight=self.weight[index],
            origin=self.origin[index],
            row=index,
        )


def seed_of(*parts: object) -> int:
    """A seed in [0, 2**63) derived from names and numbers, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
