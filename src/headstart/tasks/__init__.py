"""What is to be learned, one file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from headstart.protocols import Task


def fit(name: str, values: Sequence[Any], **options: Any) -> Task:
    """The task called `name`, with its labels (or the scale of its targets) learned from the training rows.

    Raises SpecError for an unknown task or an option that makes no sense for it, DataError for values it cannot use.
    """
    from headstart.catalog import find

    task: Task = find("tasks", name).fit(values, **options)
    return task


def from_json(record: Mapping[str, Any]) -> Task:
    """The task that `to_json` described. Raises SpecError when no task has the record's name."""
    from headstart.catalog import find

    task: Task = find("tasks", str(record["name"])).from_json(record)
    return task


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a built-in task's metric is the better one."""
    from headstart.tasks._options import LOWER_IS_BETTER

    return metric.startswith(LOWER_IS_BETTER)


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Answers by confidence in 15 equal-width bins: `low`, `high`, `count`, mean `confidence`, share right `accuracy`.

    confidence in [0, 1] and right (0 or 1) have the same shape; an empty bin has null for what it cannot say.
    """
    from headstart.tasks import _metrics

    return _metrics.reliability(confidence, right)


def calibration_error(bins: Sequence[Mapping[str, Any]]) -> float:
    """The mean gap between confidence and accuracy over the records of `reliability`; nan without answers."""
    from headstart.tasks import _metrics

    return _metrics.calibration_error(bins)
