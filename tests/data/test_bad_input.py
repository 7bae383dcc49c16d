"""Every kind of bad input ends in one DataError that says what was expected, what was received and what to do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from headstart import data
from headstart.data.columns import Columns
from headstart.data.images import MAX_PIXELS
from headstart.errors import BadInput, DataError, SpecError

GOOD = "text,label\nwhere is my card,card\nsend it back,refund\n"
TEXT = Columns("text", "text", ("label",), "classification")


def says(action: Callable[[], Any], *parts: str, kind: type[BadInput] = DataError) -> str:
    """The action is refused in one line that holds all the parts."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"
    assert "\n" not in message
    assert "Traceback" not in message
    assert caught.value.exit_code == 2
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


FILES: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "empty file": ("train.csv", b"", ("'train.csv' is empty", "expected rows as csv")),
    "blank file": ("train.csv", b"\n \n\n", ("is empty", "expected a header line")),
    "header only": ("train.csv", b"text,label\n", ("has a header (text, label) and no rows below it",)),
    "too many cells": (
        "train.csv",
        b"text,label\nhello, world,card\n",
        (
            "row 1 (line 2)",
            "has 3 cells, but the header has 2 (text, label)",
            "needs double quotes",
            "--on-bad-row skip",
        ),
    ),
    "too few cells": (
        "train.csv",
        b"text,label\na,b\nonly text\n",
        ("row 2 (line 3)", "has 1 cell,", "a cell is missing"),
    ),
    "ragged after a quoted newline": (
        "train.csv",
        b'text,label\n"two\nlines",b\nx,y,z\n',
        ("row 2 (line 4)",),
    ),
    "open quote": (
        "train.csv",
        b'text,label\na,b\n"never closed,b\nc,d\n',
        ("opens in row 2 (line 3)", "is never closed"),
    ),
    "stray quote": ("train.csv", b'text,label\n"say "yes" now",b\n', ("row 1 (line 2)", "write it twice")),
    "null byte": ("train.csv", b"text,label\na\0b,c\n", ("line 2", "null byte", "save or copy it again")),
    "doubled column": (
        "train.csv",
        b"text,label,label\na,b,c\n",
        ("has 2 columns called 'label'", "rename all but one"),
    ),
    "columns without names": ("train.csv", b"text,label,,\na,b,c,d\n", ("has 2 columns without a name",)),
    "cp1252": (
        "train.csv",
        "text,label\nok,a\ncafé,b\n".encode("cp1252"),
        ("line 3", "is not utf-8 (byte 0xe9)", "data.encoding=cp1252", "the line then reads 'café,b'"),
    ),
    "latin-1": ("train.csv", b"text,label\nx\x81\xe9,b\n", ("line 2", "data.encoding=latin-1")),
    "utf-16": ("train.csv", GOOD.encode("utf-16"), ("is not utf-8", "data.encoding=utf-16")),
    "utf-16 without mark": ("train.csv", GOOD.encode("utf-16-le"), ("every other byte is null", "encoding=utf-16-le")),
    "character cut short": ("train.csv", "text,label\na,é".encode()[:-1], ("middle of a character", "utf-8")),
    "Excel named csv": ("train.csv", b"PK\x03\x04" + bytes(40), ("Excel workbook", "save the sheet as csv")),
    "parquet named csv": ("train.csv", b"PAR1" + bytes(40), ("a parquet file", "rename it to end in .parquet")),
    "gzip named csv": ("train.csv", gzip.compress(GOOD.encode()), ("compressed with gzip", ".gz")),
    "not gzip": ("train.csv.gz", GOOD.encode(), ("is not a whole gzip file", "copy or download it again")),
    "gzip cut short": ("train.csv.gz", gzip.compress(GOOD.encode() * 99)[:-20], ("is not a whole gzip file",)),
    "spreadsheet": ("train.xlsx", b"x", ("is a spreadsheet", "save the sheet as csv")),
    "unknown ending": ("train.docx", b"x", ("its ending '.docx'", "expected csv, tsv, jsonl")),
    "no ending": ("train", b"x", ("cannot tell the format", "expected csv")),
    "not JSON": ("train.jsonl", b'{"text": "a"}\nhello\n', ("line 2", "is not a JSON object", "write one a line")),
    "JSON list line": (
        "train.jsonl",
        b'{"text": "a"}\n[1, 2]\n',
        ("line 2", "holds a JSON list", "expected an object"),
    ),
    "broken JSON file": ("train.json", b'[{"text": "a"},', ("is not valid JSON",)),
    "JSON list of texts": ("train.json", b'["a", "b"]', ("item 1", "is a JSON string", "expected an object")),
    "JSON without rows": ("train.jsonl", b"{}\n{}\n", ("has no rows",)),
    "not parquet": ("train.parquet", b"hello there", ("cannot be read as parquet", "write or copy it again")),
    "not arrow": ("train.arrow", b"hello there", ("cannot be read as an Arrow file",)),
    "no header": (
        "train.csv",
        b"where is it,card\nsend it,refund\nmine is lost,card\n",
        ("the first line", "looks like a row", "add a header line such as text,label"),
    ),
    "only numbers": (
        "train.csv",
        b"a,b\n1,2\n3,4\n",
        ("no column of texts, pictures or sounds", "(columns: a, b)", "--text COLUMN"),
    ),
    "no label": (
        "train.csv",
        b"text\nhello there\nhow are you\n",
        ("no column that looks like a label (columns: text)", "--label COLUMN"),
    ),
    "two texts": (
        "train.csv",
        b"question,comment,label\nhow long is it,about so long,a\nhow far is it,quite far,b\n",
        ("several columns", "may be the input", "--text question or --text comment"),
    ),
    "two labels": (
        "train.csv",
        b"text,intent,category\na b,x,1\nc d,y,2\n",
        ("may be the label", "--label intent or --label category"),
    ),
    "one class": (
        "train.csv",
        b"text,label\none thing,card\nother thing,card\n",
        ("all of 2 training rows", "('card')", "add rows with another"),
    ),
    "every row its own label": (
        "train.csv",
        ("text,label\n" + "".join(f"some text {n},name{n}\n" for n in range(30))).encode(),
        ("every row", "another label in 'label' (30 in 30 rows)", "--label COLUMN"),
    ),
    "empty text": (
        "train.csv",
        b"text,label\nhello,a\n  ,b\n,a\nbye,b\n",
        ("2 of 4 rows", "empty text in 2 rows (2, 3)", "--on-bad-row skip"),
    ),
    "no label in a row": (
        "train.csv",
        b"text,label\nhello,a\nthere,\nbye,b\n",
        ("1 of 3 rows", "no label in 1 row (2)"),
    ),
}


