"""What the rest of Headstart gets from the data room: parts of rows, and the data as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from headstart.data.columns import Columns
from headstart.data.facts import file_value, text_of
from headstart.data.labels import Bad, Decoder
from headstart.errors import DataError, did_you_mean
from headstart.values import Finding, RowCount

_ROWS = 2048


class Inputs(Sequence[Any]):
    """The inputs of a part, read from disk when asked for: texts as str, pictures and sounds as path (str) or
    bytes."""

    def __init__(self, column: pa.ChunkedArray, modality: str, base: Path) -> None:
        self._column = column
        self._modality = modality
        self._base = base

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, at: int) -> Any: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Any]: ...

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step == 1:
                cells = self._column.slice(start, max(0, stop - start)).to_pylist()
                return [self._value(cell) for cell in cells]
            return [self[place] for place in range(start, stop, step)]
        place = int(at)
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        return self._value(self._column[place % len(self)].as_py())

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._column.chunks:
            for start in range(0, len(chunk), _ROWS):
                if self._modality != "text":
                    yield from (self._value(cell.as_py()) for cell in chunk.slice(start, _ROWS))
                else:
                    yield from map(self._value, chunk.slice(start, _ROWS).to_pylist())

    def _value(self, cell: Any) -> Any:
        if self._modality == "text":
            return "" if cell is None else text_of(cell)
        value = file_value(cell)
        return str(self._base / value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Part:
    """The rows of one part that can be used.

    name: 'train', 'validation', 'test', or 'new' for rows to be predicted. table: these rows, memory-mapped, with all
    columns of their file. source_rows: (n,) int64, their numbers in their file, counted from 1 below the header.
    base: relative paths of files start here. source: the file or folder. read: rows that the source had;
    dropped: reason -> rows of the source that are not used.
    """

    name: str
    table: pa.Table = field(repr=False)
    source_rows: np.ndarray = field(repr=False)
    base: Path
    columns: Columns
    source: str = ""
    read: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def inputs(self) -> Inputs:
        """The inputs, lazily: texts as str, pictures and sounds as path (str) or
        bytes."""
        return Inputs(self.table.column(self.columns.input), self.columns.modality, self.base)

    def labels(self) -> list[Any]:
        """One label per row: str for a class, list[str] for several labels, float or list[float] for targets."""
        missing = [name for name in self.columns.labels if name not in self.table.column_names]
        if missing or not self.columns.labels:
            raise DataError(f"the rows of '{self.source}' have no labels: column {missing or 'for labels'} is missing")
        decoder = Decoder(self.columns, self.table.schema)
        found: list[Any] = []
        for batch in self.table.select(list(dict.fromkeys(self.columns.labels))).to_batches(max_chunksize=_ROWS):
            found.extend(decoder.decode(batch))
        return [None if isinstance(label, Bad) else label for label in found]

    def column(self, name: str) -> list[Any]:
        """Any column of the file, as Python values. Raises DataError for one that is not there."""
        if name not in self.table.column_names:
            raise DataError(f"'{self.source}' has no column '{name}': {did_you_mean(name, self.table.column_names)}")
        return list(self.table.column(name).to_pylist())


@dataclass(frozen=True)
class Data:
    """Everything a run needs to know about its rows, checked.

    rows: every row that was read is accounted for. fingerprint: sha256 of the used inputs and labels and of the part
    that each is in. said: sentences on what was inferred and how rows were divided. validation is None where the rows
    are too few to give any away; test and unlabelled where there are none. tasks: of several tasks each one's own.
    """

    columns: Columns
    train: Part
    validation: Part | None
    test: Part | None
    findings: tuple[Finding, ...]
    rows: RowCount
    fingerprint: str
    said: tuple[str, ...]
    unlabelled: Part | None = None
    tasks: Mapping[str, Data] = field(default_factory=dict)
