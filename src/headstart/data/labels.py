"""Cells to labels: what a row's label columns say, or why they cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from headstart.data.columns import Columns
from headstart.data.facts import is_list_type, number, text_of
from headstart.errors import DataError

NO_LABEL, NOT_A_NUMBER, NOT_A_FLAG, OTHER_LENGTH = (
    "no label",
    "label is not a number",
    "label is neither 0 nor 1",
    "another number of targets",
)
_FLAGS = {"1": True, "true": True, "0": False, "false": False}


class Bad:
    """A row's label that cannot be used, with the reason and what stands there."""

    __slots__ = ("detail", "reason")

    def __init__(self, reason: str, cell: Any = None) -> None:
        self.reason = reason
        self.detail = "" if cell is None else f"'{cell}'"


class Decoder:
    """Decodes the label cells of a table, batch by batch.

    Classes become str; several labels a list of str; targets a float, or a list of floats where there are several.
    """

    def __init__(self, columns: Columns, schema: pa.Schema) -> None:
        self.columns = columns
        self.width: int | None = None
        listed = [name for name in columns.labels if is_list_type(schema.field(name).type)]
        if listed and (columns.task == "classification" or len(columns.labels) > 1):
            raise DataError(
                f"column '{listed[0]}' holds lists, and one label a row was expected: use --task multilabel for labels "
                f"or --task regression for numbers"
            )

    def decode(self, batch: pa.RecordBatch) -> list[Any]:
        """One label per row; a `Bad` where the cells cannot be used."""
        cells = [batch.column(name).to_pylist() for name in self.columns.labels]
        one = {"classification": _class, "multilabel": self._many, "regression": self._target}.get(self.columns.task)
        if len(cells) > 1:
            several = {"multilabel": self._flags, "regression": self._vector}.get(self.columns.task)
            if several is None:
                named = ", ".join(self.columns.labels)
                raise DataError(f"{self.columns.task} takes one label column, received {named}: name one with --label")
            return [several(row) for row in zip(*cells, strict=True)]
        return [one(cell) if one else (Bad(NO_LABEL) if cell is None else cell) for cell in cells[0]]

    def _many(self, cell: Any) -> Any:
        if cell is None:
            return Bad(NO_LABEL)
        if isinstance(cell, list):
            parts = [text_of(item) for item in cell if item is not None]
        elif self.columns.separator is not None:
            parts = [part.strip() for part in text_of(cell).split(self.columns.separator)]
        else:
            parts = [text_of(cell)]
        return list(dict.fromkeys(part for part in parts if part.strip()))

    def _flags(self, row: Sequence[Any]) -> Any:
        found = []
        for name, cell in zip(self.columns.labels, row, strict=True):
            if _blank(cell):
                return Bad(NO_LABEL)
            flag = _FLAGS.get(text_of(cell).strip().lower())
            if flag is None:
                value = number(cell)
                if value not in (0.0, 1.0):
                    return Bad(NOT_A_FLAG, cell)
                flag = value == 1.0
            if flag:
                found.append(name)
        return found

    def _target(self, cell: Any) -> Any:
        if isinstance(cell, list):
            if self.width is None:
                self.width = len(cell)
            return self._vector(cell) if len(cell) == self.width else Bad(OTHER_LENGTH, cell)
        if _blank(cell):
            return Bad(NO_LABEL)
        value = number(cell)
        return Bad(NOT_A_NUMBER, cell) if value is None else value

    def _vector(self, row: Sequence[Any]) -> Any:
        found = []
        for cell in row:
            if _blank(cell):
                return Bad(NO_LABEL)
            value = number(cell)
            if value is None:
                return Bad(NOT_A_NUMBER, cell)
            found.append(value)
        return found or Bad(NO_LABEL)


def _blank(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _class(cell: Any) -> Any:
    if _blank(cell) or (isinstance(cell, float) and cell != cell):
        return Bad(NO_LABEL)
    return text_of(cell)


def classes_of(label: Any, task: str) -> tuple[str, ...]:
    """The classes that a decoded label names; none for numbers."""
    if task == "classification":
        return (label,)
    return tuple(label) if task == "multilabel" else ()
