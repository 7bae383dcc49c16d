"""The task of a run, or its tasks, fitted to the training labels as the spec asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from headstart import backbones, tasks
from headstart.data import Data
from headstart.encoded import seed_of
from headstart.model import Model
from headstart.protocols import Modality, Task
from headstart.spec import Spec, TaskSpec


def task_of(spec: Spec, loaded: Data, labels: list[Any]) -> Task:
    """The task of the rows, or the tasks."""
    if loaded.tasks:
        kinds = {name: own.columns.task for name, own in loaded.tasks.items()}
        columns = {name: own.columns.labels for name, own in loaded.tasks.items()}
        return make_tasks(kinds, labels, spec, spec.training.metric, columns)
    return make_task(loaded.columns.task, labels, spec.task, spec.training.metric, loaded.columns.labels)


def make_task(name: str, labels: list[Any], options: TaskSpec, metric: str | None, columns: Sequence[str] = ()) -> Task:
    """The task fitted to the training labels, with only the options that differ from their defaults.

    metric: what is compared, with its direction; raises SpecError for one the task does not measure. columns: the label
    columns, which name the targets of a regression.
    """
    chosen = _options(name, options, columns)
    if metric is not None:
        chosen["metric"] = metric
    return tasks.fit(name, labels, **chosen)


def make_tasks(
    kinds: Mapping[str, str],
    labels: list[Any],
    spec: Spec,
    metric: str | None,
    columns: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Task:
    """The tasks of a spec as one, fitted to the training labels, pairs of a task's name and a row's label.

    kinds: name -> classification, multilabel, ... metric: `mean` when left out, or a task's, as `topic.macro_f1`.
    columns: name -> label columns.
    """
    asked = {
        name: {"name": kind, **_options(kind, spec.tasks[name].task, columns.get(name, ()))}
        for name, kind in kinds.items()
    }
    return tasks.fit("multitask", labels, tasks=asked, **({} if metric is None else {"metric": metric}))


def _options(name: str, options: TaskSpec, columns: Sequence[str]) -> dict[str, Any]:
    """What `tasks.fit` is told about one task."""
    chosen = {k: v for k, v in options.model_dump().items() if k != "name" and v != TaskSpec.model_fields[k].default}
    if name == "regression" and columns:
        chosen["labels"] = list(columns)
    return chosen


def fresh_model(spec: Spec, modality: Modality, task: Task) -> Model:
    """The backbone that a spec names with a head of random weights. Raises BackboneError where there is none."""
    backbone = backbones.load(spec.backbone, modality.name, seed=spec.training.seed)
    torch.manual_seed(seed_of(spec.training.seed, "head"))
    return Model(backbone, torch.nn.Linear(backbone.width, task.outputs))
