"""Every format gives the same rows."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headstart
from headstart import data

ROWS = [
    {"text": 'she said "yes",\nthen left', "label": "a"},
    {"text": "café ☕ 数", "label": "b"},
    {"text": "  spaces kept  ", "label": "a"},
]


def as_rows(table: data.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.table.to_pylist()
    return rows


def test_csv_with_quoted_newlines(write_csv: Any) -> None:
    table = data.read(write_csv([list(row.values()) for row in ROWS]))
    assert as_rows(table) == ROWS
    assert table.format == "csv"


def test_csv_from_windows(write_text: Any) -> None:
    """Byte order mark, carriage returns, blank lines, spaces around column names."""
    path = write_text(b"\xef\xbb\xbftext, label\r\nhello,a\r\n\r\nbye,b\r\n")
    assert as_rows(data.read(path)) == [{"text": "hello", "label": "a"}, {"text": "bye", "label": "b"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252", "utf-16-le"])
def test_csv_in_other_encodings(write_csv: Any, encoding: str) -> None:
    path = write_csv([["café", "a"]], encoding=encoding)
    assert as_rows(data.read(path, encoding=encoding)) == [{"text": "café", "label": "a"}]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_csv_with_another_delimiter_is_said(write_csv: Any, mark: str) -> None:
    table = data.read(write_csv([["a, b", "x"], ["c", "y"]], delimiter=mark))
    assert as_rows(table)[0] == {"text": "a, b", "label": "x"}
    assert "separated by" in table.said[0]


def test_cells_stay_text(write_csv: Any) -> None:
    path = write_csv([["007", "1e5", "", "NA", "null"]], list("abcde"))
    assert as_rows(data.read(path)) == [{"a": "007", "b": "1e5", "c": "", "d": "NA", "e": "null"}]


def test_tsv_with_bare_quotes(write_text: Any) -> None:
    """A quote in a tsv file that does not quote its cells must not swallow the rows below it."""
    path = write_text('text\tlabel\n"hello\ta\nthere\tb\nworld"\tc\n', "t.tsv")
    assert [row["label"] for row in as_rows(data.read(path))] == ["a", "b", "c"]
    assert as_rows(data.read(path))[0]["text"] == '"hello'


def test_tsv_with_quoted_cells(write_csv: Any) -> None:
    rows = [*ROWS, {"text": "a\ttab", "label": "c"}]
    path = write_csv([list(row.values()) for row in rows], name="t.tsv", delimiter="\t")
    assert as_rows(data.read(path)) == rows


def test_gzip(write_text: Any) -> None:
    assert as_rows(data.read(write_text(gzip.compress(b"text,label\na,b\n"), "t.csv.gz"))) == [
        {"text": "a", "label": "b"}
    ]


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.json", "t.jsonl.gz"])
def test_json_lines(write_text: Any, name: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    assert as_rows(data.read(write_text(gzip.compress(lines) if name.endswith("gz") else lines, name))) == ROWS


def test_json_list(write_text: Any) -> None:
    assert as_rows(data.read(write_text(json.dumps(ROWS, indent=1), "t.json"))) == ROWS


def test_json_types_are_those_of_the_whole_file(write_text: Any) -> None:
    """Types that change after the first batch, keys that come late, and nested values."""
    rows = [{"n": 1, "m": 1, "tags": []} for _ in range(5000)]
    rows += [{"n": 2.5, "m": "x", "tags": ["a"], "late": True, "nest": {"k": [1]}}]
    table = data.read(write_text("".join(json.dumps(row) + "\n" for row in rows), "t.jsonl")).table
    assert table.schema.field("n").type == pa.float64()
    assert table.column("m").to_pylist()[-2:] == ["1", "x"]
    assert table.column("tags").to_pylist()[-2:] == [[], ["a"]]
    assert table.column("late").to_pylist()[-2:] == [None, True]
    assert table.column("nest").to_pylist()[-1] == '{"k": [1]}'


def test_json_with_half_a_surrogate_pair(write_text: Any) -> None:
    assert as_rows(data.read(write_text(b'{"text": "a\\ud83d"}\n', "t.jsonl"))) == [{"text": "a\ufffd"}]


def test_parquet_with_dictionaries_and_row_groups(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c", "d"], "label": pa.array(["x", "y", "y", "z"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    found = data.read(tmp_path / "t.parquet").table
    assert found.column("label").to_pylist() == ["x", "y", "y", "z"]
    assert data.read(tmp_path / "t.parquet", columns=["label"]).table.column_names == ["label"]


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files(tmp_path: Path, stream: bool) -> None:
    table = pa.Table.from_pylist(ROWS)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)
    assert as_rows(data.read(tmp_path / "t.arrow")) == ROWS


def test_saved_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["card", "refund"]),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["u", "v", "w"])),
        }
    )
    rows = {"text": ["p", "q", "r"], "label": [1, -1, 0], "tags": [[0, 2], [], [1]]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(tmp_path / "one", num_shards=2)
    expected = [
        {"text": "p", "label": "refund", "tags": ["u", "w"]},
        {"text": "q", "label": None, "tags": []},
        {"text": "r", "label": "card", "tags": ["v"]},
    ]
    assert as_rows(data.read(tmp_path / "one")) == expected
    splits = datasets.DatasetDict({"train": made, "dev": made.select([2]), "unsupervised": made})
    splits.save_to_disk(tmp_path / "many")
    found = data.read(tmp_path / "many")
    assert found.splits is not None
    assert {name: len(table.table) for name, table in found.splits.items()} == {"train": 3, "validation": 1}
    assert as_rows(found.splits["validation"]) == expected[2:]
    assert any("'unsupervised'" in sentence for sentence in found.said)
    made.to_parquet(tmp_path / "t.parquet")
    assert as_rows(data.read(tmp_path / "t.parquet")) == expected


def test_saved_pictures(tmp_path: Path, pictures: Any) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    files = sorted(pictures({"a": 2, "b": 2}).rglob("*.png"))
    made = datasets.Dataset.from_dict({"img": [str(file) for file in files], "label": ["a", "a", "b", "b"]})
    made = made.cast_column("img", datasets.Image())
    made.map(lambda row: row).save_to_disk(tmp_path / "paths")
    embedded = made.with_format("arrow").map(datasets.table.embed_table_storage, batched=True)
    embedded.with_format(None).save_to_disk(tmp_path / "bytes")
    for name in ("paths", "bytes"):
        from headstart.spec import Spec

        loaded = data.load(Spec.make(data={"train": str(tmp_path / name)}))
        assert (loaded.columns.modality, loaded.columns.input) == ("image", "img")
        first = loaded.train.inputs()[0]
        content = first if isinstance(first, bytes) else Path(first).read_bytes()
        assert content == files[0].read_bytes()


def test_folder_of_pictures(pictures: Any) -> None:
    folder = pictures({"cats": 2, "dogs/inner": 1, "empty": 0})
    (folder / "cats" / "notes.txt").write_text("x")
    (folder / "cats" / ".hidden.png").write_text("x")
    table = data.read(folder)
    assert as_rows(table) == [
        {"image": "cats/000.png", "label": "cats"},
        {"image": "cats/001.png", "label": "cats"},
        {"image": "dogs/inner/000.png", "label": "dogs"},
    ]
    assert table.base == folder
    assert table.said == ("the folder 'empty' holds no pictures, so it is no class",)


def test_folder_of_domains_is_said(pictures: Any) -> None:
    table = data.read(pictures({"photo/dog": 1, "photo/cat": 1, "sketch/dog": 1}))
    assert table.table.column("label").to_pylist() == ["photo", "photo", "sketch"]
    assert "if it is the inner one (dog), give one outer folder" in table.said[0]


def test_folder_of_pictures_in_splits(pictures: Any) -> None:
    table = data.read(pictures({"train/a": 2, "train/b": 1, "valid/a": 1, "Test/b": 1}))
    assert table.splits is not None
    assert list(table.splits) == ["train", "validation", "test"]
    assert len(table.table) == 3
    assert table.splits["test"].base.name == "Test"


def test_classes_that_are_called_like_splits(pictures: Any) -> None:
    """'test' beside 'control' is a class of pictures, for there is no 'train'."""
    table = data.read(pictures({"test": 1, "control": 1}))
    assert table.splits is None
    assert table.table.column("label").to_pylist() == ["control", "test"]


def test_folder_of_files(write_csv: Any, tmp_path: Path) -> None:
    for name, count in (("train.csv", 3), ("dev.csv", 2), ("test.csv", 1)):
        write_csv([[f"text {n}", "a"] for n in range(count)], name=name)
    table = data.read(tmp_path)
    assert table.splits is not None
    assert {name: len(split.table) for name, split in table.splits.items()} == {"train": 3, "validation": 2, "test": 1}


def test_one_picture(pictures: Any) -> None:
    folder = pictures({"a": 1})
    table = data.read(folder / "a" / "000.png")
    assert as_rows(table) == [{"image": "000.png"}]
    assert (table.base / "000.png").is_file()


def test_ragged_rows_are_counted(write_text: Any) -> None:
    table = data.read(write_text("text,label\na,b\nx\nc,d\ny,z,z\n"), on_bad_row="skip")
    assert table.ragged == (2, 4)
    assert table.table.column("text").to_pylist() == ["a", "c"]


def test_a_row_of_very_many_lines_is_said(write_text: Any) -> None:
    table = data.read(write_text('text,label\na,b\n"x' + "\n" * 300 + '",b\n'))
    assert "row 2 of 'train.csv' runs from line 3 to line 303" in table.said[0]


def test_nothing_is_left_in_the_temporary_folder(
    write_csv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    table = data.read(write_csv([["a", "b"]]))
    assert list(place.iterdir()) == []
    assert as_rows(table) == [{"text": "a", "label": "b"}]


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8), st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_what_is_written_is_read(tmp_path: Path, rows: list[tuple[str, str]], kind: str) -> None:
    """Writer and reader agree on every text (a row of empty cells would be a blank line: the first has letters)."""
    table = pa.table({"text": ["x" + text for text, _ in rows], "label": [label for _, label in rows]})
    path = tmp_path / f"t.{kind}"
    assert data.write_table([table], path) == len(rows)
    assert data.read(path).table.to_pylist() == table.to_pylist()


def test_import_is_light() -> None:
    code = "import sys, headstart.data as d; print(sorted({'pandas','torch','PIL','datasets'} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(Path(headstart.__file__).parent.parent)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == "[]"
