"""One bundle that answers requests under a name, and what is known of it without its weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.bundle import Bundle
from headstart.data import Columns
from headstart.explanation import attribution
from headstart.protocols import Task
from headstart.serve.lane import Lane
from headstart.serve.limits import Limits
from headstart.serve.refusals import bad
from headstart.values import Batch, Decoded


class Face:
    """What clients may know of a bundle: enough to describe it while its weights are not in memory.

    version: the beginning of its lineage id. created: seconds since 1970 when it was first loaded. width: D of the
    pooled features. unexplained: why its answers cannot be explained, None where they can.
    """

    def __init__(self, name: str, model: Bundle) -> None:
        self.name = name
        self.version = str(model.record["lineage"]["id"])[:12]
        self.created = int(time.time())
        self.modality = model.modality.name
        self.columns = _columns(model)
        self.task = model.task
        self.temperature = model.temperature
        self.width = int(model.model.backbone.width)
        self.unexplained = attribution.refusal(model)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tasks; none where it has just one."""
        return tuple(member.name for member in self.task.members)

    @property
    def tasks(self) -> dict[str, Task]:
        """Its tasks by name; a single one has the name ''."""
        return {member.name: member.task for member in self.task.members} or {"": self.task}

    def decode(self, outputs: np.ndarray, task: str | None = None) -> Decoded:
        """Answers as `headstart predict` writes them; of several tasks all, or only `task`. Raises Refused."""
        whole = self.task
        scores = whole.scores(torch.from_numpy(outputs), self.temperature).numpy()
        if task is None:
            return whole.decode(scores)
        self.check_task(task)
        member = next(member for member in whole.members if member.name == task)
        return member.task.decode(scores[:, member.columns])

    def check_task(self, task: str) -> None:
        """Raises Refused for a task that is not there."""
        if task in self.names:
            return
        have = ", ".join(self.names)
        raise bad(
            f"this model has no such task; it has {have}" if have else "this model has a single task, without a name"
        )


class Served(Face):
    """A loaded bundle under a name. executor: the thread that runs networks, shared by models.

    watch: told the rows of each batch that held one of its own. shared: bytes of weights that were in memory already.
    lane: the queue that it shares with the other models on its backbone; without, it has one of its own.
    """

    def __init__(
        self,
        name: str,
        model: Bundle,
        limits: Limits,
        executor: Executor,
        watch: Callable[[int], None] = lambda rows: None,
        shared: int = 0,
        lane: Lane | None = None,
    ) -> None:
        super().__init__(name, model)
        self.bundle, self.watch, self.shared = model, watch, shared
        self.alone = lane is None
        self.lane = lane or Lane(model.modality, model.model.backbone, self._alone, executor, limits, told)

    @property
    def batcher(self) -> Any:
        """The queue, maybe shared."""
        return self.lane.batcher

    @property
    def waiting(self) -> int:
        """Its rows that wait or are answered."""
        return self.lane.batcher.waiting_of(self)

    async def answers(self, inputs: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray, int]:
        """Raw outputs (rows,K), pooled features (rows,D) and what the rows cost, such as tokens.

        Raises Refused for rows that cannot be decoded, Busy when too many wait.
        """
        return await self.lane.answers(self, inputs)

    def _alone(self, batch: Batch, owners: Sequence[Hashable]) -> tuple[Tensor, Sequence[Tensor]]:
        features, outputs = self.bundle.model(batch)
        return features.pooled, outputs

    def resting(self) -> Face:
        """What is left of it when its weights go."""
        face = Face(self.name, self.bundle)
        face.created = self.created
        return face

    async def close(self) -> None:
        """Answer what waits; a queue of its own is closed."""
        if self.alone:
            await self.lane.close()


def told(owners: Sequence[Hashable]) -> None:
    """Tell each model that had a row in a batch how many rows the batch had."""
    for owner in dict.fromkeys(owners):
        assert isinstance(owner, Served)
        owner.watch(len(owners))


def _columns(model: Bundle) -> Columns:
    """The columns of the training rows; of several tasks those of the first."""
    tasks = model.record.get("tasks") or {}
    first = tasks[model.tasks[0]]["columns"] if model.tasks else model.record["columns"]
    return Columns.from_json(first)
