"""Arrow's own shapes of data: parquet, IPC files, and folders that Hugging Face `datasets` saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from headstart.data.delimited import select
from headstart.data.spool import BATCH_ROWS, mapped_file, spool
from headstart.errors import DataError

_INDEX = "__index_level_0__"


def read_parquet(path: Path, columns: Sequence[str] | None) -> pa.Table:
    """A parquet file, streamed into a mapped table. Raises DataError for one that is damaged or holds no rows."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            wanted = select(file.schema_arrow.names, columns, path)
            source = pa.schema([file.schema_arrow.field(name) for name in wanted], file.schema_arrow.metadata)
            schema = _plain(source)
            table = spool(schema, _cast(file.iter_batches(BATCH_ROWS, columns=wanted), schema))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"'{path}' cannot be read as parquet: {error}; write or copy it again") from None
    return _with_rows(named_classes(table), path)


def _plain(schema: pa.Schema) -> pa.Schema:
    """Dictionary columns become their values: an Arrow file takes one dictionary a column, parquet has one a group."""
    fields = [
        item.with_type(item.type.value_type) if pa.types.is_dictionary(item.type) else item
        for item in schema
        if item.name != _INDEX
    ]
    return pa.schema(fields, schema.metadata)


def _cast(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield pa.record_batch([batch.column(item.name).cast(item.type) for item in schema], schema=schema)


def read_arrow(path: Path, columns: Sequence[str] | None) -> pa.Table:
    """An Arrow IPC file or stream, mapped where it lies. Raises DataError for one that is damaged or holds no rows."""
    try:
        table = mapped_file(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"'{path}' cannot be read as an Arrow file: {error}; write or copy it again") from None
    return _with_rows(named_classes(table.select(select(table.column_names, columns, path))), path)


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved this folder (`save_to_disk`)."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_saved(folder: Path, columns: Sequence[str] | None) -> dict[str, pa.Table]:
    """The splits of a folder that `datasets` saved; the empty name for a single data set. Mapped where they lie."""
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder / "dataset_dict.json").get("splits", [])
        missing = [name for name in names if not (folder / name / "state.json").is_file()]
        if missing or not names:
            raise DataError(f"'{folder}' lists the splits {names}, but has no whole folder for {missing or 'any'}")
        return {name: _one(folder / name, columns) for name in names}
    return {"": _one(folder, columns)}


def _one(folder: Path, columns: Sequence[str] | None) -> pa.Table:
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"'{folder}' keeps its rows by index: call dataset.flatten_indices() before save_to_disk")
    shards = [folder / item["filename"] for item in state.get("_data_files") or []]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise DataError(f"'{folder}' is not whole: {', '.join(missing) or 'data files'} missing; save or copy it again")
    try:
        table = pa.concat_tables([mapped_file(shard) for shard in shards])
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"a data file of '{folder}' is damaged: {error}; save or copy it again") from None
    features = _json(folder / "dataset_info.json").get("features") if (folder / "dataset_info.json").is_file() else None
    table = table.select(select(table.column_names, columns, folder))
    return _with_rows(named_classes(table, features), folder)


def _json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is damaged: {error}; save or copy the data set again") from None
    if not isinstance(record, dict):
        raise DataError(f"'{path}' is damaged: expected a JSON object; save or copy the data set again")
    return record


def _with_rows(table: pa.Table, path: Path) -> pa.Table:
    if table.num_rows == 0:
        raise DataError(f"'{path}' has columns ({', '.join(table.column_names)}) and no rows")
    return table


def named_classes(table: pa.Table, features: Any = None) -> pa.Table:
    """Class ids with the names that `datasets` keeps beside them become dictionary columns of names.

    features: as in dataset_info.json; read from the schema's metadata when left out. The ids stay mapped.
    """
    if features is None:
        try:
            features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        except (KeyError, TypeError, ValueError):
            return table
    for place, name in enumerate(table.column_names):
        names = _class_names(features.get(name) if isinstance(features, dict) else None)
        if names:
            chunks = [_name(chunk, names) for chunk in table.column(place).chunks]
            table = table.set_column(place, name, pa.chunked_array(chunks, type=_type_of(table, place)))
    return table


def _type_of(table: pa.Table, place: int) -> pa.DataType:
    kind = table.schema.types[place]
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    named = pa.dictionary(kind.value_type if listed else kind, pa.string())
    if not listed:
        return named
    return pa.large_list(named) if pa.types.is_large_list(kind) else pa.list_(named)


def _class_names(feature: Any) -> list[str] | None:
    if isinstance(feature, list) and feature:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel" and feature.get("names"):
        return [str(name) for name in feature["names"]]
    return _class_names(feature.get("feature")) if feature.get("_type") in ("List", "Sequence", "LargeList") else None


def _name(array: pa.Array, names: list[str]) -> pa.Array:
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        kind = pa.LargeListArray if pa.types.is_large_list(array.type) else pa.ListArray
        mask = array.is_null() if array.null_count else None
        return kind.from_arrays(array.offsets, _name(array.values, names), mask=mask)
    import pyarrow.compute as pc

    known = pc.and_(pc.greater_equal(array, 0), pc.less(array, len(names)))
    if pc.any(pc.invert(known)).as_py():  # -1 marks a row without a label
        array = pc.if_else(known, array, pa.scalar(None, array.type))
    return pa.DictionaryArray.from_arrays(array, pa.array(names, pa.string()))
