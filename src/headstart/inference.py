"""Running a model over many rows: longest first, without gradients, answers in the order of the rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.data.batches import by_budget
from headstart.encoded import Encoded
from headstart.protocols import Backbone
from headstart.values import Batch

ROWS = 16
"""Rows at a time where their lengths say nothing about memory (pictures, sounds) or are not to decide. On a CPU what 64
pictures of 224 pixels leave between layers is far beyond its caches: 16 were 1.3 times as fast."""

GPU_ROWS = 64
"""The same on a GPU, which few rows leave idle."""

GPU_BUDGETS = 2
"""Budgets of a batch on a GPU, where batches are cut by a budget."""

IN_MEMORY = 256 * 2**20
"""Bytes of answers kept in memory; more than this goes to a memory-mapped temporary file."""


def outputs(model: nn.Module, rows: Encoded, *, batch_size: int | None = None, precision: str = "fp32") -> np.ndarray:
    """The head's raw outputs, (rows,K) float32.

    batch_size: rows at a time; None lets `plan` choose. precision: fp32, or bf16 where torch casts (`steps.answering`).
    """
    return _collect(model, rows, batch_size, lambda batch: model(batch)[1], precision)


def pooled(backbone: Backbone, rows: Encoded, *, batch_size: int | None = None, precision: str = "fp32") -> np.ndarray:
    """Frozen pooled features, (rows,D) float32. batch_size, precision: as for `outputs`."""
    return _collect(backbone, rows, batch_size, lambda batch: backbone(batch).pooled, precision)


def running(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Inside, passes on this device run in fp32, or in bf16 where torch's autocast makes it so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def averaged(
    model: nn.Module,
    rows: Encoded,
    score: Callable[[Tensor], Tensor],
    change: Callable[[Batch, int, int], Batch],
    views: int,
    *,
    batch_size: int = ROWS,
) -> np.ndarray:
    """The mean of `score(outputs)` over views of each row, (rows,K) float32; the first view is the row as it is.

    Views are drawn batch by batch, so batches are cut by rows: no budget of memory changes what is drawn.

    change: makes another view of a batch, given the number of the view (from 1) and of the batch.
    """
    done = count()

    def answer(batch: Batch) -> Tensor:
        number = next(done)
        seen = [batch, *(change(batch, view, number) for view in range(1, views))]
        return torch.stack([score(model(each)[1].float()) for each in seen]).mean(0)

    return _collect(model, rows, batch_size, answer)


def plan(rows: Encoded, batch_size: int | None = None, *, device: torch.device | None = None) -> list[np.ndarray]:
    """Row numbers in batches, longest first, every row once: cut by `prepared.budget` (tokens, for text) or by rows.

    device: where they are computed; a CPU when left out.
    """
    lengths = rows.prepared.lengths
    on_gpu = device is not None and device.type == "cuda"
    if batch_size is None and rows.prepared.budget is not None:
        return by_budget(lengths, rows.prepared.budget * (GPU_BUDGETS if on_gpu else 1))
    usual = GPU_ROWS if on_gpu else ROWS
    size = usual if batch_size is None else batch_size
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def _collect(
    module: nn.Module,
    rows: Encoded,
    batch_size: int | None,
    answer: Callable[[Batch], Tensor],
    precision: str = "fp32",
) -> np.ndarray:
    training = module.training
    module.eval()
    device = next(module.parameters()).device
    found: np.ndarray | None = None
    try:
        with torch.inference_mode(), running(device, precision):
            for index in plan(rows, batch_size, device=device):
                values = answer(rows.batch(index.tolist()).to(device)).float().cpu().numpy()
                if found is None:
                    found = _room(len(rows), values.shape[1])
                found[index] = values
    finally:
        module.train(training)
    if found is None:
        return np.zeros((0, 0), dtype=np.float32)
    return found


def _room(rows: int, width: int) -> np.ndarray:
    if rows * width * 4 <= IN_MEMORY:
        return np.empty((rows, width), dtype=np.float32)
    # The file is unlinked at once: the mapping keeps it alive and nothing is left behind.
    with tempfile.NamedTemporaryFile(prefix="headstart-", suffix=".f32") as file:
        return np.memmap(Path(file.name), dtype=np.float32, mode="w+", shape=(rows, width))
