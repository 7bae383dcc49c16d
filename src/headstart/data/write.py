"""Writing tables for people: whole or not at all, in the format that the name ends in."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from headstart.data.facts import SEPARATORS, is_list_type
from headstart.errors import DataError

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


def check_output(path: str | Path) -> None:
    """Raise DataError for a name that ends in no known format, or stands in no folder, before anything is spent."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"cannot write '{path}': expected a name that ends in {', '.join(FORMATS)}")
    if path.is_dir():
        raise DataError(f"cannot write '{path}': it is a folder; name a file in it")
    if not path.parent.is_dir():
        raise DataError(f"cannot write '{path}': there is no folder '{path.parent}'; make it first")


def write_table(tables: Iterable[pa.Table], path: str | Path) -> int:
    """Write pieces of one table, as they come, to a csv, tsv, jsonl or parquet file; returns the row count.

    The file appears under its name when it is whole. In csv and tsv, lists are joined with '|', nulls are empty.
    Raises DataError for bytes in a text format and where the folder cannot be written to.
    """
    path = Path(path)
    check_output(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    write = {".csv": _delimited(","), ".tsv": _delimited("\t"), ".jsonl": _jsonl, ".parquet": _parquet}
    try:
        rows = write[path.suffix.lower()](iter(tables), partial)
        os.replace(partial, path)
        return rows
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _text(path: Path) -> Iterator[Any]:
    with path.open("w", encoding="utf-8", newline="") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _refuse_bytes(table: pa.Table) -> None:
    for item in table.schema:
        if "binary" in str(item.type):
            raise DataError(f"column '{item.name}' holds bytes, which text cannot: write to a .parquet file")


def _delimited(delimiter: str) -> Callable[[Iterator[pa.Table], Path], int]:
    def write(tables: Iterator[pa.Table], path: Path) -> int:
        rows = 0
        with _text(path) as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            for place, table in enumerate(tables):
                _refuse_bytes(table)
                if place == 0:
                    writer.writerow(table.column_names)
                columns = [_cells(table.column(at)) for at in range(table.num_columns)]
                writer.writerows(zip(*columns, strict=True))
                rows += table.num_rows
        return rows

    return write


def _cells(column: pa.ChunkedArray) -> list[Any]:
    values = column.to_pylist()
    if is_list_type(column.type):
        return [None if value is None else SEPARATORS[0].join(map(str, value)) for value in values]
    if pa.types.is_struct(column.type):
        return [json.dumps(value, ensure_ascii=False, default=str) for value in values]
    if pa.types.is_boolean(column.type):
        return [None if value is None else str(value).lower() for value in values]
    return list(values)


def _jsonl(tables: Iterator[pa.Table], path: Path) -> int:
    rows = 0
    with _text(path) as file:
        for table in tables:
            _refuse_bytes(table)
            for row in table.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            rows += table.num_rows
    return rows


def _parquet(tables: Iterator[pa.Table], path: Path) -> int:
    import pyarrow.parquet as pq

    first = next(tables, None)
    if first is None:
        raise DataError("there are no rows to write")
    rows = 0
    with pq.ParquetWriter(path, first.schema) as writer:
        table: pa.Table | None = first
        while table is not None:
            writer.write_table(table.cast(first.schema))
            rows += table.num_rows
            table = next(tables, None)
    return rows
