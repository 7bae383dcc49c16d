"""Tables that live on disk: record batches are written to an Arrow file and mapped back, so memory stays flat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from headstart.aside import passing
from headstart.errors import DataError

BATCH_ROWS = 4096
"""Rows of a record batch: what is in memory at once while a file is read."""


def spool(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Write batches to a temporary Arrow file and map it.

    The file is unlinked as soon as it is mapped (on systems that allow it), so that a killed run leaves nothing behind.
    Raises DataError when the temporary folder is full.
    """
    with passing(".arrow") as path:
        try:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            return mapped_file(path)
        except OSError as error:
            raise DataError(
                f"cannot write the working copy of the data to '{path.parent}': {error}; "
                f"make room there, or set TMPDIR to a folder with room"
            ) from None


def mapped_file(path: Path) -> pa.Table:
    """An Arrow IPC file, or stream, as a memory-mapped table. Raises pyarrow.ArrowInvalid for anything else."""
    source = pa.memory_map(str(path), "r")
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def strings(values: Sequence[str | None]) -> pa.Array:
    """Texts as an Arrow array of strings. Halves of surrogate pairs, which no file can hold, become U+FFFD.

    pyarrow's own conversion of lists imports pandas wherever that is installed, which takes longer than most files.
    """
    parts = [b"" if value is None else _utf8(value) for value in values]
    offsets = np.zeros(len(parts) + 1, np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    filled = np.array([value is not None for value in values], bool)
    valid = None if filled.all() else pa.py_buffer(np.packbits(filled, bitorder="little"))
    return pa.StringArray.from_buffers(len(parts), pa.py_buffer(offsets), pa.py_buffer(b"".join(parts)), valid)


def _utf8(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def whole_numbers(values: np.ndarray) -> pa.Array:
    """(n,) int64 as an Arrow array of the same memory."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values, np.int64))])


def keep_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The rows of a table, in rising order, without holding them in memory.

    rows: (n,) int64, strictly rising. A range of neighbours is a view of the table; anything else is spooled.
    """
    if len(rows) == 0:
        return table.slice(0, 0)
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return table.slice(first, len(rows))
    return spool(table.schema, _taken(table, rows))


def _taken(table: pa.Table, rows: np.ndarray) -> Iterator[pa.RecordBatch]:
    offset = 0
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        low, high = np.searchsorted(rows, (offset, offset + batch.num_rows))
        if high > low:
            yield batch.take(whole_numbers(rows[low:high] - offset))
        offset += batch.num_rows
