"""A table with its scan, and the shares of it that become parts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headstart.data.checks import Rows
from headstart.data.columns import Columns
from headstart.data.labels import classes_of
from headstart.data.parts import Part
from headstart.data.read import Table
from headstart.data.scan import RAGGED, Scan, refuse_bad_rows, row_numbers
from headstart.data.spool import BATCH_ROWS, keep_rows
from headstart.data.words import counted
from headstart.errors import DataError

NOT_SAMPLED, UNKNOWN_CLASS = "not sampled", "class not in train"


@dataclass
class Source:
    """A table, its scan, and the number (from 1) of each row in its file. It may feed several parts."""

    table: Table
    scan: Scan
    numbers: np.ndarray

    @classmethod
    def of(cls, table: Table, scan: Scan, on_bad_row: str) -> Source:
        """Raises DataError for bad rows, unless they are to be skipped, and where none is left."""
        source = cls(table, scan, row_numbers(table))
        if on_bad_row == "error":
            refuse_bad_rows(table, scan, source.numbers)
        if not len(scan.good()):
            reasons = ", ".join(f"{reason} in {counted(len(rows), 'row')}" for reason, rows in scan.bad.items())
            raise DataError(f"no row of '{table.source}' can be used: {reasons or 'all have a wrong number of cells'}")
        return source

    @property
    def read(self) -> int:
        """Rows that the source had."""
        return int(self.table.table.num_rows) + len(self.table.ragged)

    def bad(self) -> Counter[str]:
        """Reason -> rows that cannot be used."""
        counts = Counter({reason: len(rows) for reason, rows in self.scan.bad.items()})
        counts[RAGGED] += len(self.table.ragged)
        return +counts


@dataclass
class Share:
    """The rows of a source that make up a part: positions (n,) int64, rising.

    dropped counts the usable rows that this part gave up. own: whether the source was read for this part, so that the
    source's bad rows count here.
    """

    name: str
    source: Source
    positions: np.ndarray
    own: bool = True
    dropped: Counter[str] = field(default_factory=Counter)

    def labels(self) -> list[Any]:
        """The decoded labels of these rows."""
        found = self.source.scan.labels
        return [found[at] for at in self.positions.tolist()]

    def classes(self, task: str) -> list[tuple[str, ...]] | None:
        """The classes of each row; None where the labels are numbers."""
        if task == "regression":
            return None
        return [classes_of(label, task) for label in self.labels()]

    def keep(self, mask: np.ndarray, reason: str) -> None:
        """Give up the rows where mask (n,) is false."""
        self.dropped[reason] += int((~mask).sum())
        self.dropped = +self.dropped
        self.positions = self.positions[mask]

    def rows(self) -> Rows:
        """These rows as the checks see them."""
        found, at = self.source.scan, self.positions
        garbled = np.isin(at, np.asarray(found.garbled, np.int64))
        return Rows(self.name, self.source.numbers[at], found.keys[at], found.sizes[at], self.labels(), garbled)

    def part(self, columns: Columns) -> Part:
        """These rows as the rest of Headstart sees them."""
        source = self.source
        dropped = dict(self.dropped + source.bad() if self.own else self.dropped)
        table = keep_rows(source.table.table, self.positions)
        numbers = source.numbers[self.positions]
        return Part(self.name, table, numbers, source.table.base, columns, source.table.source, source.read, dropped)


def fingerprint(shares: Mapping[str, Share], columns: Columns, names: Sequence[str]) -> str:
    """sha256 over contents of inputs and labels, part by part; independent of where the files lie."""
    digest = hashlib.sha256(json.dumps([columns.modality, columns.task]).encode())
    for name in names:
        if name in shares:
            share = shares[name]
            labels = share.labels()
            digest.update(f"\n{name} {len(labels)}\n".encode())
            for start in range(0, len(labels), BATCH_ROWS):
                digest.update(share.source.scan.digests[share.positions[start : start + BATCH_ROWS]].tobytes())
                digest.update(json.dumps(labels[start : start + BATCH_ROWS], default=str).encode())
    return digest.hexdigest()
