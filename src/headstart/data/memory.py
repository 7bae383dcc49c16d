"""Rows that are already in memory: lists, arrays, pictures, sounds, a dict of lists, a data frame."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headstart.data import fresh, images, sounds
from headstart.data.columns import Columns
from headstart.data.facts import sounds as is_sound
from headstart.data.folders import PICTURES
from headstart.data.parts import Data, Part
from headstart.data.read import Table
from headstart.data.rows import UNLABELLED, assemble
from headstart.data.spool import BATCH_ROWS, strings
from headstart.data.words import counted
from headstart.errors import DataError
from headstart.spec import Spec

_SOURCE = "the rows in memory"
FILES = ("image", "audio")


def from_memory(
    inputs: Any,
    labels: Any = None,
    *,
    spec: Spec | None = None,
    validation: tuple[Any, Any] | None = None,
    test: tuple[Any, Any] | None = None,
    unlabelled: Any = None,
) -> Data:
    """Check and divide rows in memory, as `load` does for files.

    inputs: texts, paths of pictures or sounds, PIL images, uint8 arrays (rows,H,W), (rows,H,W,C), or mappings of
    `array` and `sampling_rate`; labels: one per row (str, number, list of str, list of floats;
    an array (rows,K) of 0 and 1 is several labels). Or inputs may be a whole table (dict of lists, Arrow
    table, data frame), whose columns are then inferred or named in the spec.
    Raises DataError as `load` does.
    """
    spec = spec or Spec.make()
    tables = {"train": as_table(inputs, labels, spec, "train")}
    for name, given in (("validation", validation), ("test", test)):
        if given is not None:
            tables[name] = as_table(given[0], given[1], spec, name)
    if unlabelled is not None:
        tables[UNLABELLED] = as_table(unlabelled, None, spec, UNLABELLED)
    if labels is not None:
        first = tables["train"].table.column_names[0]
        named = {first if first in FILES else "text": first, "label": "label"}
        unset = {"text": None, "image": None, "audio": None, "group": None, "time": None}
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={**unset, **named})})
    return assemble(tables, spec)


def unlabelled_from_memory(inputs: Any, columns: Columns, on_bad_row: str = "error") -> Part:
    """Rows in memory to be predicted: what `from_memory` takes as inputs, or a table with the model's input column."""
    return fresh.unlabelled(_for_model(inputs, None, columns), columns, on_bad_row)


def labelled_from_memory(
    inputs: Any, labels: Any, columns: Columns, *, known: Sequence[str] | None = None, on_bad_row: str = "error"
) -> Part:
    """Rows in memory to measure a model on. known: the classes it knows."""
    if labels is not None and len(columns.labels) == 1:
        columns = replace(columns, labels=("label",))
    return fresh.labelled(_for_model(inputs, labels, columns), columns, known, on_bad_row)


def _for_model(inputs: Any, labels: Any, columns: Columns) -> Table:
    spec = Spec.make(data={columns.modality: columns.input})
    table = as_table(inputs, labels, spec, "new")
    if not is_table(inputs):
        first, *rest = table.table.column_names
        if first in (*FILES, "text") and first != columns.modality:
            raise DataError(f"the model expects {columns.modality} inputs, received {first} inputs")
        table = replace(table, table=table.table.rename_columns([columns.input, *rest]))
    return table


def is_table(inputs: Any) -> bool:
    """Whether the inputs bring their own columns: a dict of lists, an Arrow table, a data frame."""
    framed = hasattr(inputs, "__arrow_c_stream__") and hasattr(inputs, "columns")
    return framed or isinstance(inputs, Mapping | pa.Table)


def as_table(inputs: Any, labels: Any, spec: Spec, name: str) -> Table:
    """Rows in memory as a table. Raises DataError for lengths that differ and values of other types."""
    source = _SOURCE if name in ("train", "new") else f"{_SOURCE} ({name})"
    if is_table(inputs):
        table = _columns(inputs, source)
        if labels is not None:
            if len(labels) != table.num_rows:
                raise DataError(_unequal(source, table.num_rows, len(labels)))
            if "label" in table.column_names:
                raise DataError(f"{source} have a column 'label', and labels were given too: give one of them")
            table = table.append_column("label", _labels(labels))
    else:
        column, values = _inputs(inputs, spec)
        if labels is not None and len(labels) != len(values):
            raise DataError(_unequal(source, len(values), len(labels)))
        table = pa.table({column: values} if labels is None else {column: values, "label": _labels(labels)})
    if table.num_rows == 0:
        raise DataError(f"there are no rows in {source}: expected one input or more")
    return Table(table, source, "memory", Path(), None)


