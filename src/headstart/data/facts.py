"""What a column looks like, from a sample of its rows: the ground on which columns and task are inferred."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headstart.data.folders import MEDIA, SOUNDS
from headstart.data.spool import whole_numbers

SAMPLE_ROWS = 5000
SEPARATORS = ("|", ";", ",")


@dataclass(frozen=True)
class Facts:
    """One column. kind: text, number, bool, list, image, audio or other. Shares and means are over filled cells.

    distinct: different values in the sample. filled: cells of the sample that hold something. mean_length: characters.
    numeric: whether every cell is a number. whole: whether every number is an integer. lists_numbers: a list column's
    items are numbers that are not all 0 or 1.
    """

    name: str
    kind: str
    distinct: int = 0
    filled: int = 0
    mean_length: float = 0.0
    numeric: bool = False
    whole: bool = False
    lists_numbers: bool = False

    @property
    def repeats(self) -> bool:
        """Whether values come back often enough to be classes."""
        return self.distinct <= max(2, min(1000, self.filled // 2))


def number(value: Any) -> float | None:
    """A finite number from a cell, None where there is none. Python's underscores in numbers are no number here."""
    if isinstance(value, str) and "_" in value:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def text_of(value: Any) -> str:
    """A cell as text; a whole number that a file keeps as a fraction loses its '.0'."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def is_file_type(kind: pa.DataType) -> bool:
    """Bytes, or the {bytes, path} pairs in which `datasets` keeps pictures and sounds."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}


def is_list_type(kind: pa.DataType) -> bool:
    """A list of any length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def sample(table: pa.Table, name: str) -> list[Any]:
    """Cells from all over the table, evenly, as Python values."""
    column = table.column(name)
    if len(column) > SAMPLE_ROWS:
        column = column.take(whole_numbers(np.linspace(0, len(column) - 1, SAMPLE_ROWS).astype(np.int64)))
    return list(column.to_pylist())


def facts(table: pa.Table, name: str) -> Facts:
    """Look at one column."""
    kind = table.schema.field(name).type
    if is_file_type(kind):
        return Facts(name, _contents(table.column(name)))
    if is_list_type(kind):
        values = [item for row in sample(table, name) for item in row or ()]
        numbers = bool(values) and all(not isinstance(v, str | bool) and number(v) is not None for v in values)
        return Facts(name, "list", lists_numbers=numbers and any(value not in (0, 1) for value in values))
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return Facts(name, "other")
    if pa.types.is_temporal(kind):
        return Facts(name, "other")
    cells = [value for value in sample(table, name) if value is not None and str(value).strip() != ""]
    return _scalar(name, cells)


def file_value(cell: Any) -> Any:
    """Path or bytes from a cell: itself, or one of the {bytes, path} pair in which `datasets` keeps files."""
    if isinstance(cell, dict):
        return cell.get("bytes") or cell.get("path")
    return cell


def sounds(value: bytes | str) -> bool:
    """Whether the bytes or the path of a file are a sound's."""
    if isinstance(value, str):
        return value.lower().endswith(SOUNDS.suffixes)
    head = bytes(value[:12])
    if head[:4] in (b"RIFF", b"FORM", b"RF64"):
        return head[8:12] in (b"WAVE", b"AIFF", b"AIFC")
    # An MPEG frame starts with eleven bits that are set; layer 0 is reserved.
    mpeg = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0
    return head.startswith((b"fLaC", b"OggS", b"ID3", b".snd")) or mpeg


def _contents(column: pa.ChunkedArray) -> str:
    """'image' or 'audio', by the first cell that holds something."""
    for cell in column.slice(0, SAMPLE_ROWS):
        value = file_value(cell.as_py())
        if value:
            return "audio" if sounds(value) else "image"
    return "image"


def _scalar(name: str, cells: list[Any]) -> Facts:
    if not cells:
        return Facts(name, "other")
    texts = [text_of(value) for value in cells]
    distinct = set(texts)
    mean = sum(map(len, texts)) / len(texts)
    if all(isinstance(value, bool) for value in cells):
        return Facts(name, "bool", len(distinct), len(cells), mean)
    for media in MEDIA:
        if sum(value.lower().endswith(media.suffixes) for value in texts) >= 0.9 * len(texts):
            return Facts(name, media.modality, len(distinct), len(cells), mean)
    numeric, whole = numbers_in(distinct)
    return Facts(name, "number" if numeric else "text", len(distinct), len(cells), mean, numeric, whole)


def numbers_in(values: Iterable[str]) -> tuple[bool, bool]:
    """Whether all values are numbers, and whether all of those are integers. A class label such as '007' is one too."""
    numbers = [number(value) for value in values]
    if any(found is None for found in numbers):
        return False, False
    return True, all(found is not None and found.is_integer() for found in numbers)


def separator_in(cells: Iterable[str]) -> str | None:
    """The mark between several labels of one cell, where one divides cells into parts that come back elsewhere."""
    filled = [cell for cell in cells if cell.strip()]
    for mark in SEPARATORS:
        holding = [cell for cell in filled if mark in cell]
        if len(holding) < max(2, 0.02 * len(filled)):
            continue
        parts: dict[str, set[str]] = {}
        for cell in set(filled):
            for part in cell.split(mark):
                parts.setdefault(part.strip(), set()).add(cell)
        together = {part.strip() for cell in set(holding) for part in cell.split(mark)}
        shared = sum(len(parts[part]) > 1 for part in together)
        if "" not in together and len(parts) < len(set(filled)) + (mark == "|") and shared >= 0.8 * len(together):
            return mark
    return None


def commonest_separator(cells: Sequence[str]) -> str | None:
    """The mark that most cells hold, for a column that is known to hold several labels; None where no cell has any."""
    counts = {mark: sum(mark in cell for cell in cells) for mark in SEPARATORS}
    best = max(SEPARATORS, key=lambda mark: counts[mark])
    return best if counts[best] else None
