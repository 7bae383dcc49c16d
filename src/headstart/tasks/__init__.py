"""What is to be learned, one file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
