"""Rows as JSON objects, one a line (.jsonl, .ndjson), or one list of them (.json)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from headstart.data.delimited import select
from headstart.data.encodings import is_empty, lines
from headstart.data.spool import BATCH_ROWS, spool, strings
from headstart.errors import DataError

_SCALARS: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def read_jsonl(path: Path, encoding: str, columns: Sequence[str] | None) -> pa.Table:
    """A mapped table. The file is read twice: the types of all values first, then the rows.

    Numbers keep their type; a column that mixes types is read as text; objects are kept as JSON text; a missing key
    is null. Raises DataError naming the line of anything that is not a JSON object.
    """
    if is_empty(path):
        raise DataError(f"'{path}' is empty: expected one JSON object a line")
    kinds: dict[str, set[pa.DataType]] = {}
    for record in _records(path, encoding):
        for key, value in record.items():
            kinds.setdefault(key, set()).add(_kind(value))
    if not kinds:
        raise DataError(f"'{path}' has no rows: expected one JSON object a line")
    wanted = select(list(kinds), columns, path)
    schema = pa.schema([(name, _common(kinds[name])) for name in wanted])
    return spool(schema, _batches(_records(path, encoding), schema))


def _records(path: Path, encoding: str) -> Iterator[dict[str, Any]]:
    if path.name.lower().removesuffix(".gz").endswith(".json"):
        text = "".join(lines(path, encoding))
        if text.lstrip().startswith("["):
            yield from _listed(path, text)
            return
        del text
    for number, line in enumerate(lines(path, encoding), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"line {number} of '{path}' is not a JSON object: {error}; write one a line") from None
        if not isinstance(record, dict):
            raise DataError(
                f"line {number} of '{path}' holds a JSON {_json_name(record)}, "
                f'expected an object such as {{"text": "...", "label": "..."}}'
            )
        yield record


def _listed(path: Path, text: str) -> Iterator[dict[str, Any]]:
    try:
        records = json.loads(text)
    except ValueError as error:
        raise DataError(f"'{path}' is not valid JSON: {error}") from None
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(f"item {number} of '{path}' is a JSON {_json_name(record)}, expected an object")
        yield record


def _json_name(value: Any) -> str:
    names = {str: "string", list: "list", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _kind(value: Any) -> pa.DataType:
    if value is None:
        return pa.null()
    if isinstance(value, list):
        return pa.list_(_common({_kind(item) for item in value}))
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return pa.float64()
    return _SCALARS.get(type(value), pa.string())


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    """One type that holds values of all these types."""
    kinds = kinds - {pa.null()}
    if not kinds:
        return pa.null()
    if len(kinds) == 1:
        return next(iter(kinds))
    if kinds == {pa.int64(), pa.float64()}:
        return pa.float64()
    if all(pa.types.is_list(kind) for kind in kinds):
        return pa.list_(_common({kind.value_type for kind in kinds}))
    return pa.string()


def _fit(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [_fit(item, kind.value_type) for item in value]
    if kind == pa.string() and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return float(value) if kind == pa.float64() else value


def _batches(records: Iterator[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    def batch(rows: list[Mapping[str, Any]]) -> pa.RecordBatch:
        cells = ([_fit(row.get(item.name), item.type) for row in rows] for item in schema)
        arrays = [
            strings(column) if item.type == pa.string() else pa.array(column, item.type)
            for column, item in zip(cells, schema, strict=True)
        ]
        return pa.record_batch(arrays, schema=schema)

    held: list[Mapping[str, Any]] = []
    for record in records:
        held.append(record)
        if len(held) == BATCH_ROWS:
            yield batch(held)
            held = []
    if held:
        yield batch(held)
