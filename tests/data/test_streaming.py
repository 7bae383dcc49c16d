"""Memory grows with the batch, not with the data."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headstart import data
from headstart.data.spool import keep_rows
from headstart.spec import Spec

COUNT = 200_000
TEXT = "some words that make the file longer than what may stay in memory, again and again, "


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((f"{TEXT * 2}{n}", "ab"[n % 2]) for n in range(COUNT))
    assert path.stat().st_size > 30_000_000
    return path


def test_reading_is_flat(large: Path) -> None:
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    table = data.read(large).table
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.num_rows == COUNT
    assert table.nbytes > 30_000_000
    assert peak < 12_000_000
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_keeping_rows_is_flat(large: Path) -> None:
    table = data.read(large).table
    before = pa.total_allocated_bytes()
    rows = np.arange(0, COUNT, 2)
    kept = keep_rows(table, rows)
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert kept.num_rows == COUNT // 2
    for at in (0, 1, 54_321, COUNT // 2 - 1):
        assert kept.column("text")[at].as_py() == f"{TEXT * 2}{2 * at}"
    view = keep_rows(table, np.arange(70_000, 90_000))
    assert view.column("text")[0].as_py() == f"{TEXT * 2}70000"
    assert keep_rows(table, np.arange(0)).num_rows == 0


def test_loading_holds_some_bytes_a_row(large: Path) -> None:
    """What is kept of a row for the checks is far less than the row."""
    before = pa.total_allocated_bytes()
    loaded = data.load(Spec.make(data={"train": str(large)}))
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert (loaded.rows.trained, loaded.rows.validated) == (COUNT * 9 // 10, COUNT // 10)
    assert sum(1 for _ in loaded.train.inputs()) == COUNT * 9 // 10
    assert pa.total_allocated_bytes() - before < 1_000_000
