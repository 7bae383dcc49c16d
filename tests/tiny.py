"""A small backbone and rows for tests of the loop: real hooks, no weights to load."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.encoded import Encoded
from headstart.hooks import Hooks
from headstart.loop import Loop
from headstart.modalities.text import TextModality
from headstart.model import Model
from headstart.protocols import Backbone, Method, Prepared, Task
from headstart.spec import TrainingSpec
from headstart.tasks.classification import Classification
from headstart.values import Batch, Features

DEVICE = torch.device(os.environ.get("HEADSTART_TEST_DEVICE", "cpu"))
"""Where runs of these loops learn."""

VOCABULARY, WIDTH, CLASSES = 50, 16, 3


class Block(nn.Module):
    """Residual linear block with dropout and a norm."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(torch.tanh(self.linear(self.norm(x))))


class TinyNetwork(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block(dropout) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)


class TinyBackbone(Backbone):
    """Token ids -> embeddings -> three blocks -> mean."""

    def __init__(self, dropout: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = TinyNetwork(dropout)
        self.ref, self.source, self.digest = "tiny", {"kind": "test"}, "0"
        self.modality, self.width, self.preprocessing = "text", WIDTH, {}

    @property
    def stem(self) -> Sequence[nn.Module]:
        return [self.network.embedding]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.network.layers)

    @property
    def tail(self) -> Sequence[nn.Module]:
        return [self.network.norm]

    def features(self, batch: Batch) -> Features:
        mask = batch.inputs["attention_mask"]
        x = self.network.embedding(batch.inputs["input_ids"])
        if batch.shift is not None:
            x = x + batch.shift
        for layer in self.network.layers:
            x = layer(x)
        x = self.network.norm(x)
        share = mask[..., None].to(x.dtype)
        return Features((x * share).sum(1) / share.sum(1), x, mask)

    def zero_shift(self, batch: Batch) -> Tensor:
        ids = batch.inputs["input_ids"]
        return torch.zeros(*ids.shape, WIDTH, device=ids.device)

    def describe(self) -> dict[str, Any]:
        return {}

    def save_files(self, folder: Path) -> None:
        return None


class TinyRows(Prepared):
    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows
        self.lengths = np.array([len(row) for row in rows], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        picked = [self.rows[int(i)] for i in rows]
        longest = max(map(len, picked))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in picked])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in picked])
        return {"input_ids": ids, "attention_mask": mask}


def make_rows(count: int = 64, seed: int = 0, *, same_length: bool = False) -> Encoded:
    """Rows whose class decides which third of the vocabulary most tokens come from."""
    generator = np.random.default_rng(seed)
    rows, labels = [], []
    for _ in range(count):
        label = int(generator.integers(CLASSES))
        length = 6 if same_length else int(generator.integers(3, 9))
        own = generator.integers(1 + label * 16, 1 + (label + 1) * 16, length)
        noise = generator.integers(1, VOCABULARY, length)
        rows.append(np.where(generator.random(length) < 0.6, own, noise).tolist())
        labels.append(label)
    weight = torch.ones(count)
    return Encoded(TinyRows(rows), torch.tensor(labels), weight, torch.zeros(count, dtype=torch.int64))


def make_task(**options: Any) -> Task:
    return Classification.fit([str(i) for i in range(CLASSES)] * 2, **options)


def make_loop(
    methods: dict[str, Method] | None = None,
    *,
    rows: Encoded | None = None,
    validation: Encoded | None = None,
    dropout: float = 0.1,
    epochs: int = 2,
    checkpoint: Path | None = None,
    **training: Any,
) -> Loop:
    """A loop over the tiny backbone, ready to train."""
    settings = TrainingSpec(**{"batch_size": 8, "learning_rate": 1e-2, "head_scale": 1.0, **training})
    torch.manual_seed(0)
    model = Model(TinyBackbone(dropout), nn.Linear(WIDTH, CLASSES))
    hooks = Hooks(methods or {}, make_task(), TextModality(), seed=settings.seed)
    return Loop(
        model, hooks, rows or make_rows(), validation, settings, epochs, settings.learning_rate or 1e-2,
        DEVICE, checkpoint=checkpoint, identity="test",
    )  # fmt: skip
