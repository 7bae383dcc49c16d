"""From files to parts: rows add up, reasons are kept, everything is lazy and repeatable."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart import data


def test_labels_of_every_task(write_csv: Any, spec: Any) -> None:
    texts = [f"some text {n}" for n in range(40)]
    part = data.load(spec(train=write_csv([[t, f"{n / 4}"] for n, t in enumerate(texts)]))).train
    assert part.labels()[:2] == [float(part.column("label")[0]), float(part.column("label")[1])]
    tags = ["a|b", " b | c ", "a", "c|c"] * 10
    part = data.load(spec(train=write_csv(list(zip(texts, tags, strict=True))), on_bad_row="skip")).train
    decoded = dict(zip(part.column("label"), part.labels(), strict=True))
    assert decoded == {"a|b": ["a", "b"], " b | c ": ["b", "c"], "a": ["a"], "c|c": ["c"]}
    rows = [[t, n % 2, n % 3 // 2] for n, t in enumerate(texts)]
    part = data.load(spec(train=write_csv(rows, ("text", "p", "q")), label=["p", "q"])).train
    assert part.labels()[:3] == [
        [name for name, cell in zip("pq", row, strict=True) if cell == "1"]
        for row in list(zip(part.column("p"), part.column("q"), strict=True))[:3]
    ]
    rows = [[t, n / 2, n / 4] for n, t in enumerate(texts)]
    part = data.load(spec(train=write_csv(rows, ("text", "p", "q")), label=["p", "q"])).train
    assert all(len(label) == 2 and label[0] == 2 * label[1] for label in part.labels())


def test_a_multilabel_row_may_have_no_label(write_csv: Any, spec: Any) -> None:
    rows = [[f"some text {n}", ["a|b", "", "b|c", "c", "a"][n % 5]] for n in range(100)]
    loaded = data.load(spec(train=write_csv(rows), task="multilabel"))
    assert [] in loaded.train.labels()
    assert loaded.rows.dropped == {}


def test_numbers_as_classes_read_alike_from_every_format(tmp_path: Path, write_csv: Any, spec: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, labels = [f"some text {n}" for n in range(30)], [n % 3 for n in range(30)]
    pq.write_table(pa.table({"text": texts, "label": pa.array(labels, pa.float64())}), tmp_path / "t.parquet")
    write_csv(list(zip(texts, labels, strict=True)))
    first = data.load(spec(train=tmp_path / "t.parquet"))
    second = data.load(spec(train=tmp_path / "train.csv"))
    assert first.train.labels() == second.train.labels()
    assert first.fingerprint == second.fingerprint
    assert set(first.train.labels()) == {"0", "1", "2"}


def test_skipped_rows_are_counted_by_reason(write_text: Any, write_csv: Any, rows: Any, spec: Any) -> None:
    good = "".join(f"{text},{label}\n" for text, label in rows(a=30, b=30))
    train = write_text("text,label\n" + "one,two,three\n ,a\nhello,\n" + good + ",\n")
    test = write_csv([["fresh text", "a"], ["another", "b"], ["what", "eggs"]], name="test.csv")
    loaded = data.load(spec(train=train, test=test, on_bad_row="skip"))
    assert loaded.rows.to_json() == {
        "read": 67,
        "trained": 54,
        "validated": 6,
        "tested": 2,
        "unlabelled": 0,
        "dropped": {"empty text": 2, "no label": 1, "ragged row": 1, "class not in train": 1},
    }
    assert loaded.rows.adds_up
    assert loaded.train.dropped == {"empty text": 2, "no label": 1, "ragged row": 1}
    assert loaded.train.read == 64
    assert loaded.test is not None and loaded.test.dropped == {"class not in train": 1}
    assert any(finding.code == "bad-rows" for finding in loaded.findings)


def test_row_numbers_are_those_of_the_file(write_text: Any, rows: Any, spec: Any) -> None:
    """Rows that were left out count too, so that a number always leads to the row."""
    made = rows(a=30, b=30)
    lines = ["x,y,z", " ,a", *[f"{text},{label}" for text, label in made]]
    loaded = data.load(spec(train=write_text("text,label\n" + "\n".join(lines)), on_bad_row="skip"))
    assert loaded.validation is not None
    for part in (loaded.train, loaded.validation):
        assert part.source_rows.dtype == np.int64
        for number, text in zip(part.source_rows, part.inputs(), strict=True):
            assert lines[number - 1].split(",")[0] == text


def test_inputs_are_a_sequence(write_csv: Any, rows: Any, spec: Any) -> None:
    inputs = data.load(spec(train=write_csv(rows(a=30, b=30)))).train.inputs()
    everything = list(inputs)
    assert len(inputs) == len(everything) == 54
    assert inputs[0] == everything[0] and inputs[-1] == everything[-1] and inputs[np.int64(3)] == everything[3]
    assert inputs[2:5] == everything[2:5]
    with pytest.raises(IndexError):
        inputs[54]


def test_few_rows_keep_all_for_training(write_csv: Any, rows: Any, spec: Any) -> None:
    path = write_csv(rows(a=8, b=8, c=8))
    loaded = data.load(spec(train=path))
    assert loaded.validation is None
    assert len(loaded.train) == 24
    assert any("8 training rows a class on average, fewer than 16" in sentence for sentence in loaded.said)
    assert data.load(spec(train=write_csv(rows(a=16, b=16)))).validation is not None


def test_a_class_of_one_row_trains_and_is_said(write_csv: Any, rows: Any, spec: Any) -> None:
    loaded = data.load(spec(train=write_csv(rows(a=40, b=40, rare=1))))
    assert "rare" in loaded.train.labels()
    assert any("1 class with a single row stay in training: 'rare'" in sentence for sentence in loaded.said)


def test_split_and_sample_are_repeatable(write_csv: Any, rows: Any, spec: Any) -> None:
    path = write_csv(rows(a=60, b=60))
    same = [data.load(spec(train=path, test_fraction=0.2, fraction=0.5, seed=3)) for _ in range(2)]
    other = data.load(spec(train=path, test_fraction=0.2, fraction=0.5, seed=4))
    assert same[0].fingerprint == same[1].fingerprint != other.fingerprint
    assert list(same[0].train.inputs()) == list(same[1].train.inputs()) != list(other.train.inputs())


def test_fingerprint_is_of_contents_not_of_places(write_csv: Any, rows: Any, spec: Any, tmp_path: Path) -> None:
    made = rows(a=30, b=30)
    first = data.load(spec(train=write_csv(made))).fingerprint
    assert data.load(spec(train=write_csv(made, name="moved.csv"))).fingerprint == first
    extra = [[*row, "note"] for row in made]
    assert data.load(spec(train=write_csv(extra, ("text", "label", "unused")))).fingerprint == first
    made[5][0] += "!"
    assert data.load(spec(train=write_csv(made))).fingerprint != first
    made[5][0] = made[5][0][:-1]
    made[5][1] = "b" if made[5][1] == "a" else "a"
    assert data.load(spec(train=write_csv(made))).fingerprint != first


def test_fewer_labels_are_few_for_validation_too(write_csv: Any, rows: Any, spec: Any) -> None:
    path = write_csv(rows(a=50, b=50, c=45))
    test = {"test_fraction": 0.2}
    whole = data.load(spec(train=path, **test))
    many = data.load(spec(train=path, per_class=20, **test))
    few = data.load(spec(train=path, per_class=8, **test))
    assert whole.test is not None and many.test is not None and few.test is not None
    assert list(whole.test.inputs()) == list(many.test.inputs()) == list(few.test.inputs())
    assert many.validation is not None and few.validation is None
    assert Counter(many.train.labels()) + Counter(many.validation.labels()) == {"a": 20, "b": 20, "c": 20}
    assert Counter(few.train.labels()) == {"a": 8, "b": 8, "c": 8}
    chosen = {*many.train.inputs(), *many.validation.inputs()}
    assert set(few.train.inputs()) < chosen
    assert few.rows.dropped == {"not sampled": 145 - len(few.test) - 24}
    assert few.rows.adds_up
    assert Counter(data.load(spec(train=path, fraction=0.01)).train.labels()) == {"a": 1, "b": 1, "c": 1}


def test_groups_stay_together(write_csv: Any, spec: Any) -> None:
    rows = [[f"some text {n}", "ab"[n % 2], f"user{n // 4}"] for n in range(120)]
    path = write_csv(rows, ("text", "label", "user"))
    loaded = data.load(spec(train=path, group="user", test_fraction=0.2, seed=1))
    assert loaded.validation is not None and loaded.test is not None
    sides = [set(part.column("user")) for part in (loaded.train, loaded.validation, loaded.test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert [len(loaded.validation), len(loaded.test)] == [12, 24]
    assert any("split by group, because data.group is set" in sentence for sentence in loaded.said)


@pytest.mark.parametrize("stamps", [[f"2024-{n // 28 + 1:02d}-{n % 28 + 1:02d}" for n in range(100)], list(range(100))])
def test_the_latest_rows_validate(write_csv: Any, spec: Any, stamps: list[Any]) -> None:
    order = np.random.default_rng(0).permutation(100)
    path = write_csv([[f"some text {n}", "ab"[n % 2], stamps[n]] for n in order], ("text", "label", "when"))
    loaded = data.load(spec(train=path, split="time", time="when", test_fraction=0.1))
    assert loaded.validation is not None and loaded.test is not None
    parts = [sorted(map(str, part.column("when"))) for part in (loaded.train, loaded.validation, loaded.test)]
    assert parts[2] == sorted(map(str, stamps[90:]))
    assert parts[1] == sorted(map(str, stamps[80:90]))


def test_pictures(pictures: Any, spec: Any, tmp_path: Path) -> None:
    folder = pictures({"train/a": 18, "train/b": 18, "test/a": 2, "test/b": 2})
    loaded = data.load(spec(train=folder))
    assert (len(loaded.train), len(loaded.validation or ()), len(loaded.test or ())) == (32, 4, 4)
    assert all(Path(path).is_file() for path in loaded.train.inputs())
    shutil.move(folder, tmp_path / "elsewhere")
    assert data.load(spec(train=tmp_path / "elsewhere")).fingerprint == loaded.fingerprint


def test_broken_pictures_are_skipped(pictures: Any, spec: Any) -> None:
    folder = pictures({"a": 6, "b": 6})
    (folder / "a" / "002.png").write_bytes(b"nothing")
    loaded = data.load(spec(train=folder, on_bad_row="skip"))
    assert loaded.rows.to_json()["dropped"] == {"unreadable image": 1}
    assert len(loaded.train) == 11
    assert not any(path.endswith("a/002.png") for path in loaded.train.inputs())


def test_table_with_paths(pictures: Any, write_csv: Any, spec: Any, tmp_path: Path) -> None:
    """Paths in a table start at the table's own folder, wherever the run stands."""
    pictures({"a": 6, "b": 6}, root="pics")
    path = write_csv([[f"pics/{c}/{n:03d}.png", c] for c in "ab" for n in range(6)], ("photo", "kind"))
    loaded = data.load(spec(train=path))
    assert loaded.columns.input == "photo"
    assert Path(loaded.train.inputs()[0]) == tmp_path / "pics" / "a" / "000.png"


