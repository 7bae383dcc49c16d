"""A bundle's files on their way into a registry and out of it: whole or not at all, also when the process is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from headstart import bundle as bundles
from headstart.errors import BundleError

_PART, _PENDING = ".part-", ".pending-"
"""How the names begin of folders that are still being written, and of marks of what is not registered yet."""


def files(folder: Path) -> list[str]:
    """What belongs to a bundle: what its record lists, its evidence, and the record itself, last.

    Raises BundleError for a record that names a file outside of its folder.
    """
    names = list(bundles.read_record(folder)["files"])
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
            raise BundleError(f"the bundle '{folder}' names a file outside of its folder: '{name}'")
    names += [name for name in bundles.EVIDENCE if (folder / name).is_file()]
    return [*names, "bundle.json"]


def size(folder: Path) -> int:
    """Bytes of all files of a bundle."""
    return sum((folder / name).stat().st_size for name in files(folder))


def copy(source: Path, target: Path) -> None:
    """Copy a bundle to a folder that is not there yet; `target` appears when every byte of it is on the disk.

    The copy is proven before it appears. Raises BundleError or ProofError, and then leaves nothing.
    """
    part = target.parent / f"{_PART}{target.name}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name in files(source):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            _copy_file(source / name, part / name)
        bundles.load(part, report=False)
        for folder in (part, *(path for path in part.rglob("*") if path.is_dir())):
            _flush(folder)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _flush(target.parent)


def _copy_file(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as old, target.open("wb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
    except FileNotFoundError:
        raise BundleError(f"the bundle '{source.parent}' lacks '{source.name}': copy the whole folder") from None


def _flush(folder: Path) -> None:
    """Make the names in a folder as lasting as what they name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def pending(target: Path) -> Iterator[None]:
    """Inside, `target` is marked as not yet registered: `sweep` removes it should the process not come to the end."""
    mark(target)
    try:
        yield
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        _marker(target).unlink()
        raise
    _marker(target).unlink()


def _marker(target: Path) -> Path:
    return target.parent / f"{_PENDING}{target.name}"


def mark(target: Path) -> None:
    """From now on `sweep` removes `target` if it is not registered."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _marker(target).touch()
    _flush(target.parent)


def discard(target: Path) -> None:
    """Remove what was marked and is registered no more. Raises OSError, and then leaves the mark for `sweep`."""
    if target.exists():
        shutil.rmtree(target)
    _marker(target).unlink()


def sweep(folder: Path, known: Collection[str]) -> None:
    """Remove what processes that were killed left in `folder`: half a copy, or a copy that is not registered.

    Only while no other process copies into it (`locked`). known: names of the folders that were registered.
    """
    for marker in folder.glob(f"{_PENDING}*"):
        name = marker.name.removeprefix(_PENDING)
        shutil.rmtree(folder / f"{_PART}{name}", ignore_errors=True)
        if name not in known:
            shutil.rmtree(folder / name, ignore_errors=True)
            if (folder / name).exists():  # the mark stays for one who may remove it
                continue
        marker.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process or thread is inside with the same path. The lock ends with the process that holds it."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def used(folder: Path) -> Iterator[None]:
    """Inside, nobody gets the bundle in `folder` from `unused`. Raises BundleError where it was removed before."""
    import fcntl

    record = folder / "bundle.json"
    try:
        file = record.open("rb")
    except FileNotFoundError:
        raise BundleError(f"there is no bundle in '{folder}' any more") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        if not record.exists():  # removed while this waited
            raise BundleError(f"there is no bundle in '{folder}' any more")
        yield


@contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Whether nobody is inside `used` with this bundle; as long as that is so, nobody comes in before the end."""
    import fcntl

    try:
        file = (folder / "bundle.json").open("rb")
    except FileNotFoundError:
        yield True
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
