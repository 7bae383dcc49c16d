"""Folders of pictures, one subfolder a class, and folders of files named after their splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from headstart.data.spool import BATCH_ROWS, spool, strings
from headstart.data.words import counted
from headstart.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""File names that end so are pictures."""

_SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


def split_name(name: str) -> str | None:
    """train, validation or test, where a folder or file is called so (or val, valid, dev, ...)."""
    return _SPLITS.get(name.lower())


def split_folders(folder: Path) -> dict[str, Path]:
    """Subfolders named after splits, where one of them is the training split and there is nothing else to read."""
    found = _by_split(folder, _subfolders(folder))
    others = [path for path in _subfolders(folder) if split_name(path.name) is None and has_pictures(path)]
    return {} if others or "train" not in found else found


def split_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files named after splits (train.csv, test.csv), where one of them is the training split."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().endswith(suffixes)]
    found = _by_split(folder, files)
    return found if "train" in found else {}


def _by_split(folder: Path, paths: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        split = split_name(path.name.split(".")[0])
        if split in found:
            raise DataError(f"'{folder}' has '{found[split].name}' and '{path.name}' for the {split} split: keep one")
        if split is not None:
            found[split] = path
    return {split: found[split] for split in dict.fromkeys(_SPLITS.values()) if split in found}


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture anywhere below."""
    return next(_pictures(folder), None) is not None


def read_pictures(folder: Path) -> tuple[pa.Table, list[str]]:
    """A mapped table of `image` (path relative to the folder) and `label` (class folder), and what there is to say.

    A folder with pictures and no subfolders that hold any has no `label`. Raises DataError where there are no pictures,
    or where some stand in a class folder and others beside them.
    """
    classes = {path.name: path for path in _subfolders(folder)}
    filled = {name: path for name, path in classes.items() if has_pictures(path)}
    loose = [entry for entry in sorted(os.listdir(folder)) if _is_picture(entry) and (folder / entry).is_file()]
    if not filled and not loose:
        raise DataError(
            f"'{folder}' holds no pictures: expected CLASS/picture.jpg, one subfolder a class, "
            f"with names that end in {', '.join(SUFFIXES)}"
        )
    if filled and loose:
        raise DataError(
            f"'{folder}' has class folders ({', '.join(sorted(filled)[:5])}) "
            f"and {counted(len(loose), 'picture')} beside them, such as '{loose[0]}': move each into a class folder"
        )
    said = [f"the folder '{name}' holds no pictures, so it is no class" for name in sorted(set(classes) - set(filled))]
    inner = [{path.name for path in _subfolders(filled[name])} for name in sorted(filled)]
    if len(inner) > 1 and set.intersection(*inner):
        said.append(
            f"the class of a picture is its outer folder ({', '.join(sorted(filled)[:4])}); "
            f"if it is the inner one ({', '.join(sorted(set.intersection(*inner))[:4])}), give one outer folder"
        )
    if loose:
        return spool(pa.schema([("image", pa.string())]), _batches(iter([(name, None) for name in loose]))), said
    named = ((f"{name}/{inner}", name) for name in sorted(filled) for inner in _pictures(filled[name]))
    return spool(pa.schema([("image", pa.string()), ("label", pa.string())]), _batches(named)), said


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _pictures(folder: Path) -> Iterator[str]:
    """Paths of pictures below, relative, with forward slashes, in one fixed order."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(files):
            if _is_picture(name):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _batches(rows: Iterator[tuple[str, str | None]]) -> Iterator[pa.RecordBatch]:
    def batch(held: list[tuple[str, str | None]]) -> pa.RecordBatch:
        columns = {"image": strings([path for path, _ in held])}
        if held[0][1] is not None:
            columns["label"] = strings([label for _, label in held])
        return pa.record_batch(columns)

    held: list[tuple[str, str | None]] = []
    for row in rows:
        held.append(row)
        if len(held) == BATCH_ROWS:
            yield batch(held)
            held = []
    if held:
        yield batch(held)
