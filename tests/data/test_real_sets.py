"""Real data sets, read in place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from headstart import data


def leaks(loaded: data.Data, part: str) -> list[str]:
    return [f.message for f in loaded.findings if f.code == "leakage" and f"{part} texts" in f.message]


def test_banking77(data_root: Path, spec: Any) -> None:
    loaded = data.load(spec(train=data_root / "banking77"))
    counts = {"read": 13083, "trained": 9000, "validated": 1003, "tested": 3080, "unlabelled": 0, "dropped": {}}
    assert loaded.rows.to_json() == counts
    assert (loaded.columns.input, loaded.columns.labels, loaded.columns.task) == ("text", ("label",), "classification")
    assert len(set(loaded.train.labels())) == 77


def test_banking77_ten_shot(data_root: Path, spec: Any) -> None:
    folder = data_root / "banking77"
    loaded = data.load(spec(train=folder / "train.csv", test=folder / "test.csv", per_class=10))
    counts = Counter(loaded.train.labels())
    assert set(counts.values()) == {10} and len(counts) == 77
    assert loaded.rows.adds_up and loaded.rows.read == 12080


def test_sms_spam_leaks_108_test_texts(data_root: Path, spec: Any) -> None:
    folder = data_root / "sms_spam"
    loaded = data.load(spec(train=folder / "train.csv", test=folder / "test.csv"))
    (message,) = leaks(loaded, "test")
    assert message.startswith("108 of 1114 test texts")
    given = data.load(spec(train=folder))
    (message,) = leaks(given, "test")
    assert "108 in the train rows" in message
    (leak,) = [f for f in given.findings if f.code == "leakage" and "test texts" in f.message]
    train = {" ".join(text.casefold().split()) for text in given.train.inputs()}
    validation = {" ".join(text.casefold().split()) for text in (given.validation or given.train).inputs()}
    assert given.test is not None
    expected = [
        int(number)
        for number, text in zip(given.test.source_rows, given.test.inputs(), strict=True)
        if " ".join(text.casefold().split()) in train | validation
    ]
    assert list(leak.rows) == expected


def test_hymenoptera(data_root: Path, spec: Any) -> None:
    loaded = data.load(spec(train=data_root / "hymenoptera"))
    assert (len(loaded.train), len(loaded.validation or ()), loaded.test) == (243, 153, None)
    assert Counter(loaded.train.labels()) == {"ants": 122, "bees": 121}
    assert all(Path(path).is_file() for path in loaded.train.inputs())


def test_cifar10_subset(data_root: Path, spec: Any) -> None:
    loaded = data.load(spec(train=data_root / "cifar10_subset", per_class=20))
    assert loaded.rows.to_json()["dropped"] == {"not sampled": 4800}
    assert (len(loaded.train), len(loaded.validation or ()), len(loaded.test or ())) == (180, 20, 2000)
    assert set(Counter((loaded.validation or loaded.train).labels()).values()) == {2}
    assert not [finding for finding in loaded.findings if finding.level == "error"]
