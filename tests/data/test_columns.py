"""What the columns mean: named, conventional, or by the look of the cells; always said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headstart.data.columns import Columns, infer
from headstart.data.read import Table
from headstart.errors import DataError
from headstart.spec import Spec


def columns_of(table: dict[str, list[Any]], task: str | None = None, **asked: Any) -> Columns:
    spec = Spec.make({"data": asked, "task": {"name": task} if task else {}})
    return infer(Table(pa.table(table), "t.csv", "memory", Path()), spec.data, spec.task)


TEXTS = [f"a longer message about matter {n}" for n in range(40)]
KINDS = ["ham", "spam"] * 20


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("text", "label"), ("text", "label")),
        (("Sentence", "Intent"), ("Sentence", "Intent")),
        (("review", "sentiment"), ("review", "sentiment")),
        (("title", "score"), ("title", "score")),
        (("words", "kind"), ("words", "kind")),
        (("kind", "words"), ("kind", "words")),
    ],
)
def test_names_then_looks(names: tuple[str, str], found: tuple[str, str]) -> None:
    columns = columns_of({names[0]: TEXTS, names[1]: KINDS, "id": [str(n) for n in range(40)]})
    if names == ("kind", "words"):  # the longer texts are the input, whatever the columns are called
        columns = columns_of({names[0]: KINDS, names[1]: TEXTS})
        assert (columns.input, columns.labels) == ("words", ("kind",))
        return
    assert (columns.input, columns.labels) == (found[0], (found[1],))
    assert (columns.modality, columns.task) == ("text", "classification")
    assert len(columns.said) == 3
    assert all(f"'{name}'" in columns.said[at] for at, name in enumerate(found))


def test_the_users_names_win_and_are_not_said() -> None:
    columns = columns_of({"text": TEXTS, "other": TEXTS, "label": KINDS, "k": KINDS[::-1]}, text="other", label="k")
    assert (columns.input, columns.labels) == ("other", ("k",))
    assert len(columns.said) == 1


@pytest.mark.parametrize(
    ("labels", "task", "phrase"),
    [
        ([str(n % 5) for n in range(40)], "classification", "5 different whole numbers (use --task regression"),
        ([n % 5 for n in range(40)], "classification", "use --task regression"),
        ([n * 7 for n in range(40)], "regression", "--task classification"),
        ([n / 7 for n in range(40)], "regression", "holds fractions"),
        ([f"{n / 7:.3f}" for n in range(40)], "regression", "holds fractions"),
        ([bool(n % 2) for n in range(40)], "classification", "2 different values"),
        (KINDS, "classification", "2 different values"),
        ([["a", "b"], ["b"]] * 20, "multilabel", "lists of labels"),
        ([[0.5, 2.0], [1.5, 0.0]] * 20, "regression", "lists of numbers"),
        (["a|b", "b|c", "a", "c"] * 10, "multilabel", "separated by '|'"),
        (["sad;angry", "sad", "angry", "sad;happy", "happy;angry", "happy"] * 6 + ["sad"] * 4, "multilabel", "';'"),
        (["yes, please", "no, thanks"] * 20, "classification", "2 different values"),
        (["Paris, France", "Lyon, France", "Oslo, Norway", "Bergen, Norway"] * 10, "classification", "4 different"),
    ],
)
def test_task_by_the_look_of_the_labels(labels: list[Any], task: str, phrase: str) -> None:
    columns = columns_of({"text": TEXTS, "label": labels})
    assert columns.task == task
    assert phrase in columns.said[-1]


def test_many_class_ids_are_classes() -> None:
    """77 ids from 0 to 76 with five rows each are no measurements; 385 different ages would be."""
    texts = [f"message number {n} or so" for n in range(385)]
    assert columns_of({"text": texts, "label": [n % 77 for n in range(385)]}).task == "classification"
    assert columns_of({"text": texts, "label": [n % 77 * 3 for n in range(385)]}).task == "regression"


def test_several_label_columns() -> None:
    flags = {"text": TEXTS, "p": ["0", "1"] * 20, "q": ["1", "1"] * 20}
    assert columns_of(flags, label=["p", "q"]).task == "multilabel"
    numbers = {"text": TEXTS, "p": [n / 3 for n in range(40)], "q": list(range(40))}
    columns = columns_of(numbers, label=["p", "q"])
    assert (columns.task, columns.labels) == ("regression", ("p", "q"))


def test_label_columns_with_one_prefix() -> None:
    columns = columns_of({"text": TEXTS, "label_p": [0, 1] * 20, "label_q": [1, 0] * 20})
    assert (columns.labels, columns.task) == (("label_p", "label_q"), "multilabel")


def test_named_task_and_separator() -> None:
    assert columns_of({"text": TEXTS, "label": [n % 5 for n in range(40)]}, task="regression").task == "regression"
    columns = columns_of({"text": TEXTS, "label": ["a b", "a", "b", "b a"] * 10}, separator=" ")
    assert (columns.task, columns.separator) == ("multilabel", " ")
    columns = columns_of({"text": TEXTS, "label": ["a,b", "a", "b", "c,b"] * 10}, task="multilabel")
    assert columns.separator == ","


def test_group_and_time_are_neither_input_nor_label() -> None:
    columns = columns_of({"note": TEXTS, "label": KINDS, "who": TEXTS[::-1]}, group="who")
    assert columns.input == "note"


def test_pictures_by_ending_and_by_type() -> None:
    paths = columns_of({"file": [f"p/{n}.JPG" for n in range(40)], "label": KINDS})
    assert (paths.modality, paths.input) == ("image", "file")
    content = columns_of({"scan": [b"x"] * 40, "kind": KINDS})
    assert (content.modality, content.input, content.labels) == ("image", "scan", ("kind",))
    pairs = columns_of({"image": [{"bytes": b"x", "path": "p"}] * 40, "label": KINDS})
    assert pairs.modality == "image"


def test_text_and_picture_must_be_chosen() -> None:
    both = {"image": [f"{n}.png" for n in range(40)], "text": TEXTS, "label": KINDS}
    with pytest.raises(DataError, match="--image image or --text text"):
        columns_of(both)
    assert columns_of(both, text="text").modality == "text"
    assert columns_of(both, image="image").modality == "image"


def test_json_and_back() -> None:
    columns = columns_of({"text": TEXTS, "label": ["a|b", "b|c", "a", "c"] * 10})
    assert Columns.from_json(json.loads(json.dumps(columns.to_json()))) == columns
    assert Columns.from_json({"modality": "text", "input": "t", "labels": ["l"], "task": "regression"}).said == ()
