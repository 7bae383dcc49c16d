"""Answering a folder of files one by one, so that a run that was cut off goes on without a row twice or none.

Each file of the source becomes one file of the same name in the output folder, written whole or not at all. Behind it
a line goes to `_answered.jsonl` there: only a file with its line counts as answered. A line that was cut off counts as
none, and its file is answered again and replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from headstart.data import FORMATS
from headstart.errors import DataError, HeadstartError, MissingExtra

RECORD = "_answered.jsonl"
"""In the output folder; the underscore keeps it from being taken for rows."""

ENGINES = ("local", "ray")

Answer = Callable[[Path, Path], int]
"""Answers one file into another and says how many rows it had."""


@dataclass(frozen=True)
class Done:
    """What a run over a folder did. rows, files: all that are answered now; before: the files found answered."""

    rows: int
    files: int
    before: int


def is_folder_of_tables(path: str | Path) -> bool:
    """Whether this is a folder with at least one file to answer in it."""
    return Path(path).is_dir() and bool(tables(Path(path)))


def tables(folder: Path) -> list[Path]:
    """The csv, tsv, jsonl and parquet files of a folder and the folders in it, by name; hidden ones are left out.

    So are names with a leading underscore, which other tools give to notes of their own.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() in FORMATS and path.is_file() and not any(part[0] in "._" for part in parts):
            found.append(path)
    return found


def answer_folder(
    source: Path,
    out: Path,
    make: Callable[[], Answer],
    job: Mapping[str, Any],
    *,
    resume: bool = False,
    engine: str = "local",
    tell: Callable[[str], None] = lambda sentence: None,
) -> Done:
    """Answer every table of a folder into a folder of the same shape.

    make: builds what answers a file, once a process. job: what the answers depend on besides the files, such as the
    model's digest; a run is only gone on with when it is the same. engine: `ray` answers several files at a time, by
    one process a core of the cluster.

    A file that is refused does not stop the others. Raises DataError for an output folder that holds something else,
    and at the end for the files that were refused, with the first reasons.
    """
    if engine not in ENGINES:
        raise DataError(f"expected {' or '.join(ENGINES)} as the engine, received '{engine}'")
    source, out = source.resolve(), out.resolve()
    files = tables(source)
    if out == source or source in out.parents:
        raise DataError(f"cannot write to '{out}': it lies in the folder that is read; choose one outside of it")
    with _record(out, job, resume) as record:
        todo = [path for path in files if not record.holds(path, source)]
        before = len(files) - len(todo)
        if before:
            tell(f"{before} of {len(files)} files were answered before")
        refused: dict[str, str] = {}
        pairs = [(path, out / path.relative_to(source)) for path in todo]
        for count, (path, stamp, rows) in enumerate(_run(engine, make, pairs), before + 1):
            name = str(path.relative_to(source))
            if isinstance(rows, str):
                refused[name] = rows
                tell(f"[{count}/{len(files)}] {name}: refused, {rows}")
            else:
                record.add(name, rows, stamp)
                tell(f"[{count}/{len(files)}] {name}: {rows} rows")
        if refused:
            said = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:3])
            raise DataError(
                f"{len(refused)} of {len(files)} files were refused, the others are answered in '{out}': {said}; mend "
                f"them and go on with --resume"
            )
        return Done(sum(record.rows[str(path.relative_to(source))] for path in files), len(files), before)


def _run(
    engine: str, make: Callable[[], Answer], pairs: Sequence[tuple[Path, Path]]
) -> Iterator[tuple[Path, list[int], int | str]]:
    """Each file with its stamp from before it was read and its rows, or the reason why it was refused."""
    for _, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
    if engine == "ray":
        yield from _by_ray(make, pairs)
        return
    answer = make() if pairs else None
    for path, target in pairs:
        if answer is not None:
            yield _one(answer, path, target)


def _one(answer: Answer, path: Path, target: Path) -> tuple[Path, list[int], int | str]:
    stamp = _stamp(path)
    try:
        return path, stamp, answer(path, target)
    except HeadstartError as error:
        return path, stamp, str(error)


def _by_ray(
    make: Callable[[], Answer], pairs: Sequence[tuple[Path, Path]]
) -> Iterator[tuple[Path, list[int], int | str]]:
    try:
        ray = import_module("ray")
        pool = import_module("ray.util").ActorPool
    except ImportError:
        raise MissingExtra("ray", "ray", "--engine ray") from None
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:

        class Worker:
            def __init__(self) -> None:
                self.answer = make()

            def one(self, path: Path, target: Path) -> tuple[Path, list[int], int | str]:
                return _one(self.answer, path, target)

        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        remote = ray.remote(num_cpus=1)(Worker)
        workers = [remote.remote() for _ in range(min(cores, len(pairs)))]
        if workers:
            yield from pool(workers).map_unordered(lambda worker, pair: worker.one.remote(*pair), list(pairs))
    finally:
        if started:
            ray.shutdown()


def _stamp(path: Path) -> list[int]:
    """Size and time of the last change: a file with another stamp is answered again."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


class _Record:
    """The lines of `_answered.jsonl`. The first is the job."""

    def __init__(self, file: Any, out: Path) -> None:
        self.file, self.out = file, out
        self.rows: dict[str, int] = {}
        self.stamps: dict[str, list[int]] = {}

    def holds(self, path: Path, source: Path) -> bool:
        name = str(path.relative_to(source))
        return self.stamps.get(name) == _stamp(path) and (self.out / name).is_file()

    def add(self, name: str, rows: int, stamp: list[int]) -> None:
        self.rows[name], self.stamps[name] = rows, stamp
        self.write({"file": name, "rows": rows, "stamp": stamp})

    def write(self, line: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())


@contextmanager
def _record(out: Path, job: Mapping[str, Any], resume: bool) -> Iterator[_Record]:
    """The record of an output folder, which no other process writes to in the meantime."""
    import fcntl

    if out.exists() and not out.is_dir():
        raise DataError(f"cannot write to '{out}': the rows are a folder, so the answers are one too; this is a file")
    path = out / RECORD
    if out.is_dir() and any(out.iterdir()) and not path.is_file():
        raise DataError(f"cannot write to '{out}': it holds something else; choose an empty folder")
    if path.is_file() and not resume:
        raise DataError(f"'{out}' holds answers already: go on with --resume, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"another process writes to '{out}'; wait until it is done") from None
        record = _Record(file, out)
        lines = _whole_lines(file)
        if not lines:
            record.write({"job": dict(job)})
        elif lines[0].get("job") != json.loads(json.dumps(dict(job))):
            raise DataError(f"the answers in '{out}' are of another model or other options; choose another folder")
        for line in lines[1:]:
            record.rows[line["file"]], record.stamps[line["file"]] = line["rows"], line["stamp"]
        yield record


def _whole_lines(file: Any) -> list[dict[str, Any]]:
    """The lines up to the first that was cut off, which is taken away with what follows."""
    file.seek(0)
    found, end = [], 0
    for line in iter(file.readline, ""):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not line.endswith("\n") or not isinstance(value, dict):
            break
        found.append(value)
        end = file.tell()
    file.seek(end)
    file.truncate()
    return found
