"""Rows ready to be learned from: encoded inputs, targets and weights, from which batches are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.data.batches import by_length, by_pairs, by_task
from headstart.protocols import Backbone, Modality, Prepared, Task
from headstart.spec import TrainingSpec
from headstart.values import Batch

Change = Callable[[dict[str, Tensor], Sequence[int]], dict[str, Tensor]]
"""Makes other inputs of collated ones, given the numbers of their rows."""


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
        origin = torch.zeros(rows, dtype=torch.int64)
        if task is not None and targets is not None:
            origin = task.origins(targets)
        return cls(prepared, targets, torch.ones(rows), origin, inputs)

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

    def some(self, index: np.ndarray, change: Change | None = None) -> Encoded:
        """The rows of these numbers, (n,), without raw inputs. change: what becomes of inputs as they are taken."""
        places = torch.from_numpy(index)
        targets = None if self.targets is None else self.targets[places]
        return Encoded(_Some(self.prepared, index, change), targets, self.weight[places], self.origin[places])

    def __len__(self) -> int:
        return len(self.prepared)

    def plan(self, training: TrainingSpec, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch as row numbers: a function of the rows, the settings, the seed and the epoch."""
        seed, size, lengths = training.seed, training.batch_rows, self.prepared.lengths
        if training.batches == "pairs" and self.targets is not None and self.targets.ndim == 1:
            return by_pairs(self.targets.numpy(), size, seed=seed, epoch=epoch)
        if bool((self.origin == self.origin[:1]).all()):
            return by_length(lengths, size, seed=seed, epoch=epoch)
        how, heat = training.sampling, training.sampling_temperature
        origin = self.origin.numpy()
        return by_task(lengths, origin, size, sampling=how, temperature=heat, seed=seed, epoch=epoch)

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


class _Some(Prepared):
    """Some of the rows, their inputs changed when they are taken."""

    def __init__(self, rows: Prepared, index: np.ndarray, change: Change | None) -> None:
        self.rows, self.index, self.change = rows, index, change
        self.lengths = rows.lengths[index]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        found = self.rows.take(self.index[list(rows)].tolist())
        return found if self.change is None else self.change(found, rows)
