"""Reading: a path in, a memory-mapped table out, whatever the file's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from headstart.data import arrow, folders
from headstart.data.delimited import read_delimited
from headstart.data.jsonlines import read_jsonl
from headstart.errors import DataError, did_you_mean

_FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
_PACKED = ("csv", "tsv", "jsonl")
_EXPECTED = "csv, tsv, jsonl (each also as .gz), parquet, arrow, a saved data set, or a folder of pictures or sounds"


@dataclass(frozen=True)
class Table:
    """Rows as they stand in a file.

    table: memory-mapped. source: the path as it was given. format: csv, tsv, jsonl, parquet, arrow, saved, images,
    sounds, memory. base: relative paths of files start here. splits: train / validation / test of a folder that has
    them (then `table` is the training one). said: sentences about how the file was read. ragged: numbers of the rows
    (from 1) that had too many or too few cells and were left out; `table` does not hold them.
    """

    table: pa.Table
    source: str
    format: str
    base: Path
    splits: Mapping[str, Table] | None = None
    said: tuple[str, ...] = ()
    ragged: tuple[int, ...] = field(default=(), repr=False)


def read(
    path: str | Path, *, encoding: str = "utf-8", columns: Sequence[str] | None = None, on_bad_row: str = "error"
) -> Table:
    """Read csv, tsv, jsonl, parquet, Arrow files, saved `datasets` folders, folders of pictures or sounds, or one
    picture or sound.

    encoding: of csv, tsv and jsonl files. columns: the ones to read, all when left out. on_bad_row: 'skip' leaves rows
    with a wrong number of cells out instead of refusing the file.
    Raises DataError, with what was expected and what to do, for everything that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(_missing(path))
    try:
        if path.is_dir():
            return _folder(path, encoding, columns, on_bad_row)
        return _file(path, encoding, columns, on_bad_row)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from None


def format_of(path: Path) -> str | None:
    """The format that a file's name ends in, None for an unknown one."""
    name = path.name.lower()
    media = folders.media_of(name)
    if media is not None:
        return media.format
    packed = name.endswith(".gz")
    kind = _FORMATS.get(Path(name.removesuffix(".gz")).suffix)
    return kind if not packed or kind in _PACKED else None


def _tabular(path: Path) -> bool:
    return format_of(path) in _FORMATS.values()


def _file(path: Path, encoding: str, columns: Sequence[str] | None, on_bad_row: str) -> Table:
    kind = format_of(path)
    if kind is None:
        raise DataError(_unknown(path))
    if path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty: expected rows as {kind}")
    media = folders.media_of(path.name)
    if media is not None:
        return Table(pa.table({media.modality: [path.name]}), str(path), kind, path.parent)
    if kind == "parquet":
        return Table(arrow.read_parquet(path, columns), str(path), kind, path.parent)
    if kind == "arrow":
        return Table(arrow.read_arrow(path, columns), str(path), kind, path.parent)
    if kind == "jsonl":
        return Table(read_jsonl(path, encoding, columns), str(path), kind, path.parent)
    table, notes = read_delimited(path, encoding, columns, on_bad_row == "skip")
    return Table(table, str(path), kind, path.parent, None, tuple(notes.said), tuple(notes.ragged))


def _folder(path: Path, encoding: str, columns: Sequence[str] | None, on_bad_row: str) -> Table:
    if arrow.is_saved(path):
        return _saved(path, columns)
    suffixes = tuple(suffix + packed for suffix in _FORMATS for packed in ("", ".gz"))
    inner = folders.split_folders(path) or folders.split_files(path, suffixes)
    if inner:
        options: dict[str, Any] = {"encoding": encoding, "columns": columns, "on_bad_row": on_bad_row}
        return _container(path, {name: read(each, **options) for name, each in inner.items()})
    files = [entry.name for entry in sorted(path.iterdir()) if entry.is_file() and _tabular(entry)]
    if files and not folders.media_in(path):
        raise DataError(
            f"'{path}' is a folder of files without one called train: name a file, such as '{path / files[0]}', "
            f"or call them train, validation and test"
        )
    table, said, media = folders.read_media(path)
    return Table(table, str(path), media.format, path, None, tuple(said))


def _saved(path: Path, columns: Sequence[str] | None) -> Table:
    tables = arrow.read_saved(path, columns)
    if "" in tables:
        return Table(tables[""], str(path), "saved", path)
    named: dict[str, Table] = {}
    ignored: list[str] = []
    for name, table in tables.items():
        split = folders.split_name(name)
        if split is None or split in named:
            ignored.append(name)
        else:
            named[split] = Table(table, str(path / name), "saved", path / name)
    if not named:
        first = path / next(iter(tables))
        raise DataError(f"'{path}' has the splits {', '.join(tables)}: give one of them, such as '{first}'")
    made = _container(path, named)
    extra = tuple(f"the split '{name}' of '{path.name}' is not used" for name in ignored)
    return replace(made, said=made.said + extra)


def _container(path: Path, splits: Mapping[str, Table]) -> Table:
    first = splits.get("train", next(iter(splits.values())))
    said = (f"'{path.name}' brings its own splits: {', '.join(splits)}",)
    return Table(first.table, str(path), first.format, first.base, splits, said)


def _missing(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        while not parent.is_dir():
            missing, parent = parent, parent.parent
        return f"there is no folder '{missing}', so no '{path}': check the path (the working folder is '{Path.cwd()}')"
    siblings = [entry.name for entry in parent.iterdir() if entry.is_dir() or _tabular(entry)]
    if not siblings:
        return f"there is no '{path}': '{parent}' holds no data files; expected {_EXPECTED}"
    hint = did_you_mean(path.name, siblings)
    return f"there is no '{path}': {hint}" if len(hint) < 400 else f"there is no '{path}' among {len(siblings)} files"


def _unknown(path: Path) -> str:
    suffix = "".join(path.suffixes[-2:]) if path.suffix.lower() == ".gz" else path.suffix
    if suffix.lower() in (".xlsx", ".xls", ".ods"):
        return f"'{path}' is a spreadsheet, which is not read: save the sheet as csv and give that"
    return f"cannot tell the format of '{path}' from its ending '{suffix}': expected {_EXPECTED}"
