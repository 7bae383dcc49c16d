"""One bundle that answers requests: rows are encoded apart from the network, which sees them in shared batches."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from headstart import bundle as bundles
from headstart.bundle import Bundle
from headstart.data import Columns
from headstart.encoded import Encoded
from headstart.errors import DataError
from headstart.protocols import Task
from headstart.serve.batcher import Batcher
from headstart.serve.limits import Limits
from headstart.serve.refusals import bad
from headstart.values import Batch, Decoded

Inputs = dict[str, Tensor]
Found = tuple[np.ndarray, np.ndarray]
"""Of one row: raw outputs (K,) and pooled features (D,)."""


def joined(rows: Sequence[Inputs], padding: Mapping[str, int]) -> Inputs:
    """Inputs of single rows, each (1,...), as one batch (N,...), padded on the right to the longest.

    padding: the value an input is padded with, 0 where it is not named. An input that some rows lack is 0 for them.
    """
    made: Inputs = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        parts = [row[name] if name in row else _nothing(rows, row, name) for row in rows]
        size = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
        padded = []
        for part in parts:
            margins: list[int] = []
            for axis in range(part.ndim - 1, 0, -1):  # the last axis comes first in torch's list of margins
                margins += [0, size[axis - 1] - part.shape[axis]]
            padded.append(functional.pad(part, margins, value=padding.get(name, 0)) if any(margins) else part)
        made[name] = torch.cat(padded)
    return made


def _nothing(rows: Sequence[Inputs], row: Inputs, name: str) -> Tensor:
    """Zeros for an input that other rows have, in the shape of this row's first input with as many axes."""
    like = next(other[name] for other in rows if name in other)
    shape = next(value.shape for value in row.values() if value.ndim == like.ndim)
    return torch.zeros(shape, dtype=like.dtype)


class Served:
    """A loaded bundle under a name, with its own queue. executor: the thread that runs networks, shared by models.

    watch: told the rows of each batch. shared: bytes of weights that it has in common with other models.
    """

    def __init__(
        self,
        name: str,
        model: Bundle,
        limits: Limits,
        executor: Executor,
        watch: Callable[[int], None] = lambda rows: None,
        shared: int = 0,
    ) -> None:
        self.name, self.bundle, self.limits = name, model, limits
        self.version = str(model.record["lineage"]["id"])[:12]
        self.created = int(time.time())
        self.shared = shared
        self.modality = model.modality.name
        self.columns = _columns(model)
        self.padding: dict[str, int] = {}
        # A tokenizer must not be used by two threads at once, so every model has one thread that encodes.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix=f"encode-{name}")
        self.batcher: Batcher[Inputs, Found] = Batcher(
            self._run, executor, rows=limits.batch_rows, cost=limits.batch_cost(self.modality), queue=limits.queue_rows,
            delay=limits.delay_ms / 1000, watch=watch,
        )  # fmt: skip

    @property
    def tasks(self) -> dict[str, Task]:
        """Its tasks by name; a single one has the name ''."""
        return {member.name: member.task for member in self.bundle.task.members} or {"": self.bundle.task}

    async def answers(self, inputs: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray, int]:
        """Raw outputs (rows,K), pooled features (rows,D) and what the rows cost, such as tokens.

        Raises Refused for rows that cannot be decoded, Busy when too many wait.
        """
        with self.batcher.room(len(inputs)):
            loop = asyncio.get_running_loop()
            rows, lengths = await loop.run_in_executor(self._encoder, self._encode, inputs)
            found = await self.batcher.submit(rows, lengths)
        outputs, pooled = (np.stack([each[i] for each in found]) for i in (0, 1))
        return outputs, pooled, sum(lengths)

    def decode(self, outputs: np.ndarray, task: str | None = None) -> Decoded:
        """Answers as `headstart predict` writes them; of several tasks all, or only `task`. Raises Refused."""
        whole = self.bundle.task
        scores = whole.scores(torch.from_numpy(outputs), self.bundle.temperature).numpy()
        if task is None:
            return whole.decode(scores)
        self.check_task(task)
        member = next(member for member in whole.members if member.name == task)
        return member.task.decode(scores[:, member.columns])

    def check_task(self, task: str) -> None:
        """Raises Refused for a task that is not there."""
        if task in self.bundle.tasks:
            return
        have = ", ".join(self.bundle.tasks)
        raise bad(
            f"this model has no such task; it has {have}" if have else "this model has a single task, without a name"
        )

    def _encode(self, inputs: Sequence[str | bytes]) -> tuple[list[Inputs], list[int]]:
        try:
            prepared = Encoded.of(self.bundle.modality, self.bundle.model.backbone, inputs).prepared
            rows = [prepared.take([row]) for row in range(len(prepared))]
        except DataError as error:
            found = re.match(r"rows? (\d+)", str(error))
            raise bad(
                f"row {found[1] if found else '?'}: it is damaged, or cannot be read as {self.modality}"
            ) from None
        self.padding = dict(prepared.padding)
        return rows, [int(length) for length in prepared.lengths]

    def _run(self, rows: Sequence[Inputs]) -> list[Found]:
        count = len(rows)
        batch = Batch(
            inputs=joined(rows, self.padding), labels=None, weight=torch.ones(count),
            origin=torch.zeros(count, dtype=torch.int64), row=torch.arange(count),
        )  # fmt: skip
        model = self.bundle.model
        with torch.inference_mode():
            features, outputs = model(batch.to(next(model.parameters()).device))
        pairs = zip(outputs.float().cpu().numpy(), features.pooled.float().cpu().numpy(), strict=True)
        return list(pairs)

    async def close(self) -> None:
        """Answer what waits, then let the threads go."""
        await self.batcher.close()
        self._encoder.shutdown(wait=False)


def _columns(model: Bundle) -> Columns:
    """The columns of the training rows; of several tasks those of the first."""
    tasks = model.record.get("tasks") or {}
    first = tasks[model.tasks[0]]["columns"] if model.tasks else model.record["columns"]
    return Columns.from_json(first)


def load(folder: Path) -> Bundle:
    """The bundle in a folder, proven on its stored inputs. Raises BundleError or ProofError."""
    return bundles.load(folder, report=False)
