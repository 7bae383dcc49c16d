"""Tables for people: whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from headstart import data

PIECES = [
    pa.table({"text": ['a, "b"', "x\ny"], "score": [0.1, 1e-20], "tags": [["p", "q"], []], "ok": [True, None]}),
    pa.table({"text": ["é"], "score": [0.25], "tags": [["r"]], "ok": [False]}),
]


def test_csv(tmp_path: Path) -> None:
    assert data.write_table(iter(PIECES), tmp_path / "t.csv") == 3
    assert data.read(tmp_path / "t.csv").table.to_pylist() == [
        {"text": 'a, "b"', "score": "0.1", "tags": "p|q", "ok": "true"},
        {"text": "x\ny", "score": "1e-20", "tags": "", "ok": ""},
        {"text": "é", "score": "0.25", "tags": "r", "ok": "false"},
    ]


def test_jsonl_and_parquet(tmp_path: Path) -> None:
    expected = pa.concat_tables(PIECES).to_pylist()
    data.write_table(iter(PIECES), tmp_path / "t.jsonl")
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()] == expected
    data.write_table(iter(PIECES), tmp_path / "t.parquet")
    assert data.read(tmp_path / "t.parquet").table.to_pylist() == expected


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    data.write_table([PIECES[1]], tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def fails() -> Iterator[pa.Table]:
        yield PIECES[0]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        data.write_table(fails(), tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]
