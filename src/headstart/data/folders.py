"""Folders of pictures or sounds, one subfolder a class, and folders of files named after their splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from headstart.data.spool import BATCH_ROWS, spool, strings
from headstart.data.words import counted
from headstart.errors import DataError


@dataclass(frozen=True)
class Media:
    """A kind of file that is one row. format: of the table; modality: also its column; word: what one is called."""

    format: str
    modality: str
    word: str
    suffixes: tuple[str, ...]


PICTURES = Media(
    "images", "image", "picture", (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
SOUNDS = Media("sounds", "audio", "sound", (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"))
MEDIA = (PICTURES, SOUNDS)
"""File names that end so are rows by themselves."""

_SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


def media_of(name: str) -> Media | None:
    """The kind of media that a file's name ends in."""
    lowered = name.lower()
    return next((media for media in MEDIA if lowered.endswith(media.suffixes)), None)


def split_name(name: str) -> str | None:
    """train, validation or test, where a folder or file is called so (or val, valid, dev, ...)."""
    return _SPLITS.get(name.lower())


def split_folders(folder: Path) -> dict[str, Path]:
    """Subfolders named after splits, where one of them is the training split and there is nothing else to read."""
    found = _by_split(folder, _subfolders(folder))
    others = [path for path in _subfolders(folder) if split_name(path.name) is None and media_in(path)]
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


def media_in(folder: Path) -> list[Media]:
    """The kinds of media that are anywhere below."""
    return [media for media in MEDIA if _holds(folder, media)]


def read_media(folder: Path) -> tuple[pa.Table, list[str], Media]:
    """A mapped table of `image` or `audio` (path relative to the folder) and `label` (class folder).

    Beside it what there is to say, and the kind. A folder with files and no subfolders that hold any has no `label`.
    Raises DataError where there are none, where pictures and sounds stand together, or where some stand in a class
    folder and others beside them.
    """
    kinds = media_in(folder)
    if len(kinds) > 1:
        first = [next(_files(folder, media)) for media in kinds]
        raise DataError(
            f"'{folder}' holds pictures and sounds ('{first[0]}', '{first[1]}'): keep one kind in the folder, "
            f"or list the files of one kind in a table"
        )
    if not kinds:
        raise DataError(
            f"'{folder}' holds no pictures and no sounds: expected CLASS/picture.jpg or CLASS/sound.wav, one subfolder "
            f"a class, with names that end in {', '.join(PICTURES.suffixes + SOUNDS.suffixes)}"
        )
    media = kinds[0]
    classes = {path.name: path for path in _subfolders(folder)}
    filled = {name: path for name, path in classes.items() if _holds(path, media)}
    loose = [entry for entry in sorted(os.listdir(folder)) if _is(entry, media) and (folder / entry).is_file()]
    if filled and loose:
        raise DataError(
            f"'{folder}' has class folders ({', '.join(sorted(filled)[:5])}) "
            f"and {counted(len(loose), media.word)} beside them, such as '{loose[0]}': move each into a class folder"
        )
    said = [
        f"the folder '{name}' holds no {media.word}s, so it is no class" for name in sorted(set(classes) - set(filled))
    ]
    inner = [{path.name for path in _subfolders(filled[name])} for name in sorted(filled)]
    if len(inner) > 1 and set.intersection(*inner):
        said.append(
            f"the class of a {media.word} is its outer folder ({', '.join(sorted(filled)[:4])}); "
            f"if it is the inner one ({', '.join(sorted(set.intersection(*inner))[:4])}), give one outer folder"
        )
    column = media.modality
    if loose:
        rows = iter([(name, None) for name in loose])
        return spool(pa.schema([(column, pa.string())]), _batches(rows, column)), said, media
    named = ((f"{name}/{inner}", name) for name in sorted(filled) for inner in _files(filled[name], media))
    return spool(pa.schema([(column, pa.string()), ("label", pa.string())]), _batches(named, column)), said, media


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]


def _is(name: str, media: Media) -> bool:
    return name.lower().endswith(media.suffixes) and not name.startswith(".")


def _holds(folder: Path, media: Media) -> bool:
    return next(_files(folder, media), None) is not None


def _files(folder: Path, media: Media) -> Iterator[str]:
    """Paths of the files of a kind below, relative, with forward slashes, in one fixed order."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(files):
            if _is(name, media):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _batches(rows: Iterator[tuple[str, str | None]], column: str) -> Iterator[pa.RecordBatch]:
    def batch(held: list[tuple[str, str | None]]) -> pa.RecordBatch:
        columns = {column: strings([path for path, _ in held])}
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
