"""Whether the settings of a stage suit its methods, its backbone and its task: asked before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping

from headstart.errors import SpecError
from headstart.heads import starts
from headstart.model import Model
from headstart.protocols import Method, Modality, Task
from headstart.running import has_statistics
from headstart.spec import TrainingSpec


def check(
    training: TrainingSpec,
    methods: Mapping[str, Method],
    model: Model,
    task: Task,
    modality: Modality,
    *,
    pretrained: bool,
) -> None:
    """Raises SpecError where a setting takes away what a method needs, or asks for what the run does not have."""
    if training.max_tokens is not None and modality.name != "text":
        raise SpecError(
            f"training.max_tokens counts tokens, and {modality.name} rows have none: choose a smaller "
            f"training.batch_size, and training.accumulate to make up for it"
        )
    needing = {need: name for name, method in reversed(list(methods.items())) for need in method.requires()}
    if "run.mixed" in needing and training.sampling == "round_robin":
        raise SpecError(
            f"'{needing['run.mixed']}' compares the tasks of a batch, and training.sampling = 'round_robin' puts "
            f"one task in each: choose size, temperature or uniform"
        )
    if training.running_stats == "keep":
        _check_statistics(needing, model, pretrained)
    _check_names(training, task, modality)


def _check_statistics(needing: Mapping[str, str], model: Model, pretrained: bool) -> None:
    """running_stats=keep needs a pretrained backbone with BatchNorm, and no method that needs statistics of batches."""
    if "run.statistics" in needing:
        raise SpecError(
            f"'{needing['run.statistics']}' needs BatchNorm's statistics of each batch, and "
            f"training.running_stats = 'keep' uses none: choose update, or leave the method out"
        )
    if not pretrained:
        raise SpecError(
            "training.running_stats = 'keep' keeps pretrained statistics, and backbone.pretrained = false has "
            "none: choose update"
        )
    if not has_statistics(model):
        raise SpecError(
            "training.running_stats = 'keep' keeps BatchNorm's statistics, and this backbone has no BatchNorm: "
            "leave it out"
        )


def _check_names(training: TrainingSpec, task: Task, modality: Modality) -> None:
    """Raises SpecError where class means or class names are asked for and the run has none."""
    asked = [f"training.head = '{training.head}'"] if training.head in ("prototypes", "names") else []
    asked += ["training.name_rows"] if training.name_rows else []
    for key in asked:
        if task.name != "classification":
            raise SpecError(f"{key} needs classes, one a row; this run is {task.name}: leave it out")
        if "name" not in key:
            continue
        if modality.name != "text":
            raise SpecError(
                f"{key} needs a backbone that reads texts, since it reads the classes' names; "
                f"this run reads {modality.name}: use training.head=prototypes, or leave it out"
            )
        starts.sentences(task.labels, training.name_template, key)
