"""Several tasks on one backbone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from headstart import tasks
from headstart.errors import DataError, SpecError, did_you_mean
from headstart.members import Member
from headstart.protocols import Task
from headstart.values import Decoded, Weighted

MEAN = "mean"
"""The metric that is compared unless another is asked for: the mean of the tasks' own."""


@dataclass
class Multitask(Task):
    """Several tasks side by side: each row belongs to one of them, and its outputs are a share of the head's.

    The head is one linear layer whose rows are the tasks' heads. Targets are (N,1+W) float32: the number of the row's
    task, then that task's own target, filled up with zeros. A row's loss is its own task's on its own outputs, so the
    outputs of other tasks get no gradient from it.

    `mean` is the mean over tasks of their metrics; a task whose metric is an error counts with r2 where it measures
    that, else with minus the error, so that greater is better for all. Tasks without rows are left out.
    """

    name: ClassVar[str] = "multitask"

    tasks: Mapping[str, Task]
    widths: tuple[int, ...]
    metric: str = MEAN

    def __post_init__(self) -> None:
        """Raises SpecError for a metric that is not measured."""
        self.labels = tuple(f"{name}.{label}" for name, task in self.tasks.items() for label in task.labels)
        self._members, start = [], 0
        for index, (name, task) in enumerate(self.tasks.items()):
            columns = slice(start, start + task.outputs)
            self._members.append(Member(name, task, index, columns, self.widths[index]))
            start = columns.stop
        self.greater_is_better = True
        if self.metric != MEAN:
            name, _, own = self.metric.partition(".")
            if name not in self.tasks or not own:
                known = [MEAN, *(f"{name}.{task.metric}" for name, task in self.tasks.items())]
                raise SpecError(f"several tasks do not measure '{self.metric}': {did_you_mean(self.metric, known)}")
            self.greater_is_better = self.tasks[name].greater_is_better

    @classmethod
    def fit(cls, values: Sequence[Any], **options: Any) -> Multitask:
        """Learn each task from its rows; a value is a pair of the task's name and the row's label.

        Options: tasks, by name the kind (`name`) and the options of each, in the order of the head's outputs; metric,
        `mean` or a task's, as `topic.macro_f1`. Raises SpecError without tasks, and what the tasks raise.
        """
        asked, metric = options.pop("tasks", None), options.pop("metric", MEAN)
        if not asked or options:
            raise SpecError("several tasks need data of their own: give each a table [tasks.NAME] in the spec")
        chosen, _, own = metric.partition(".")
        found = {}
        for name, given in asked.items():
            changed = {"metric": own} if name == chosen and own else {}
            kind, more = given["name"], {key: value for key, value in given.items() if key != "name"}
            rows = [label for task, label in values if task == name]
            try:
                found[name] = tasks.fit(kind, rows, **{**more, **changed})
            except DataError as error:
                raise DataError(f"task '{name}': {error}") from None
        firsts = [task.encode([label for other, label in values if other == name][:1]) for name, task in found.items()]
        return cls(found, tuple(0 if first.ndim == 1 else int(first.shape[1]) for first in firsts), metric)

    @property
    def members(self) -> Sequence[Member]:
        """The tasks in the order of the head's outputs."""
        return tuple(self._members)

    def encode(self, values: Sequence[Any]) -> Tensor:
        """Targets (rows,1+W) float32 of pairs of a task's name and a label. Raises DataError for unknown labels."""
        targets = torch.zeros(len(values), 1 + max(1, *self.widths))
        for member in self.members:
            rows = [row for row, (name, _) in enumerate(values) if name == member.name]
            if not rows:
                continue
            try:
                own = member.task.encode([values[row][1] for row in rows])
            except DataError as error:
                raise DataError(f"task '{member.name}': {error}") from None
            targets[rows, 0] = float(member.index)
            targets[rows, 1 : 1 + max(1, member.width)] = own.reshape(len(rows), -1).to(targets.dtype)
        return targets

    def origins(self, targets: Tensor) -> Tensor:
        """The number of each row's task."""
        return targets[:, 0].long()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, (N,), by its own task."""
        losses = outputs.new_zeros(len(outputs))
        for member in self.members:
            rows = member.rows(targets).nonzero()[:, 0]
            if len(rows):
                own = member.task.loss(outputs[rows][:, member.columns], member.own(targets[rows]))
                losses = losses.index_add(0, rows, own.to(losses.dtype))
        return losses

    def scores(self, outputs: Tensor, temperature: Any = 1.0) -> Tensor:
        """Each task's probabilities or values on every row, (N,K). temperature: one number, or one a task by name."""
        each = temperature if isinstance(temperature, Mapping) else dict.fromkeys(self.tasks, temperature)
        return torch.cat([m.task.scores(outputs[:, m.columns], float(each[m.name])) for m in self.members], 1)

    def margin(self, outputs: np.ndarray) -> np.ndarray:
        """(N,): that of the task whose prediction is the nearest to another."""
        found: np.ndarray = np.min([member.task.margin(outputs[:, member.columns]) for member in self.members], axis=0)
        return found

    def decode(self, scores: np.ndarray) -> Decoded:
        """Each row's answers by task; columns carry the task's name, as `probability_topic_sport`."""
        decoded = {member.name: member.task.decode(scores[:, member.columns]) for member in self.members}
        rows = zip(*(found.prediction for found in decoded.values()), strict=True)
        answers = [dict(zip(decoded, row, strict=True)) for row in rows]
        columns = {}
        for name, found in decoded.items():
            for column, values in found.scores.items():
                kind, _, rest = column.partition("_")
                columns[f"{kind}_{name}_{rest}"] = values
        return Decoded(answers, columns)

    def measure(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Every task's metrics on its own rows, as `topic.accuracy`, and `mean`."""
        found: dict[str, float] = {}
        for member in self.members:
            rows = member.rows(targets)
            if rows.any():
                measured = member.task.measure(scores[rows][:, member.columns], member.own(targets[rows]))
                found |= {f"{member.name}.{name}": value for name, value in measured.items()}
        counted = {name: np.array([value]) for name, value in found.items()}
        return {MEAN: float(self._mean(counted)[0]), **found}

    def _mean(self, measured: Mapping[str, np.ndarray]) -> np.ndarray:
        """The mean of the tasks' metrics, (B,), of those that are there."""
        found = [gain for member in self.members if (gain := _gain(member, measured)) is not None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a resample may leave every task undefined
            return np.asarray(np.nanmean(np.stack(found), 0)) if found else np.full(1, np.nan)

    def weighted(self, scores: np.ndarray, targets: np.ndarray) -> Sequence[Weighted]:
        """The tasks' own metrics with their prefix, and `mean`."""
        groups = [group for member in self.members for group in _prefixed(member, scores, targets)]
        counted = {f"{member.name}.{metric}" for member in self.members for metric in (member.task.metric, "r2")}
        needed = [group for group in groups if counted & set(group.names)]

        def mean(counts: np.ndarray) -> dict[str, np.ndarray]:
            return {
                MEAN: self._mean({name: value for group in needed for name, value in group.compute(counts).items()})
            }

        return [Weighted((MEAN,), sum(group.work for group in needed), mean), *groups]

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> tuple[str, np.ndarray]:
        """What is wrong with each answer as its own task counts it, a probability or an error."""
        found = np.zeros(len(targets))
        for member in self.members:
            rows = np.flatnonzero(member.rows(targets))
            found[rows] = member.task.wrongness(scores[rows][:, member.columns], member.own(targets[rows]))[1]
        return "wrongness", found

    def truth(self, targets: np.ndarray) -> list[Any]:
        """Each row's own label."""
        found: list[Any] = [None] * len(targets)
        for member in self.members:
            rows = np.flatnonzero(member.rows(targets))
            for row, label in zip(rows.tolist(), member.task.truth(member.own(targets[rows])), strict=True):
                found[row] = label
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        each = {name: task.to_json() for name, task in self.tasks.items()}
        return {"name": self.name, "tasks": each, "widths": list(self.widths), "metric": self.metric}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Multitask:
        """The inverse of `to_json`."""
        each = {name: tasks.from_json(given) for name, given in record["tasks"].items()}
        return cls(each, tuple(record["widths"]), record["metric"])


def _gain(member: Member, measured: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """A task's metric so that greater is better, (B,); None where it was not measured."""
    own = measured.get(f"{member.name}.{member.task.metric}")
    if own is None or member.task.greater_is_better:
        return own
    explained = measured.get(f"{member.name}.r2")
    return -own if explained is None else explained


def _prefixed(member: Member, scores: np.ndarray, targets: np.ndarray) -> list[Weighted]:
    """A task's metrics as functions of counts over the rows of all tasks; nan where a resample has none of its rows."""
    rows = np.flatnonzero(member.rows(targets))
    if not len(rows):
        return []

    def of(group: Weighted) -> Weighted:
        def compute(counts: np.ndarray) -> dict[str, np.ndarray]:
            own = counts[:, rows]
            there = own.sum(1) > 0
            found = group.compute(np.where(there[:, None], own, 1))
            return {f"{member.name}.{name}": np.where(there, value, np.nan) for name, value in found.items()}

        return Weighted(
            tuple(f"{member.name}.{name}" for name in group.names),
            group.work,
            compute,
            tuple(f"{member.name}.{name}" for name in group.shares),
        )

    return [of(group) for group in member.task.weighted(scores[rows][:, member.columns], member.own(targets[rows]))]