def test_split_of_a_folder_named_by_hand(pictures: Any, spec: Any) -> None:
    folder = pictures({"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 1})
    other = pictures({"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 1}, root="other")
    loaded = data.load(spec(train=folder, test=other))
    assert loaded.test is not None and len(loaded.test) == 2
    assert loaded.rows.read == 8


def test_rows_for_a_finished_model(write_csv: Any, pictures: Any) -> None:
    text = data.Columns("text", "text", ("label",), "classification")
    path = write_csv([["hello", "7"], ["there", "8"]], ("text", "id"), "new.csv")
    part = data.load_unlabelled(path, text)
    assert part.table.to_pylist() == [{"text": "hello", "id": "7"}, {"text": "there", "id": "8"}]
    assert list(part.inputs()) == ["hello", "there"]
    part = data.load_labelled(write_csv([["hello", "a"], ["x", "c"]]), text, labels=["a", "b"], on_bad_row="skip")
    assert part.labels() == ["a"] and part.dropped == {"class not in train": 1} and part.read == 2
    image = data.Columns("image", "photo", ("kind",), "classification")
    folder = pictures({"a": 2, "b": 1})
    assert data.load_labelled(folder, image).labels() == ["a", "a", "b"]
    assert len(data.load_unlabelled(folder / "a", image)) == 2
    assert len(data.load_unlabelled(folder / "a" / "000.png", image)) == 1
