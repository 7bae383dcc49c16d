"""One pass over a table: which rows can be used, and the few bytes a row that every later check works on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headstart.data import images, sounds
from headstart.data.columns import Columns
from headstart.data.facts import file_value, text_of
from headstart.data.labels import Bad, Decoder
from headstart.data.read import Table
from headstart.data.words import counted
from headstart.errors import DataError

EMPTY_TEXT, RAGGED = "empty text", "ragged row"
_ROWS = 2048
_TAILS = {bytes([byte]).decode(name, "ignore") for byte in range(0x80, 0xC0) for name in ("cp1252", "latin-1")}
_GARBLED = re.compile(f"[\u00c2\u00c3][{re.escape(''.join(sorted(_TAILS)))}]|\u00e2[\u0080\u20ac]|\ufffd")
"""What the two bytes of an accented letter in utf-8, or of a typographic mark, look like in another encoding."""


@dataclass
class Scan:
    """What a pass over N rows of a table found. Positions count from 0.

    keys: (N,) uint64, equal for equal inputs (texts without regard to case and space; files by content).
    digests: (N,32) uint8, sha256 of each input. sizes: (N,) int64, characters, pixels or
    milliseconds. labels: one per row, None
    without labels. bad: reason -> positions. details: reason -> what the first such row looks like.
    garbled: positions of texts that were read in a wrong encoding, by the look of them. refused: all bad positions.
    """

    keys: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray
    labels: list[Any]
    bad: dict[str, list[int]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    garbled: list[int] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)

    def refuse(self, position: int, reason: str, detail: str = "") -> None:
        """Count a row as bad."""
        self.refused.add(position)
        self.bad.setdefault(reason, []).append(position)
        if detail:
            self.details.setdefault(reason, detail)

    def good(self) -> np.ndarray:
        """Positions of the rows that can be used, rising, (n,) int64."""
        keep = np.ones(len(self.keys), bool)
        keep[list(self.refused)] = False
        return np.flatnonzero(keep)


def scan(table: Table, columns: Columns, *, labelled: bool = True, needed: Sequence[str] = ()) -> Scan:
    """Look at every row once. needed: other columns that must not be blank. A bad row has one reason, the first."""
    rows = table.table.num_rows
    found = Scan(np.zeros(rows, np.uint64), np.zeros((rows, 32), np.uint8), np.zeros(rows, np.int64), [])
    names = list(dict.fromkeys([columns.input, *(columns.labels if labelled else ()), *needed]))
    decoder = Decoder(columns, table.table.schema) if labelled else None
    position = 0
    for batch in table.table.select(names).to_batches(max_chunksize=_ROWS):
        labels = decoder.decode(batch) if decoder else [None] * batch.num_rows
        others = {name: batch.column(name).to_pylist() for name in needed}
        for place, value in enumerate(_inputs(batch, columns)):
            at = position + place
            problem = _take(found, at, value, columns.modality, table.base)
            label = labels[place]
            if not problem and isinstance(label, Bad):
                problem = True
                found.refuse(at, label.reason, label.detail)
            if not problem:
                for name, cells in others.items():
                    if cells[place] is None or not str(cells[place]).strip():
                        found.refuse(at, f"no value in '{name}'")
                        break
        found.labels.extend(None if isinstance(label, Bad) else label for label in labels)
        position += batch.num_rows
    return found


def _inputs(batch: pa.RecordBatch, columns: Columns) -> Iterator[Any]:
    """The inputs of a batch; files one at a time, for they are large."""
    column = batch.column(columns.input)
    if columns.modality != "text":
        return (file_value(cell.as_py()) for cell in column)
    return iter(column.to_pylist())


def _take(found: Scan, at: int, value: Any, modality: str, base: Path) -> bool:
    """Note one input; whether it is bad."""
    if modality != "text":
        if value is not None and not isinstance(value, str | bytes):
            kind, what = type(value).__name__, {"image": "pictures", "audio": "sounds"}[modality]
            raise DataError(f"expected paths or bytes of {what}, received {kind}: name the column with --{modality}")
        seen = sounds.look(value, base) if modality == "audio" else images.look(value, base)
        found.digests[at] = np.frombuffer(seen.digest, np.uint8)
        found.keys[at] = int.from_bytes(seen.digest[:8], "little")
        found.sizes[at] = seen.size
        if seen.problem:
            found.refuse(at, seen.problem, seen.detail)
        return seen.problem is not None
    text = "" if value is None else text_of(value)
    plain = " ".join(text.casefold().split())
    found.digests[at] = np.frombuffer(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), np.uint8)
    found.keys[at] = int.from_bytes(
        hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )
    found.sizes[at] = len(text)
    if not plain:
        found.refuse(at, EMPTY_TEXT)
        return True
    if not text.isascii() and _GARBLED.search(text):
        found.garbled.append(at)
    return False


def row_numbers(table: Table) -> np.ndarray:
    """The number in its file of each row of the table, counted from 1 below the header; (N,) int64."""
    total = np.arange(1, table.table.num_rows + len(table.ragged) + 1, dtype=np.int64)
    return np.delete(total, np.asarray(table.ragged, np.int64) - 1) if table.ragged else total


def refuse_bad_rows(table: Table, found: Scan, numbers: np.ndarray) -> None:
    """Raise DataError with counts, the first row numbers and the way out, if any row is bad."""
    if not found.bad:
        return
    parts = []
    for reason, positions in found.bad.items():
        shown = ", ".join(str(numbers[at]) for at in positions[:5]) + (", ..." if len(positions) > 5 else "")
        detail = f": {found.details[reason]}" if reason in found.details else ""
        parts.append(f"{reason} in {counted(len(positions), 'row')} ({shown}{detail})")
    total = sum(map(len, found.bad.values()))
    raise DataError(
        f"{total} of {len(found.keys)} rows of '{table.source}' cannot be used: {'; '.join(parts)}; "
        f"fix them, or leave them out with --on-bad-row skip"
    )
