"""Rows without labels: read, counted, checked against the rows to be measured on, handed to methods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import headstart as hs
from headstart import data
from headstart.errors import DataError, MethodError
from headstart.hooks import Hooks
from headstart.modalities.text import TextModality
from headstart.protocols import Context, Method
from headstart.spec import Spec
from headstart.tasks.classification import Classification
from headstart.values import Batch


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    labelled = [{"text": f"{word} {n}", "label": word} for n in range(20) for word in ("parcel", "refund")]
    other = [{"text": f"parcel {n}", "sender": n} for n in range(18, 25)]
    paths = {}
    for name, rows in (("train", labelled[:30]), ("test", labelled[30:]), ("unlabelled", other)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths[f"data__{name}"] = str(path)
    return paths


def test_they_are_read_counted_and_in_the_fingerprint(files: dict[str, str]) -> None:
    loaded = data.load(Spec.make(**files))
    assert loaded.unlabelled is not None and loaded.unlabelled.inputs()[0] == "parcel 18"
    assert loaded.rows.unlabelled == 7 and loaded.rows.adds_up
    without = data.load(Spec.make(**{key: value for key, value in files.items() if key != "data__unlabelled"}))
    assert without.unlabelled is None and without.rows.unlabelled == 0
    assert without.fingerprint != loaded.fingerprint
    assert without.columns == loaded.columns


def test_rows_that_also_stand_in_test_are_said(files: dict[str, str]) -> None:
    found = {finding.code: finding.message for finding in data.load(Spec.make(**files)).findings}
    assert found["unlabelled-overlap"].startswith("2 unlabelled rows also stand among the test rows")


def test_a_file_without_the_input_column_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text("body\nhello\n")
    with pytest.raises(DataError, match="has no column 'text'"):
        data.load(Spec.make(**{**files, "data__unlabelled": str(path)}))


def test_rows_in_memory() -> None:
    labels = ["a", "b"] * 20
    loaded = data.from_memory([f"text {n}" for n in range(40)], labels, unlabelled=["more", "rows"])
    assert loaded.rows.unlabelled == 2 and loaded.rows.read == 42 and loaded.rows.adds_up


@dataclass
class Looks(Method):
    """Counts what it is given."""

    def requires(self) -> dict[str, str]:
        return {"run.unlabelled": "it learns from rows without labels; give them with --unlabelled"}

    def stream(self, batches: Iterator[Batch], ctx: Context) -> Iterator[Batch]:  # type: ignore[override]
        assert ctx.unlabelled is not None and ctx.unlabelled.targets is None
        self.seen_ = len(ctx.unlabelled)
        return batches


def test_a_method_that_needs_them_is_refused_without() -> None:
    task = Classification.fit(["a", "b"])
    with pytest.raises(MethodError, match="give them with --unlabelled"):
        Hooks({"looks": Looks()}, task, TextModality(), seed=0)


def test_methods_get_them_in_a_run(files: dict[str, str], tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks()
    monkeypatch.setattr("headstart.stages.make_methods", lambda specs: {"looks": looks})
    made = hs.fit(
        files["data__train"], test=files["data__test"], unlabelled=files["data__unlabelled"],
        backbone=f"file:{tiny_bert}", methods=[], epochs=1,
    )  # fmt: skip
    assert looks.seen_ == 7
    assert made.report is not None and made.report.to_json()["rows"]["unlabelled"] == 7
