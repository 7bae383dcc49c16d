"""Rows for a finished model: to be predicted, or to measure it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from headstart.data.columns import Columns
from headstart.data.folders import MEDIA
from headstart.data.labels import classes_of
from headstart.data.parts import Part
from headstart.data.read import Table, read
from headstart.data.scan import scan
from headstart.data.sources import UNKNOWN_CLASS, Share, Source
from headstart.errors import DataError, did_you_mean


def load_unlabelled(path: str | Path, columns: Columns, *, encoding: str = "utf-8", on_bad_row: str = "error") -> Part:
    """Rows to be predicted, with all columns of their file. Raises DataError naming what the model expects."""
    return unlabelled(_one(read(path, encoding=encoding, on_bad_row=on_bad_row)), columns, on_bad_row)


def load_labelled(
    path: str | Path,
    columns: Columns,
    *,
    labels: Sequence[str] | None = None,
    encoding: str = "utf-8",
    on_bad_row: str = "error",
) -> Part:
    """Rows to measure a model on. labels: the classes it knows; rows of others are refused, or dropped with 'skip'."""
    return labelled(_one(read(path, encoding=encoding, on_bad_row=on_bad_row)), columns, labels, on_bad_row)


def unlabelled(table: Table, columns: Columns, on_bad_row: str = "error") -> Part:
    """As `load_unlabelled`, for a table that is already there."""
    columns = _as_model(table, columns)
    _expect(table, [columns.input], columns)
    source = Source.of(table, scan(table, columns, labelled=False), on_bad_row)
    return Share("new", source, source.scan.good()).part(columns)


def labelled(table: Table, columns: Columns, labels: Sequence[str] | None = None, on_bad_row: str = "error") -> Part:
    """As `load_labelled`, for a table that is already there."""
    columns = _as_model(table, columns)
    _expect(table, [columns.input, *columns.labels], columns)
    found = scan(table, columns)
    if labels is not None and columns.task in ("classification", "multilabel"):
        known = set(labels)
        for at, label in enumerate(found.labels):
            unknown = set() if label is None else set(classes_of(label, columns.task)) - known
            if unknown and at not in found.refused:
                first = min(unknown)
                found.refuse(at, UNKNOWN_CLASS, f"the model does not know '{first}', {did_you_mean(first, labels)}")
    source = Source.of(table, found, on_bad_row)
    return Share("test", source, source.scan.good()).part(columns)


def input_keys(part: Part) -> np.ndarray:
    """(n,) uint64, equal for equal inputs: texts without regard to case and space, files by content."""
    return scan(Table(part.table, part.source, "memory", part.base), part.columns, labelled=False).keys


def _one(table: Table) -> Table:
    """The test split of a folder with splits, else the first; a table without splits is itself."""
    return table if table.splits is None else table.splits.get("test", next(iter(table.splits.values())))


def _as_model(table: Table, columns: Columns) -> Columns:
    """A folder of files calls its columns image or audio and label, whatever the training table called them."""
    if any(table.format == media.format and columns.modality == media.modality for media in MEDIA):
        labels = ("label",) if len(columns.labels) == 1 else columns.labels
        return replace(columns, input=columns.modality, labels=labels)
    return columns


def _expect(table: Table, names: Sequence[str], columns: Columns) -> None:
    have = table.table.column_names
    for name in names:
        if name not in have:
            kind = {"audio": "sounds"}.get(columns.modality, f"{columns.modality}s")
            role = f"its {kind}" if name == columns.input else "the right answers"
            raise DataError(
                f"the model expects {role} in the column '{name}', and '{table.source}' has the columns "
                f"{', '.join(have)}: {did_you_mean(name, have)}"
            )
