"""How much worse a smaller model is than the one it was made from: on which rows, by how much, and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart import data
from headstart.bundle import Bundle
from headstart.errors import DataError
from headstart.protocols import Task
from headstart.spec import Spec

GATE = 0.01
"""The largest loss of the main metric that is allowed when none is given."""


@dataclass(frozen=True)
class Labelled:
    """Rows to measure on. split: validation or test. source: where they are from, for people.

    targets: encoded, (rows,) or (rows,K). ids: what each row is called in its file.
    """

    split: str
    source: str
    inputs: Sequence[Any]
    targets: np.ndarray
    ids: Sequence[Any]

    def __len__(self) -> int:
        return len(self.inputs)


def find_rows(source: Bundle, given: str | Path | None = None) -> Labelled | None:
    """The rows that a smaller model is judged on, None where there are none.

    `given` if there is a file given; else the validation rows that the bundle was made with, in their own file or split
    off the training file again; else the test rows. Raises DataError for a given file that cannot be used.
    """
    asked = source.record["spec"]["data"]
    if given is not None:
        same = str(given) == str(asked.get("validation"))
        return _read(source, "validation" if same else "test", str(given))
    if asked.get("validation") and Path(asked["validation"]).exists():
        return _read(source, "validation", str(asked["validation"]))
    return _split_off(source) or test_rows(source)


def test_rows(source: Bundle) -> Labelled | None:
    """The rows of the test file that the bundle was made with, None where it is not there."""
    path = source.record["spec"]["data"].get("test")
    return _read(source, "test", str(path)) if path and Path(path).exists() else None


def _read(source: Bundle, split: str, path: str) -> Labelled:
    columns = data.Columns.from_json(source.record["columns"])
    encoding = str(source.record["spec"]["data"]["encoding"])
    part = data.load_labelled(path, columns, labels=source.labels, encoding=encoding)
    if len(part) == 0:
        raise DataError(f"'{path}' has no rows to measure on")
    return _labelled(source, split, path, part)


def _split_off(source: Bundle) -> Labelled | None:
    """The validation rows that were split off the training file, if that is there and still what it was."""
    spec = Spec.make(source.record["spec"])
    if spec.data.train is None or not Path(spec.data.train).exists():
        return None
    try:
        loaded = data.load_rows(spec)
    except DataError:  # another of its files is gone
        return None
    if loaded.validation is None or loaded.fingerprint != source.record["fingerprint"]:
        return None
    return _labelled(source, "validation", f"{spec.data.train}, the validation rows", loaded.validation)


def _labelled(source: Bundle, split: str, name: str, part: data.Part) -> Labelled:
    inputs = part.inputs()
    targets = source.task.encode(part.labels()).numpy()
    return Labelled(split, name, [inputs[i] for i in range(len(part))], targets, part.source_rows.tolist())


@dataclass(frozen=True)
class Quality:
    """before, after: the main metric of the first model and of the smaller one.

    loss: by how much it got worse: points of a metric between 0 and 1, else a share of the metric before. agreement:
    share of the rows with the same prediction.
    """

    before: float
    after: float
    loss: float
    agreement: float


def compare(task: Task, temperature: Any, old: np.ndarray, new: np.ndarray, targets: np.ndarray) -> Quality:
    """Two models' raw outputs (rows,K) against the targets (rows,) or (rows,K)."""
    scores = [task.scores(torch.from_numpy(found), temperature).numpy() for found in (old, new)]
    return compare_scores(task, scores[0], scores[1], targets)


def compare_scores(task: Task, old: np.ndarray, new: np.ndarray, targets: np.ndarray) -> Quality:
    """The same of scores, each by its own model's temperature."""
    before, after = (float(task.measure(score, targets)[task.metric]) for score in (old, new))
    worse = before - after if task.better(1.0, 0.0) else after - before
    if not 0 <= before <= 1 or not task.better(1.0, 0.0):
        worse /= max(abs(before), 1e-12)
    first, second = (task.decode(score).prediction for score in (old, new))
    return Quality(before, after, worse, float(np.mean([a == b for a, b in zip(first, second, strict=True)])))


def refusal(what: str, found: Quality, limit: float, metric: str, end: str = "nothing was written") -> str:
    """The sentence for a model that did not pass the gate."""
    return (
        f"{what} loses too much: {metric} {found.before:.4f} before, {found.after:.4f} after, "
        f"{100 * found.loss:.2f} % worse, and the gate is {100 * limit:.2f} %; {end}"
    )
