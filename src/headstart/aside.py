"""Tensors that are kept for later wait in a file, so that they take no memory from those that learn."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FEW = 16 * 2**20
"""Bytes of tensors below which copies stay in memory."""


def aside(tensors: Mapping[str, Tensor], device: str | None = None) -> dict[str, Tensor]:
    """Copies of tensors, on their own device if none is said.

    Those in main memory are mapped from a file that goes when they do; not where they are small (below `FEW`) or would
    take more than half of what is free in the temporary folder. What is written to them afterwards stays in memory.
    """
    copies = {name: value.to(device or value.device) for name, value in tensors.items()}
    here = all(tensor.device.type == "cpu" for tensor in tensors.values())
    size = sum(value.nbytes for value in copies.values())
    if here and FEW <= size < shutil.disk_usage(tempfile.gettempdir()).free / 2:
        with suppress(OSError, RuntimeError):  # torch tells of a full disk by RuntimeError
            return _filed(copies)
    return {name: value.clone() if value is tensors[name] else value for name, value in copies.items()}


def _filed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch  # whoever only reads data does without

    with passing(".weights") as path:
        # Of a view, torch would save everything that it is a view of.
        whole = {name: v if v.untyped_storage().nbytes() == v.nbytes else v.clone() for name, v in tensors.items()}
        torch.save(whole, path)
        mapped: dict[str, Tensor] = torch.load(path, mmap=True, weights_only=True)
        return mapped


@contextmanager
def passing(suffix: str) -> Iterator[Path]:
    """A temporary file to be written and mapped: it is unlinked at the end, so that a killed run leaves nothing behind.

    Where a mapped file cannot be unlinked (Windows), it goes with the process.
    """
    handle, name = tempfile.mkstemp(prefix="headstart-", suffix=suffix)
    os.close(handle)
    path = Path(name)
    try:
        yield path
    finally:
        try:
            path.unlink(missing_ok=True)
        except PermissionError:
            atexit.register(path.unlink, missing_ok=True)