@pytest.mark.parametrize("case", FILES, ids=str)
def test_files(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Any) -> None:
    monkeypatch.chdir(tmp_path)
    name, content, parts = FILES[case]
    Path(name).write_bytes(content)
    says(lambda: data.load(spec(train=name)), *parts)


def test_the_good_file_is_read(write_text: Any, spec: Any) -> None:
    assert len(data.load(spec(train=write_text(GOOD))).train) == 2


def test_missing_file_names_the_nearest(write_text: Any, tmp_path: Path, spec: Any) -> None:
    write_text(GOOD)
    says(lambda: data.load(spec(train=tmp_path / "trian.csv")), "there is no", "did you mean 'train.csv'?")


def test_missing_folder(tmp_path: Path, spec: Any) -> None:
    says(
        lambda: data.load(spec(train=tmp_path / "no" / "such" / "x.csv")), "there is no folder", "no'", "working folder"
    )


def test_missing_file_in_an_empty_folder(tmp_path: Path, spec: Any) -> None:
    says(lambda: data.load(spec(train=tmp_path / "x.csv")), "holds no data files", "expected csv")


def test_no_training_data(spec: Any) -> None:
    says(lambda: data.load(spec()), "there is no training data", "headstart fit train.csv")


def test_unknown_encoding(write_text: Any, spec: Any) -> None:
    says(lambda: data.load(spec(train=write_text(GOOD), encoding="utf8-sgi")), "no encoding is called 'utf8-sgi'")
    says(lambda: data.load(spec(train=write_text(GOOD), encoding="latin1x")), "did you mean 'latin-1'?")


def test_utf16_asked_for_and_not_there(write_text: Any, spec: Any) -> None:
    says(lambda: data.load(spec(train=write_text(GOOD), encoding="utf-16")), "utf-16", "data.encoding=utf-8")


def test_column_that_is_not_there(write_text: Any, spec: Any) -> None:
    path = write_text(GOOD)
    says(lambda: data.load(spec(train=path, text="txt")), "has no column 'txt' (for text)", "did you mean 'text'?")
    says(lambda: data.load(spec(train=path, label="lable")), "'lable' (for label)", "did you mean 'label'?")
    says(lambda: data.load(spec(train=path, group="customer")), "'customer' (for data.group)", "known: label, text")
    says(lambda: data.read(path, columns=["txt"]), "has no column 'txt'", "did you mean 'text'?")


