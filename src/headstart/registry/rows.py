"""The rows that a challenger is measured on: the champion's test rows, without those that either model learned from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart import data
from headstart.bundle import Bundle
from headstart.errors import HeadstartError, RegistryError
from headstart.spec import DataSpec, Spec


@dataclass(frozen=True)
class TestRows:
    """Labelled rows. task: of several, whose they are, else ''. left_out: rows that a model learned from.

    notes: what a reader of the figures should know about these rows.
    """

    task: str
    source: str
    inputs: list[Any]
    labels: list[Any]
    slices: dict[str, list[Any]]
    left_out: int
    notes: tuple[str, ...]


class Learned:
    """What a bundle was made from, read again where its files are there as they were."""

    def __init__(self, bundle: Bundle, called: str) -> None:
        self.bundle, self.called = bundle, called
        self.spec = Spec.make(bundle.record["spec"])
        self.data: data.Data | None = None
        try:
            found = data.load_rows(self.spec)
        except (HeadstartError, OSError):
            return
        if found.fingerprint == bundle.record.get("fingerprint"):
            self.data = found

    def part(self, task: str, name: str) -> data.Part | None:
        """The train, validation or test rows, of one task where there are several."""
        if self.data is None:
            return None
        found: data.Part | None = getattr(self.data.tasks[task] if task else self.data, name)
        return found

    def keys(self, task: str) -> np.ndarray | None:
        """Keys of the rows that it was trained or chosen on; None where they cannot be known."""
        if self.data is None:
            return None
        parts = [part for name in ("train", "validation") if (part := self.part(task, name)) is not None]
        return np.concatenate([data.input_keys(part) for part in parts])


def load(champion: Learned, challenger: Learned, task: str, test: str | Path | None, slices: list[str]) -> TestRows:
    """The rows to measure both models on, with the columns to slice by.

    test: a file of labelled rows; the champion's own test rows when left out. Raises RegistryError where there are none
    or none is left, DataError for a file that does not fit the champion.
    """
    part, source = _part(champion, task, test)
    values = {name: part.column(name) for name in slices}
    keep = np.ones(len(part), bool)
    notes = []
    for model in (champion, challenger):
        keys = model.keys(task)
        if keys is None:
            notes.append(
                f"{model.called} may have learned from these rows: its training rows are not there as they were"
            )
            continue
        seen = np.isin(data.input_keys(part), keys)
        if seen.any():
            notes.append(f"{int(seen.sum())} of {len(part)} rows are left out: {model.called} learned from them")
        keep &= ~seen
    if not keep.any():
        raise RegistryError(
            f"a model learned from all {len(part)} rows of {source}, so none is left to measure on: give rows that "
            f"neither has seen, as --test FILE"
        )
    rows = np.flatnonzero(keep).tolist()
    inputs, labels = part.inputs(), part.labels()
    return TestRows(
        task, source, [inputs[row] for row in rows], [labels[row] for row in rows],
        {name: [column[row] for row in rows] for name, column in values.items()}, int((~keep).sum()), tuple(notes),
    )  # fmt: skip


def _part(champion: Learned, task: str, test: str | Path | None) -> tuple[data.Part, str]:
    bundle = champion.bundle.only(task) if task else champion.bundle
    asked: DataSpec = champion.spec.tasks[task].data if task else champion.spec.data
    if test is None:
        own = champion.part(task, "test")
        if own is not None:
            return own, f"'{asked.test}'" if asked.test else f"the test rows of '{asked.train}'"
        if asked.test is None or not Path(asked.test).exists():
            raise RegistryError(
                f"the test rows of {champion.called} are not there as they were, and a challenger is measured on them: "
                f"give labelled rows, as --test FILE"
            )
        test = asked.test
    columns = data.Columns.from_json(bundle.record["columns"])
    part = data.load_labelled(test, columns, labels=bundle.labels, encoding=asked.encoding, on_bad_row=asked.on_bad_row)
    if not len(part):
        raise RegistryError(f"'{test}' has no rows to measure on")
    return part, f"'{test}'"
