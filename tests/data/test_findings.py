"""What the checks find, against slow and obvious counts."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import data
from headstart.data.checks import Rows, check
from headstart.values import Finding


def codes(loaded: data.Data, code: str) -> list[Finding]:
    return [finding for finding in loaded.findings if finding.code == code]


def part(name: str, keys: list[int], labels: list[Any]) -> Rows:
    count = len(keys)
    return Rows(
        name,
        np.arange(1, count + 1),
        np.array(keys, np.uint64),
        np.ones(count, np.int64),
        labels,
        np.zeros(count, bool),
    )


KEYED = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("ab")), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(KEYED, KEYED)
def test_against_all_pairs(train: list[tuple[int, str]], test: list[tuple[int, str]]) -> None:
    """Duplicates, leakage and conflicts, compared with looking at all pairs of rows."""
    found = check(
        part("train", *map(list, zip(*train, strict=True))),  # type: ignore[arg-type]
        [part("test", *map(list, zip(*test, strict=True)))],  # type: ignore[arg-type]
        "classification",
        "text",
    )

    def rows(code: str, word: str) -> tuple[int, ...]:
        return next((f.rows for f in found if f.code == code and word in f.message), ())

    again = tuple(at + 1 for at, (key, _) in enumerate(train) if key in [k for k, _ in train[:at]])
    assert rows("duplicates", "train rows") == again
    leaked = tuple(at + 1 for at, (key, _) in enumerate(test) if any(key == k for k, _ in train))
    assert rows("leakage", "test texts") == leaked
    fought = tuple(at + 1 for at, (key, label) in enumerate(train) if any(k == key and x != label for k, x in train))
    assert rows("conflicting-labels", "") == fought


def test_equal_but_for_case_and_space(write_csv: Any, rows: Any, spec: Any) -> None:
    train = write_csv([*rows(a=20, b=20), ["Where  is MY card", "a"]])
    test = write_csv([["where is my card ", "a"], ["new", "b"]], name="test.csv")
    loaded = data.load(spec(train=train, test=test))
    (leak,) = codes(loaded, "leakage")
    assert leak.level == "warning" and leak.rows == (1,)
    assert "1 of 2 test texts also stand in earlier parts" in leak.message


def test_leaks_into_the_split_off_rows_count_too(write_csv: Any, rows: Any, spec: Any) -> None:
    made = rows(a=50, b=50)
    loaded = data.load(spec(train=write_csv(made), test=write_csv(made, name="test.csv")))
    (leak,) = codes(loaded, "leakage")
    assert "100 of 100 test texts" in leak.message
    assert "90 in the train rows, 10 in the validation rows" in leak.message


def test_conflicts(write_csv: Any, rows: Any, spec: Any) -> None:
    path = write_csv([*rows(a=6, b=3), ["the same", "a"], ["The Same", "b"], ["the same", "a"]])
    (conflict,) = codes(data.load(spec(train=path)), "conflicting-labels")
    assert conflict.rows == (10, 11, 12)
    assert "1 text stands in the training rows with different labels (3 rows)" in conflict.message


def test_spelling(write_csv: Any, rows: Any, spec: Any) -> None:
    made = rows(Ham=20, spam=20)
    made[0][1], made[1][1] = "ham", "Ham "
    (spelling,) = codes(data.load(spec(train=write_csv(made))), "label-spelling")
    assert "'Ham' (19 rows) and 'Ham ' (1 row) and 'ham' (1 row)" in spelling.message


def test_imbalance(write_csv: Any, rows: Any, spec: Any) -> None:
    (finding,) = codes(data.load(spec(train=write_csv(rows(a=110, b=9)), validation_fraction=0.02)), "imbalance")
    assert "'a' has" in finding.message and "task.class_weights=balanced" in finding.message
    assert not codes(data.load(spec(train=write_csv(rows(a=50, b=6)))), "imbalance")


def test_classes_that_are_not_tested(write_csv: Any, rows: Any, spec: Any) -> None:
    train = write_csv(rows(a=20, b=20, c=20))
    loaded = data.load(spec(train=train, test=write_csv([["new", "a"]], name="test.csv")))
    (finding,) = codes(loaded, "class-missing-in-split")
    assert finding.level == "warning"
    assert "no test row has 2 classes of the training rows: 'b', 'c'" in finding.message


def test_tiny(write_csv: Any, rows: Any, spec: Any) -> None:
    train, test = write_csv(rows(a=5, b=5)), write_csv(rows(a=5, b=5), name="test.csv")
    messages = [finding.message for finding in codes(data.load(spec(train=train, test=test)), "tiny")]
    assert any("only 10 training rows" in message for message in messages)
    assert any("only 10 test rows" in message for message in messages)


def test_texts_in_a_wrong_encoding(write_csv: Any, rows: Any, spec: Any) -> None:
    bad = [text.encode().decode("cp1252") for text in ("café", "it\u2019s", "£5")] + ["caf\ufffd"]
    path = write_csv(
        [*rows(a=3, b=3), *[[text, "a"] for text in bad], ["SÃO PAULO, él, naïve \u2013 \u201cok\u201d", "b"]]
    )
    (finding,) = codes(data.load(spec(train=path)), "encoding")
    assert finding.rows == (7, 8, 9, 10)


def test_sizes(write_csv: Any, rows: Any, pictures: Any, spec: Any) -> None:
    (note,) = codes(
        data.load(spec(train=write_csv([["abc", "a"], ["abcdefg", "b"], ["abcde", "a"]]), text="text")), "sizes"
    )
    assert note.level == "note" and "5 characters at the median and 7 at most" in note.message
    (note,) = codes(data.load(spec(train=pictures({"a": 2, "b": 2}))), "sizes")
    assert "16 x 16 at the median" in note.message


def test_equal_pictures_are_found_by_content(pictures: Any, spec: Any) -> None:
    folder = pictures({"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2})
    (folder / "test" / "b" / "copy.png").write_bytes((folder / "train" / "b" / "001.png").read_bytes())
    (folder / "train" / "a" / "copy.png").write_bytes((folder / "train" / "b" / "000.png").read_bytes())
    loaded = data.load(spec(train=folder))
    assert "1 of 5 test pictures" in codes(loaded, "leakage")[0].message
    assert (
        "1 picture stands in the training rows with different labels" in codes(loaded, "conflicting-labels")[0].message
    )
    assert Counter(finding.level for finding in loaded.findings)["error"] == 0


def test_time_grows_with_the_rows_not_with_their_pairs() -> None:
    count = 200_000
    rng = np.random.default_rng(0)
    labels = [str(n % 7) for n in range(count)]
    train = part("train", rng.integers(0, count, count).tolist(), labels)
    test = part("test", rng.integers(0, count, count).tolist(), labels)
    started = time.perf_counter()
    check(train, [test], "classification", "text")
    assert time.perf_counter() - started < 8
