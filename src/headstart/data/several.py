"""The rows of several tasks as those of one run: each read and checked by itself, then joined in the tasks' order."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headstart.data.columns import Columns
from headstart.data.memory import from_memory
from headstart.data.parts import Data, Part
from headstart.data.rows import load
from headstart.errors import DataError
from headstart.spec import Spec
from headstart.values import RowCount

KIND = "multitask"
PARTS = ("train", "validation", "test")


class Chain(Sequence[Any]):
    """Several sequences as one, read when asked for."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self._parts = list(parts)
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(len(self)))]
        place = int(at)
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        place %= len(self)
        part = bisect_right(self._ends, place)
        return self._parts[part][place - (self._ends[part - 1] if part else 0)]

    def __iter__(self) -> Any:
        return chain.from_iterable(self._parts)


@dataclass(frozen=True)
class Joined(Part):
    """The rows of several tasks, one task after the other. tasks: name -> its own part, for those that have one."""

    tasks: Mapping[str, Part] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.tasks.values()))

    def inputs(self) -> Any:
        """The inputs of all tasks, lazily."""
        return Chain([part.inputs() for part in self.tasks.values()])

    def labels(self) -> list[Any]:
        """One pair a row: the task's name and the row's own label."""
        return [(name, label) for name, part in self.tasks.items() for label in part.labels()]

    def column(self, name: str) -> list[Any]:
        """A column that the files of all tasks have."""
        return [value for part in self.tasks.values() for value in part.column(name)]


def load_rows(spec: Spec, memory: Mapping[str, Any] | None = None) -> Data:
    """The rows of a run: of one task or several, from files or memory. Raises DataError as `load` does.

    memory: what `from_memory` takes, of several tasks by name; None where all rows are in files.
    """
    if not spec.tasks:
        return load(spec) if memory is None else from_memory(spec=spec, **memory)
    if memory is not None and not set(memory) <= set(spec.tasks):
        raise DataError("rows were given beside tasks, which have their own: name them in tasks")
    return load_several(spec, memory)


def load_several(spec: Spec, memory: Mapping[str, Mapping[str, Any]] | None = None) -> Data:
    """The rows of every task of a spec. memory: name -> what `from_memory` takes, for tasks that are not in files.

    Raises DataError naming the task, and for tasks that read different kinds of input.
    """
    found: dict[str, Data] = {}
    for name in spec.tasks:
        own = spec.alone(name)
        try:
            found[name] = from_memory(spec=own, **memory[name]) if memory and name in memory else load(own)
        except DataError as error:
            raise DataError(f"task '{name}': {error}") from None
    kinds = {name: data.columns.modality for name, data in found.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"'{name}' reads {kind}s" for name, kind in kinds.items())
        raise DataError(f"tasks share one backbone, so all must read the same kind of input: {listed}")
    return join(found)


def apart(tasks: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Python users write as `tasks`, taken apart: plain tables for a spec, and rows in memory for `load_several`.

    A task is a mapping with `data` and `task`, or a file. Where `data` names files there may stand pairs of inputs and
    labels. Raises DataError for what is neither.
    """
    plain: dict[str, Any] = {}
    memory: dict[str, dict[str, Any]] = {}
    for name, given in tasks.items():
        if isinstance(given, str | Path):
            given = {"data": {"train": str(given)}}
        if not isinstance(given, Mapping):
            raise DataError(f"task '{name}': expected a file or a mapping with data and task, received {given!r:.80}")
        data = dict(given.get("data") or {})
        rows = {key: data[key] for key in PARTS if not isinstance(data.get(key), str | Path | None)}
        for key, pair in rows.items():
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise DataError(f"task '{name}': expected {key} as a file or a pair (inputs, labels)")
        if rows:
            if "train" not in rows or len(rows) < sum(data.get(key) is not None for key in PARTS):
                raise DataError(f"task '{name}': its rows must all be in files, or all in memory")
            inputs, labels = rows.pop("train")
            memory[name] = {"inputs": inputs, "labels": labels, **rows}
        kept = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
        plain[name] = {**given, "data": {k: v for k, v in kept.items() if name not in memory or k not in PARTS}}
    return plain, memory


def join(found: Mapping[str, Data]) -> Data:
    """Several tasks' rows as one run's; `Data.tasks` keeps each by itself."""
    first = next(iter(found.values()))
    said = [f"{name}: {sentence}" for name, data in found.items() for sentence in data.said]
    columns = Columns(first.columns.modality, first.columns.input, tuple(found), KIND, tuple(said))
    findings = [
        replace(finding, message=f"{name}: {finding.message}")
        for name, data in found.items()
        for finding in data.findings
    ]
    dropped: Counter[str] = Counter()
    for data in found.values():
        dropped += Counter(data.rows.dropped)
    counts = {
        key: sum(getattr(data.rows, key) for data in found.values())
        for key in ("read", "trained", "validated", "tested", "unlabelled")
    }
    digest = hashlib.sha256(json.dumps([[name, data.fingerprint] for name, data in found.items()]).encode())
    train = _joined("train", found, columns)
    if train is None:
        raise DataError("there are no rows to learn from")
    return Data(
        columns,
        train,
        _joined("validation", found, columns),
        _joined("test", found, columns),
        tuple(findings),
        RowCount(**counts, dropped=dict(dropped)),
        digest.hexdigest(),
        tuple(said),
        _joined("unlabelled", found, columns),
        dict(found),
    )


def _joined(name: str, found: Mapping[str, Data], columns: Columns) -> Joined | None:
    """A part of all tasks that have it; None where none has."""
    parts = {task: part for task, data in found.items() if (part := getattr(data, name)) is not None}
    if not parts:
        return None
    return Joined(
        name,
        pa.table({}),
        np.concatenate([part.source_rows for part in parts.values()]),
        Path(),
        columns,
        ", ".join(dict.fromkeys(part.source for part in parts.values())),
        sum(part.read for part in parts.values()),
        dict(sum((Counter(part.dropped) for part in parts.values()), Counter())),
        parts,
    )