def _unequal(source: str, inputs: int, labels: int) -> str:
    return f"{source} are {counted(inputs, 'input')} and {counted(labels, 'label')}: expected one label for each input"


def _columns(inputs: Any, source: str) -> pa.Table:
    if isinstance(inputs, Mapping):
        lengths = {str(key): len(values) for key, values in inputs.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise DataError(f"the columns of {source} differ in length ({listed}): expected one value a row")
        return pa.table({str(key): _array(list(values), str(key)) for key, values in inputs.items()})
    return pa.table(inputs)


def _array(values: list[Any], name: str) -> pa.Array | pa.ChunkedArray:
    if any(_is_picture(value) for value in values):
        return pa.array(
            [None if value is None else images.encode_array(value, at) for at, value in enumerate(values, 1)]
        )
    if any(sounds.is_array(value) for value in values):
        return pa.array(
            [None if value is None else sounds.encode_array(value, at) for at, value in enumerate(values, 1)]
        )
    values = [os.fspath(value) if isinstance(value, os.PathLike) else _plain(value) for value in values]
    if all(value is None or isinstance(value, str) for value in values):
        chunks = [strings(values[start : start + BATCH_ROWS]) for start in range(0, len(values), BATCH_ROWS)]
        return pa.chunked_array(chunks, pa.string())
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    try:
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    except pa.ArrowException as error:
        raise DataError(f"column '{name}' holds values that cannot stand in one table: {error}") from None


def _is_picture(value: Any) -> bool:
    return (isinstance(value, np.ndarray) and value.ndim >= 2) or (hasattr(value, "mode") and hasattr(value, "save"))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple | set) else value


def _inputs(inputs: Any, spec: Spec) -> tuple[str, pa.Array]:
    """The name that the column gets, text, image or audio, and its cells."""
    if isinstance(inputs, str | bytes | os.PathLike):
        raise DataError(f"expected a list of inputs, received a single {type(inputs).__name__}: write [{inputs!r}]")
    values = list(inputs)
    if any(_is_picture(value) for value in values):
        return "image", _array(values, "image")
    if any(sounds.is_array(value) for value in values):
        return "audio", _array(values, "audio")
    values = [_plain(value) for value in values]
    for at, value in enumerate(values, 1):
        if value is not None and not isinstance(value, str | bytes | os.PathLike):
            if isinstance(value, float) and value != value:
                values[at - 1] = None
                continue
            raise DataError(
                f"input {at} is of type {type(value).__name__}: expected texts (str), paths, PIL images, uint8 arrays, "
                f"or sounds as mappings of array and sampling_rate"
            )
    filled = [value for value in values if value is not None]
    asked = [kind for kind in ("text", *FILES) if getattr(spec.data, kind) is not None]
    kind = asked[-1] if asked else _kind(filled)
    return kind, _array(values, kind)


def _kind(filled: list[Any]) -> str:
    """What a list of strings, paths and bytes holds: sounds where all look so, else files that are pictures or text."""
    paths = [os.fspath(value) if isinstance(value, os.PathLike) else value for value in filled]
    if paths and all(is_sound(value) for value in paths):
        return "audio"
    files = all(isinstance(value, bytes | os.PathLike) or value.lower().endswith(PICTURES.suffixes) for value in filled)
    return "image" if filled and files else "text"


def _labels(labels: Any) -> pa.Array:
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        if np.isin(labels, (0, 1)).all():
            return pa.array([[str(place) for place in np.flatnonzero(row)] for row in labels], pa.list_(pa.string()))
        return pa.array([[float(value) for value in row] for row in labels], pa.list_(pa.float64()))
    values = [_plain(value) for value in labels]
    if all(value is None or (isinstance(value, list) and not value) for value in values):
        return pa.array(values, pa.list_(pa.string()) if any(value is not None for value in values) else pa.null())
    return _array(values, "label")
