"""Arrays that live in temporary files, memory-mapped, so that memory grows with the batch and not with the data."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.errors import HeadstartError

SMALL = 1 << 20
"""Bytes below which no file is made: a request of a few rows must not wait for the disk."""


class Flat:
    """A one-dimensional array that is written by appending and read at any place; its file goes when it does.

    It has a file only once it has more than `SMALL` bytes.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._pieces: list[npt.NDArray[Any]] = []
        self._size = 0
        self._path = ""
        self._file: Any = None
        self._array: npt.NDArray[Any] | None = None

    def append(self, values: Sequence[int] | npt.NDArray[Any]) -> None:
        """Add values at the end. Raises HeadstartError when the disk is full."""
        data = np.array(values, dtype=self.dtype)
        self._size += data.nbytes
        if self._file is None and self._size <= SMALL:
            self._pieces.append(data)
            return
        try:
            if self._file is None:
                handle, self._path = tempfile.mkstemp(prefix="headstart-", suffix=".bin")
                self._file = os.fdopen(handle, "wb")
                weakref.finalize(self, _remove, self._path, self._file)
            for piece in [*self._pieces, data]:
                self._file.write(piece.tobytes())
        except OSError as error:
            raise full(error) from None
        self._pieces.clear()

    def finish(self) -> npt.NDArray[Any]:
        """The whole array, read-only, mapped from the file if there is one. Nothing can be appended afterwards."""
        if self._array is None and self._file is None:
            self._array = np.concatenate([*self._pieces, np.empty(0, dtype=self.dtype)])
            self._array.flags.writeable = False
            self._pieces.clear()
        elif self._array is None:
            try:
                self._file.close()
            except OSError as error:
                raise full(error) from None
            self._array = np.memmap(self._path, dtype=self.dtype, mode="r")
        return self._array


class Grid:
    """`rows` equal pieces of bytes in a sparse file, filled in any order; only filled pieces take up disk."""

    def __init__(self, rows: int, shape: tuple[int, ...]) -> None:
        handle, self._path = tempfile.mkstemp(prefix="headstart-", suffix=".bin")
        os.close(handle)
        weakref.finalize(self, _remove, self._path)
        self.filled = np.zeros(rows, dtype=bool)
        self.pieces: npt.NDArray[np.uint8] = np.memmap(self._path, dtype=np.uint8, mode="w+", shape=(rows, *shape))

    def put(self, row: int, piece: npt.NDArray[np.uint8]) -> None:
        """Keep a piece."""
        self.pieces[row] = piece
        self.filled[row] = True


def free_space() -> int:
    """Bytes that may be written where temporary files go."""
    return shutil.disk_usage(tempfile.gettempdir()).free


def full(error: OSError) -> HeadstartError:
    """The error for a temporary folder that cannot be written."""
    return HeadstartError(
        f"cannot write to the temporary folder '{tempfile.gettempdir()}': {error.strerror or error}; "
        f"make room there or set TMPDIR to a folder with more"
    )


def _remove(path: str, file: Any = None) -> None:
    with contextlib.suppress(OSError):
        if file is not None:
            file.close()
    with contextlib.suppress(OSError):
        os.unlink(path)