def test_columns_that_contradict(write_text: Any, spec: Any) -> None:
    path = write_text(GOOD)
    says(lambda: data.load(spec(train=path, text="text", image="label")), "both a text column", "name one")
    says(lambda: data.load(spec(train=path, text="text", label="text")), "must differ")
    path = write_text("text,label,who,when\nwhere is it,a,k,1\nsend it,b,l,2\n")
    says(lambda: data.load(spec(train=path, group="who", time="when")), "both set", "set data.split to group or time")


def test_unknown_task(write_text: Any, spec: Any) -> None:
    path = write_text(GOOD)
    says(lambda: data.load(spec(train=path, task="clasification")), "did you mean 'classification'?", kind=SpecError)


def test_test_file_without_the_label(write_text: Any, spec: Any) -> None:
    train, test = write_text(GOOD), write_text("text,lable\na b,card\n", "test.csv")
    says(lambda: data.load(spec(train=train, test=test)), "test.csv", "no column 'label'", "did you mean 'lable'?")


def test_class_that_training_lacks(write_csv: Any, rows: Any, spec: Any) -> None:
    train = write_csv(rows(ham=20, spam=20))
    test = write_csv([["new thing", "Ham"], ["another", "eggs"], ["third", "ham"]], name="test.csv")
    says(
        lambda: data.load(spec(train=train, test=test)),
        "in 2 test rows",
        "'Ham', 'eggs'",
        "is 'Ham' meant to be 'ham'?",
        "--on-bad-row skip",
    )


def test_label_that_is_no_number(write_csv: Any, spec: Any) -> None:
    path = write_csv([[f"text {n}", n / 3] for n in range(30)] + [["text", "1,5"], ["text b", "nan"]])
    says(
        lambda: data.load(spec(train=path, task="regression")),
        "2 of 32 rows",
        "label is not a number in 2 rows (31, 32: '1,5')",
    )


def test_several_label_columns(write_csv: Any, spec: Any) -> None:
    path = write_csv([["a b", "1", "x"], ["c d", "0", "y"]], ("text", "p", "q"))
    says(lambda: data.load(spec(train=path, label=["p", "q"])), "'q' holds words", "0 and 1", "numbers")
    path = write_csv([["a b", "1", "0"], ["c d", "0", "maybe"]], ("text", "p", "q"))
    says(
        lambda: data.load(spec(train=path, label=["p", "q"], task="multilabel")),
        "neither 0 nor 1 in 1 row (2: 'maybe')",
    )
    says(lambda: data.load(spec(train=path, label=["p", "q"], task="classification")), "takes one label column", "p, q")


def test_lists_and_one_label(tmp_path: Path, write_text: Any, spec: Any) -> None:
    path = write_text('{"text": "a b", "label": ["x"]}\n{"text": "c d", "label": ["y", "x"]}\n', "train.jsonl")
    says(lambda: data.load(spec(train=path, task="classification")), "'label' holds lists", "--task multilabel")


def test_targets_of_different_number(write_text: Any, spec: Any) -> None:
    path = write_text('{"text": "a b", "label": [0.5, 2.5]}\n{"text": "c d", "label": [0.1]}\n', "train.jsonl")
    says(lambda: data.load(spec(train=path)), "another number of targets in 1 row (2")


def test_all_targets_equal(write_csv: Any, spec: Any) -> None:
    path = write_csv([[f"text {n}", 2.5] for n in range(30)])
    says(lambda: data.load(spec(train=path)), "the same target (2.5)")


def test_per_class_of_numbers(write_csv: Any, spec: Any) -> None:
    path = write_csv([[f"text {n}", n / 3] for n in range(30)])
    says(lambda: data.load(spec(train=path, per_class=3)), "data.per_class needs classes", "data.fraction")


def test_fractions_that_leave_nothing(write_csv: Any, rows: Any, spec: Any) -> None:
    path = write_csv(rows(a=20, b=20))
    says(lambda: data.load(spec(train=path, validation_fraction=0.5, test_fraction=0.5)), "leave no rows for training")


def test_one_group_and_one_time(write_csv: Any, spec: Any) -> None:
    path = write_csv([[f"text {n}", "ab"[n % 2], "x"] for n in range(40)], ("text", "label", "who"))
    says(lambda: data.load(spec(train=path, group="who")), "two groups or more", "('x')")
    says(lambda: data.load(spec(train=path, time="who")), "row 1 has 'x' in the time column 'who'", "2024-12-31")


