"""Tables of separated values: csv and tsv. Every cell is read as the text that stands there."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from headstart.data.encodings import is_empty, lines
from headstart.data.spool import BATCH_ROWS, spool, strings
from headstart.data.words import counted
from headstart.errors import DataError, did_you_mean

_BATCH_CHARACTERS = 1 << 22
_LONG_CELL_LINES = 200
_OTHER_DELIMITERS = (";", "\t", "|")
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


@dataclass
class Notes:
    """What a reader has to say beside the rows: sentences, and the numbers (from 1) of rows it left out."""

    said: list[str] = field(default_factory=list)
    ragged: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Dialect:
    delimiter: str
    quoted: bool = True


class _NotPlainError(Exception):
    """A tsv file does quote its cells after all."""


def read_delimited(
    path: Path, encoding: str, columns: Sequence[str] | None, skip_ragged: bool
) -> tuple[pa.Table, Notes]:
    """A csv or tsv file as a mapped table of strings.

    The delimiter of a .csv may be a semicolon, tab or bar where the header has no comma, and is said. Raises DataError
    naming the row and line for ragged rows (unless they are to be skipped), broken quotes, and files without rows.
    """
    if is_empty(path):
        raise DataError(f"'{path}' is empty: expected a header line with column names, then one line a row")
    notes = Notes()
    dialect = _dialect(path, encoding, notes)
    try:
        return _read(path, encoding, columns, skip_ragged, dialect, notes), notes
    except _NotPlainError:
        notes.ragged.clear()
        return _read(path, encoding, columns, skip_ragged, _Dialect(dialect.delimiter), notes), notes


def _read(
    path: Path, encoding: str, columns: Sequence[str] | None, skip_ragged: bool, dialect: _Dialect, notes: Notes
) -> pa.Table:
    rows = _rows(path, encoding, skip_ragged, dialect, notes)
    header = next(rows)
    wanted = select(header, columns, path)
    schema = pa.schema([(name, pa.string()) for name in wanted])
    table = spool(schema, _batches(rows, [header.index(name) for name in wanted], schema))
    if table.num_rows == 0 and not notes.ragged:
        raise DataError(f"'{path}' has a header ({', '.join(header)}) and no rows below it")
    return table


def select(header: Sequence[str], columns: Sequence[str] | None, path: Path) -> list[str]:
    """The columns to read, checked against those that there are. Raises DataError for doubles and missing ones."""
    doubles = [name for name, count in Counter(header).items() if count > 1]
    if doubles:
        if doubles[0] == "":
            raise DataError(f"'{path}' has {header.count('')} columns without a name: name each of them")
        raise DataError(f"'{path}' has {header.count(doubles[0])} columns called '{doubles[0]}': rename all but one")
    for name in columns or ():
        if name not in header:
            raise DataError(f"'{path}' has no column '{name}': {did_you_mean(name, header)}")
    return [name for name in header if columns is None or name in columns]


def _dialect(path: Path, encoding: str, notes: Notes) -> _Dialect:
    if ".tsv" in [suffix.lower() for suffix in path.suffixes]:
        return _Dialect("\t", quoted=False)
    first = next(lines(path, encoding), "")
    if "," not in first:
        found = [mark for mark in _OTHER_DELIMITERS if mark in first]
        if len(found) == 1:
            shown = {"\t": "a tab"}.get(found[0], f"'{found[0]}'")
            notes.said.append(f"the cells of '{path.name}' are separated by {shown}")
            return _Dialect(found[0])
    return _Dialect(",")


def _rows(path: Path, encoding: str, skip_ragged: bool, dialect: _Dialect, notes: Notes) -> Iterator[list[str]]:
    """The header, then the rows, all equally long."""
    reader = csv.reader(
        lines(path, encoding),
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE,
        strict=dialect.quoted,
    )
    header: list[str] | None = None
    number = line = 0
    try:
        for row in reader:
            start, line = line + 1, reader.line_num
            if not row:  # a blank line is no row
                continue
            if header is None:
                header = [name.strip() for name in row]
                yield header
                continue
            number += 1
            if not dialect.quoted and any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in row):
                raise _NotPlainError
            if line - start >= _LONG_CELL_LINES:
                notes.said.append(
                    f"row {number} of '{path.name}' runs from line {start} to line {line}; "
                    f"if that is not one text, a double quote is missing there"
                )
            if len(row) != len(header):
                if not dialect.quoted and any('"' in cell for cell in row):
                    raise _NotPlainError
                if not skip_ragged:
                    raise DataError(_ragged(path, number, start, row, header, dialect))
                notes.ragged.append(number)
                continue
            yield row
    except csv.Error as error:
        raise DataError(_quotes(path, number + 1, line + 1, str(error))) from None


def _ragged(path: Path, number: int, line: int, row: list[str], header: list[str], dialect: _Dialect) -> str:
    where = f"row {number} (line {line}) of '{path}'"
    cause = "a cell is missing"
    if len(row) > len(header):
        mark = {"\t": "tab", ",": "comma"}.get(dialect.delimiter, f"'{dialect.delimiter}'")
        cause = f'a text that holds a {mark} needs double quotes around it, "like this"'
    return (
        f"{where} has {counted(len(row), 'cell')}, but the header has {len(header)} ({', '.join(header)}): {cause}; "
        f"fix the row, or leave such rows out with --on-bad-row skip"
    )


def _quotes(path: Path, number: int, line: int, error: str) -> str:
    if "unexpected end" in error:
        return f"a double quote that opens in row {number} (line {line}) of '{path}' is never closed"
    return (
        f"row {number} (line {line}) of '{path}' has a double quote inside a quoted cell: "
        f'write it twice, "say ""yes"" like this"'
    )


def _batches(rows: Iterator[list[str]], places: list[int], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    def batch(cells: list[list[str]]) -> pa.RecordBatch:
        arrays = [strings([row[place] for row in cells]) for place in places]
        return pa.record_batch(arrays, schema=schema)

    held: list[list[str]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += sum(map(len, row))
        if len(held) >= BATCH_ROWS or size >= _BATCH_CHARACTERS:
            yield batch(held)
            held, size = [], 0
    if held:
        yield batch(held)
