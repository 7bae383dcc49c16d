"""From raw rows to answers: encoded one by one in a thread, run through a network in shared batches.

A lane serves one model, or all that share a backbone (`trunk.Trunk`): then a batch holds rows of several, and each row
says whose it is.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from headstart.errors import DataError
from headstart.protocols import Backbone, Modality
from headstart.serve.batcher import Batcher
from headstart.serve.limits import Limits
from headstart.serve.refusals import bad
from headstart.values import Batch

Inputs = dict[str, Tensor]
Found = tuple[np.ndarray, np.ndarray]
"""Of one row: raw outputs (K,) and pooled features (D,)."""

SHORT = 1000
"""Characters of a request up to which its texts are encoded at once: going to another thread would take longer."""

Result = TypeVar("Result")

Network = Callable[[Batch, Sequence[Hashable]], tuple[Tensor, Sequence[Tensor]]]
"""Pooled features (N,D) and each row's outputs (K,) of a batch and of the rows' owners."""


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


def batch_of(inputs: Inputs) -> Batch:
    """Rows without labels, each of weight 1."""
    count = len(next(iter(inputs.values())))
    return Batch(
        inputs=inputs, labels=None, weight=torch.ones(count), origin=torch.zeros(count, dtype=torch.int64),
        row=torch.arange(count),
    )  # fmt: skip


def _closed(batch: Batch, owners: Sequence[Hashable]) -> tuple[Tensor, Sequence[Tensor]]:
    raise RuntimeError("this lane is closed")


class Lane:
    """One encoder, one queue, one network. executor: the thread that runs networks, shared by all lanes.

    watch: told the owner of each row of every batch that was run.
    """

    def __init__(
        self,
        modality: Modality,
        backbone: Backbone,
        network: Network,
        executor: Executor,
        limits: Limits,
        watch: Callable[[Sequence[Hashable]], None] = lambda owners: None,
    ) -> None:
        self._modality, self._backbone = modality, backbone
        self._network: Network = network
        self._padding: dict[str, int] = {}
        # A tokenizer must not be used by two threads at once.
        self._encoding = threading.Lock()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self.batcher: Batcher[tuple[Hashable, Inputs], Found] = Batcher(
            self._run, executor, rows=limits.batch_rows, cost=limits.batch_cost(modality.name), queue=limits.queue_rows,
            delay=limits.delay_ms / 1000, watch=lambda rows: watch([owner for owner, _ in rows]),
        )  # fmt: skip

    async def answers(self, owner: Hashable, inputs: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray, int]:
        """Raw outputs (rows,K), pooled features (rows,D) and what the rows cost, such as tokens.

        Raises Refused for rows that cannot be decoded, Busy when too many of this owner wait.
        """
        with self.batcher.room(len(inputs), owner):
            rows, lengths = await self._encoded(inputs)
            found = await self.batcher.submit([(owner, row) for row in rows], lengths, owner)
        outputs, pooled = (np.stack([each[i] for each in found]) for i in (0, 1))
        if not (np.isfinite(outputs).all() and np.isfinite(pooled).all()):
            raise FloatingPointError("the network answered with numbers that are not finite")
        return outputs, pooled, sum(lengths)

    async def _encoded(self, inputs: Sequence[str | bytes]) -> tuple[list[Inputs], list[int]]:
        """Few short texts are encoded here and now, unless the lane's thread encodes; everything else there."""
        short = self._modality.name == "text" and sum(map(len, inputs)) <= SHORT
        if short and self._encoding.acquire(blocking=False):
            try:
                return self._encode(inputs)
            finally:
                self._encoding.release()
        return await asyncio.get_running_loop().run_in_executor(self._encoder, self._aside, self._encode, inputs)

    async def encoding(self, work: Callable[..., Result], *args: Any) -> Result:
        """The result of other work that needs the tokenizer, in the thread that encodes."""
        return await asyncio.get_running_loop().run_in_executor(self._encoder, self._aside, work, *args)

    def _aside(self, work: Callable[..., Result], *args: Any) -> Result:
        with self._encoding:
            return work(*args)

    def _encode(self, inputs: Sequence[str | bytes]) -> tuple[list[Inputs], list[int]]:
        try:
            prepared = self._modality.prepare(inputs, self._backbone)
            rows = [prepared.take([row]) for row in range(len(prepared))]
        except DataError as error:
            found = re.match(r"rows? (\d+)", str(error))
            raise bad(
                f"row {found[1] if found else '?'}: it is damaged, or cannot be read as {self._modality.name}"
            ) from None
        self._padding = dict(prepared.padding)
        return rows, [int(length) for length in prepared.lengths]

    def _run(self, rows: Sequence[tuple[Hashable, Inputs]]) -> list[Found]:
        batch = batch_of(joined([inputs for _, inputs in rows], self._padding))
        device = next(self._backbone.parameters()).device
        with torch.inference_mode():
            pooled, outputs = self._network(batch.to(device), [owner for owner, _ in rows])
        features = pooled.float().cpu().numpy()
        return [(values.float().cpu().numpy(), row) for values, row in zip(outputs, features, strict=True)]

    async def close(self) -> None:
        """Answer what waits, then let the thread and the network go."""
        await self.batcher.close()
        self._encoder.shutdown(wait=False)
        self._network = _closed