def test_times_in_two_ways(write_csv: Any, spec: Any) -> None:
    path = write_csv([["a b", "x", "2024-01-01"], ["c d", "y", "17"]], ("text", "label", "when"))
    says(lambda: data.load(spec(train=path, time="when")), "mixes numbers (row 2) and dates (row 1)")


def test_group_that_is_blank(write_csv: Any, spec: Any) -> None:
    path = write_csv([["a b", "x", "k"], ["c d", "y", " "]], ("text", "label", "who"))
    says(lambda: data.load(spec(train=path, group="who")), "no value in 'who' in 1 row (2)")


def test_all_inputs_equal(write_csv: Any, spec: Any) -> None:
    path = write_csv([["same text", "ab"[n % 2]] for n in range(40)])
    says(lambda: data.load(spec(train=path)), "all inputs are equal", "give other rows")


def test_no_row_is_left(write_csv: Any, spec: Any) -> None:
    path = write_csv([["", "a"], [" ", "b"]])
    says(lambda: data.load(spec(train=path, text="text", on_bad_row="skip")), "no row of", "empty text in 2 rows")


def test_folder_without_pictures(tmp_path: Path, spec: Any) -> None:
    (tmp_path / "flowers" / "rose").mkdir(parents=True)
    (tmp_path / "flowers" / "rose" / "notes.txt").write_text("x")
    says(lambda: data.load(spec(train=tmp_path / "flowers")), "holds no pictures", "expected CLASS/picture.jpg", ".png")


def test_folder_of_files_without_a_training_file(write_text: Any, tmp_path: Path, spec: Any) -> None:
    write_text(GOOD, "tickets.csv")
    says(
        lambda: data.load(spec(train=tmp_path)),
        "without one called train",
        "tickets.csv'",
        "train, validation and test",
    )


def test_pictures_without_classes(tmp_path: Path, pictures: Any, spec: Any) -> None:
    folder = pictures({"rose": 2})
    says(lambda: data.load(spec(train=folder / "rose")), "no class folders", "expected CLASS/picture.jpg")


def test_pictures_beside_classes(pictures: Any, spec: Any) -> None:
    folder = pictures({"rose": 2, "tulip": 2})
    (folder / "rose" / "000.png").rename(folder / "loose.png")
    says(lambda: data.load(spec(train=folder)), "1 picture beside them", "'loose.png'", "move each into a class folder")


