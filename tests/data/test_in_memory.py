"""Lists, arrays, pictures, dicts and frames give the same data as files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from headstart import data
from headstart.spec import Spec


def test_lists_equal_a_file(write_csv: Any, rows: Any, spec: Any) -> None:
    made = rows(a=30, b=30)
    from_file = data.load(spec(train=write_csv(made)))
    texts, labels = [row[0] for row in made], [row[1] for row in made]
    from_lists = data.from_memory(texts, labels)
    assert from_lists.fingerprint == from_file.fingerprint
    assert from_lists.rows == from_file.rows
    for table in ({"text": texts, "label": labels}, pa.table({"text": texts, "label": labels})):
        assert data.from_memory(table).fingerprint == from_file.fingerprint
    assert data.from_memory(np.array(texts), np.array(labels)).fingerprint == from_file.fingerprint
    assert data.from_memory(np.array(texts, object), np.array(labels, object)).fingerprint == from_file.fingerprint


def test_data_frame(rows: Any) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows(a=30, b=30), columns=["body", "intent"])
    loaded = data.from_memory(frame)
    assert (loaded.columns.input, loaded.columns.labels) == ("body", ("intent",))
    assert data.from_memory(frame["body"], frame["intent"]).fingerprint == loaded.fingerprint


def test_validation_and_test_pairs(rows: Any) -> None:
    made = rows(a=10, b=10)
    loaded = data.from_memory(
        [row[0] for row in made], [row[1] for row in made], validation=(["x"], ["a"]), test=(["y", "z"], ["a", "b"])
    )
    assert (len(loaded.train), len(loaded.validation or ()), len(loaded.test or ())) == (20, 1, 2)
    assert loaded.rows.read == 23 and loaded.rows.adds_up


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 3)])
def test_arrays_of_pixels_come_back_exactly(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)
    part = data.from_memory(pixels, list("ababab")).train
    for content, original in zip(part.inputs(), pixels, strict=True):
        with Image.open(io.BytesIO(content)) as picture:
            assert (np.asarray(picture) == original.reshape(np.asarray(picture).shape)).all()


def test_pictures_and_paths(pictures: Any) -> None:
    files = sorted(pictures({"a": 3, "b": 3}).rglob("*.png"))
    labels = [file.parent.name for file in files]
    as_paths = data.from_memory(files, labels)
    as_names = data.from_memory([str(file) for file in files], labels)
    opened = [Image.open(file) for file in files]
    as_pictures = data.from_memory(opened, labels)
    for picture in opened:
        picture.close()
    assert as_paths.columns.modality == as_names.columns.modality == as_pictures.columns.modality == "image"
    assert list(as_paths.train.inputs()) == [str(file) for file in files] == list(as_names.train.inputs())
    assert as_paths.fingerprint == as_names.fingerprint


def test_texts_that_end_like_pictures_can_be_texts() -> None:
    spec = Spec.make(data={"text": "text"})
    assert data.from_memory(["look at a.png", "b.jpg"], ["x", "y"], spec=spec).columns.modality == "text"


@pytest.mark.parametrize(
    ("labels", "task", "first"),
    [
        (np.array([0, 1, 2, 0]), "classification", "0"),
        (np.array([0.5, 1.25, 3.0, 9.0]), "regression", 0.5),
        ([True, False, True, True], "classification", "true"),
        (np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]]), "multilabel", ["0", "2"]),
        ([["x"], ["y", "x"], [], ["z"]], "multilabel", ["x"]),
        ([("x",), ("y", "x"), (), ("z",)], "multilabel", ["x"]),
        (np.array([[0.5, 2.0], [1.5, 3.0], [4.0, 4.0], [0.1, 0.2]]), "regression", [0.5, 2.0]),
    ],
)
def test_labels_of_every_shape(labels: Any, task: str, first: Any) -> None:
    loaded = data.from_memory(["one text", "two texts", "three texts", "four texts"], labels)
    assert loaded.columns.task == task
    assert loaded.train.labels()[0] == first


def test_rows_for_a_finished_model() -> None:
    columns = data.Columns("text", "body", ("intent",), "classification")
    part = data.unlabelled_from_memory(["hello", "there"], columns)
    assert list(part.inputs()) == ["hello", "there"]
    assert list(data.unlabelled_from_memory({"body": ["hello"], "other": [1]}, columns).inputs()) == ["hello"]
    part = data.labelled_from_memory(["hello", "there"], ["a", "b"], columns, known=["a", "b"])
    assert part.labels() == ["a", "b"]
    part = data.labelled_from_memory({"body": ["hello"], "intent": ["b"]}, None, columns)
    assert part.labels() == ["b"]
    pixels = np.zeros((2, 5, 5), np.uint8)
    assert len(data.unlabelled_from_memory(pixels, data.Columns("image", "photo", ("k",), "classification"))) == 2


def test_long_lists_are_cut_into_chunks() -> None:
    texts = [f"text {n}" for n in range(10_000)]
    loaded = data.from_memory(texts, ["ab"[n % 2] for n in range(10_000)])
    assert loaded.validation is not None
    assert sorted([*loaded.train.inputs(), *loaded.validation.inputs()]) == sorted(texts)


def test_base_of_rows_in_memory() -> None:
    assert data.from_memory(["one", "two"], ["a", "b"]).train.base == Path()