def test_two_folders_for_one_split(pictures: Any, spec: Any) -> None:
    folder = pictures({"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1})
    says(lambda: data.load(spec(train=folder)), "'val' and 'valid' for the validation split", "keep one")


def break_pictures(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a" / "cut.jpg")
    whole = (folder / "a" / "cut.jpg").read_bytes()
    (folder / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "a" / "text.png").write_text("this is no picture")
    (folder / "b" / "empty.png").write_bytes(b"")
    png = (folder / "a" / "000.png").read_bytes()
    (folder / "b" / "cut.png").write_bytes(png[: len(png) // 2])
    side = int(MAX_PIXELS**0.5) + 2
    header = b"P5 %d %d 255\n" % (side, side)
    (folder / "b" / "huge.pgm").write_bytes(header + bytes(10))


def test_broken_pictures(pictures: Any, spec: Any) -> None:
    folder = pictures({"a": 3, "b": 3})
    break_pictures(folder)
    message = says(
        lambda: data.load(spec(train=folder)),
        "5 of 11 rows",
        "unreadable image in 4 rows",
        "huge image in 1 row",
        f"more than {MAX_PIXELS}",
        "cut.jpg",
        "--on-bad-row skip",
    )
    assert message.count("rows of") == 1


def test_large_pictures_cut_short(tmp_path: Path) -> None:
    """Above the size at which every picture is decoded, the end of the file tells."""
    from headstart.data.images import BROKEN, look

    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    for name in ("big.jpg", "big.png"):
        Image.fromarray(noise).save(tmp_path / name, quality=100)
        whole = (tmp_path / name).read_bytes()
        assert len(whole) > 90_000
        assert look(name, tmp_path).problem is None
        assert look(whole, tmp_path).size == 90_000
        assert look(whole[:-30_000], tmp_path).problem == BROKEN


def test_picture_that_is_not_there(write_csv: Any, spec: Any) -> None:
    path = write_csv([["no/such.jpg", "a"], ["other.jpg", "b"]], ("image", "label"))
    says(lambda: data.load(spec(train=path)), "image file missing in 2 rows (1, 2: there is no 'no/such.jpg' in")


def test_saved_folder_without_its_shard(tmp_path: Path, spec: Any) -> None:
    (tmp_path / "saved").mkdir()
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    says(lambda: data.load(spec(train=tmp_path / "saved")), "is not whole", "data-00000-of-00001.arrow missing")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"damaged")
    says(lambda: data.load(spec(train=tmp_path / "saved")), "data file", "is damaged")
    (tmp_path / "saved" / "state.json").write_text("{")
    says(lambda: data.load(spec(train=tmp_path / "saved")), "state.json' is damaged")


def test_saved_folder_without_a_training_split(tmp_path: Path, spec: Any) -> None:
    for split in ("train_a", "test"):
        (tmp_path / "s" / split).mkdir(parents=True)
        table = pa.table({"text": ["a"], "label": ["b"]})
        with (
            pa.OSFile(str(tmp_path / "s" / split / "d.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)
        (tmp_path / "s" / split / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
    (tmp_path / "s" / "dataset_dict.json").write_text('{"splits": ["train_a", "test"]}')
    says(lambda: data.load(spec(train=tmp_path / "s")), "has no train rows", "its splits are test")
    (tmp_path / "s" / "dataset_dict.json").write_text('{"splits": ["train_a"]}')
    says(lambda: data.load(spec(train=tmp_path / "s")), "has the splits train_a", "give one of them")


def test_prediction_without_the_column(write_csv: Any) -> None:
    path = write_csv([["hello", 1]], ("texts", "id"), "new.csv")
    says(
        lambda: data.load_unlabelled(path, TEXT),
        "the model expects its texts in the column 'text'",
        "has the columns texts, id",
        "did you mean 'texts'?",
    )


def test_prediction_of_an_empty_text(write_csv: Any) -> None:
    path = write_csv([["hello"], [" "]], ("text",), "new.csv")
    says(lambda: data.load_unlabelled(path, TEXT), "1 of 2 rows", "empty text in 1 row (2)")


def test_evaluation_without_labels_and_with_unknown_ones(write_csv: Any) -> None:
    path = write_csv([["hello"]], ("text",), "new.csv")
    says(lambda: data.load_labelled(path, TEXT), "the model expects the right answers in the column 'label'")
    path = write_csv([["hello", "ham"], ["there", "spm"]])
    says(
        lambda: data.load_labelled(path, TEXT, labels=["ham", "spam"]),
        "class not in train in 1 row (2: the model does not know 'spm', did you mean 'spam'?)",
    )


MEMORY: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "unequal lengths": (["a", "b"], ["x"], ("2 inputs and 1 label:", "one label for each input")),
    "one text": ("hello", ["x"], ("expected a list of inputs, received a single str", "['hello']")),
    "numbers": ([1, 2], ["x", "y"], ("input 1 is of type int", "expected texts")),
    "nothing": ([], [], ("there are no rows",)),
    "float pixels": (
        np.zeros((2, 4, 4)),
        ["x", "y"],
        ("picture 1", "float64", "expected uint8", "(pictures * 255).astype('uint8')"),
    ),
    "channels first": (
        np.zeros((2, 3, 9, 9), np.uint8),
        ["x", "y"],
        ("has the shape (3, 9, 9)", "expected (height, width"),
    ),
    "ragged dict": ({"text": ["a", "b"], "label": ["x"]}, None, ("differ in length (text 2, label 1)",)),
    "labels twice": ({"text": ["a"], "label": ["x"]}, ["x"], ("have a column 'label'", "give one of them")),
    "None inside": (["a", None, "c"], ["x", "y", "x"], ("empty text in 1 row (2)",)),
    "label None": (["a", "b", "c"], ["x", None, "y"], ("no label in 1 row (2)",)),
}


@pytest.mark.parametrize("case", MEMORY, ids=str)
def test_memory(case: str) -> None:
    inputs, labels, parts = MEMORY[case]
    says(lambda: data.from_memory(inputs, labels), *parts)


def test_pictures_for_a_model_of_texts() -> None:
    says(
        lambda: data.unlabelled_from_memory(np.zeros((2, 4, 4), np.uint8), TEXT),
        "the model expects text inputs, received image inputs",
    )


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    says(lambda: data.check_output(tmp_path / "x.xlsx"), "expected a name that ends in .csv")
    says(lambda: data.check_output(tmp_path / "no" / "x.csv"), "there is no folder", "make it first")
    (tmp_path / "y.csv").mkdir()
    says(lambda: data.check_output(tmp_path / "y.csv"), "it is a folder")
    says(lambda: data.write_table([pa.table({"image": [b"x"]})], tmp_path / "x.csv"), "'image' holds bytes", ".parquet")
    assert not (tmp_path / "x.csv").exists()
