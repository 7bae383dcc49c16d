"""Comparing arms: the same rows for all, folds, specs as arms, and going on where a comparison was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headstart import comparison
from headstart.comparison import compare
from headstart.data import load
from headstart.errors import DataError, SpecError
from headstart.spec import Spec


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    texts = [f"{word} {n}" for n in range(20) for word in ("the parcel is late", "refund my money")]
    path.write_text("text,label\n" + "".join(f"{text},{'ab'['refund' in text]}\n" for text in texts))
    return path


def asked(table: Path, tiny_bert: Path) -> dict[str, object]:
    return {"train": str(table), "backbone__ref": f"file:{tiny_bert}", "training__epochs": 1}


def test_folds_are_disjoint_cover_all_rows_and_do_not_depend_on_the_seed(table: Path) -> None:
    def test_rows(fold: int, seed: int) -> set[int]:
        loaded = load(Spec.make(data__train=str(table), data__folds=3, data__fold=fold, training__seed=seed))
        assert loaded.test is not None and loaded.rows.adds_up
        assert not set(loaded.train.source_rows.tolist()) & set(loaded.test.source_rows.tolist())
        return set(loaded.test.source_rows.tolist())

    parts = [test_rows(fold, 0) for fold in (1, 2, 3)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    assert parts == [test_rows(fold, 7) for fold in (1, 2, 3)]


def test_rows_of_a_group_stay_in_one_fold(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "who": n // 4} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: set[int] = set()
    for fold in (1, 2):
        loaded = load(Spec.make(data__train=str(path), data__folds=2, data__fold=fold, data__group="who"))
        assert loaded.test is not None
        groups = set(loaded.test.column("who"))
        assert not groups & set(loaded.train.column("who")) and not groups & seen
        seen |= groups
    assert len(seen) == 10


def test_folds_make_one_figure_a_seed_over_all_rows(table: Path, tiny_bert: Path) -> None:
    found = compare(**asked(table, tiny_bert), against=("probe",), baseline="finetune", folds=2, seeds=2)
    assert [(c.arm, c.seed, c.fold) for c in found.cells[:4]] == [
        ("finetune", 0, 1), ("finetune", 0, 2), ("finetune", 1, 1), ("finetune", 1, 2),
    ]  # fmt: skip
    assert {(s["arm"], s["seeds"]) for s in found.summary} == {("finetune", 2), ("probe", 2)}
    assert found.transfer[0]["arm"] == "finetune" and found.transfer[0]["against"] == "probe"
    for cell in found.cells:
        assert cell.bytes >= 4 * cell.total
        assert cell.peak_memory_bytes > 2**20 and cell.cpu_seconds > 0


def test_a_comparison_goes_on_where_it_stopped(
    table: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cmp"
    options = {**asked(table, tiny_bert), "baseline": "probe", "against": ("finetune",), "out": out}
    whole = compare(**options)  # type: ignore[arg-type]
    cells = sorted((out / comparison.CELLS).glob("*.json"))
    assert len(cells) == 2
    cells[0].unlink()
    calls = []
    real = comparison.execute
    monkeypatch.setattr(comparison, "execute", lambda run, *rest, **more: calls.append(run) or real(run, *rest, **more))
    again = compare(**options, resume=True)  # type: ignore[arg-type]
    assert len(calls) == 1, "only the fit that is missing is repeated"
    assert [c.value for c in again.cells] == [c.value for c in whole.cells]
    assert again.transfer == whole.transfer
    options["training__seed"] = 5
    compare(**options, resume=True)  # type: ignore[arg-type]
    assert len(calls) == 3, "another spec is another fit"


def test_a_spec_is_an_arm_with_the_rows_of_the_comparison(table: Path, tiny_bert: Path, tmp_path: Path) -> None:
    other = tmp_path / "gentle.toml"
    other.write_text(f'methods = ["l2sp"]\n[backbone]\nref = "file:{tiny_bert}"\n[training]\nepochs = 2\n')
    spec = comparison.arm_spec(Spec.make(data__train=str(table)), str(other))
    assert spec.data.train == str(table) and spec.training.epochs == 2 and spec.methods is not None
    found = compare(**asked(table, tiny_bert), baseline="probe", against=(str(other),))
    assert found.cells[1].arm == str(other)


def test_all_arms_answer_the_same_rows(table: Path, tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "cmp"
    compare(**asked(table, tiny_bert), baseline="probe", against=("finetune",), out=out)
    shapes = {np.load(path).shape for path in (out / comparison.CELLS).glob("*.npy")}
    assert shapes == {(8, 2)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"folds": 3, "data__test": "x.csv"}, "two ways to measure"),
        ({"resume": True}, "resume needs out"),
        ({"against": ("nothere.toml",)}, "nothere.toml"),
    ],
)
def test_bad_requests(table: Path, tiny_bert: Path, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        compare(**asked(table, tiny_bert), **options)  # type: ignore[arg-type]


def test_bad_folds(table: Path) -> None:
    for fold, folds, sentence in ((4, 3, "fold 4 of 3"), (1, 90, "90 folds need 90")):
        with pytest.raises(DataError, match=sentence):
            load(Spec.make(data__train=str(table), data__fold=fold, data__folds=folds))
    timed = table.with_name("timed.csv")
    timed.write_text("text,label,when\n" + "".join(f"text {n},{n % 2},{n}\n" for n in range(20)))
    with pytest.raises(DataError, match="later rows"):
        load(Spec.make(data__train=str(timed), data__fold=1, data__folds=2, data__split="time", data__time="when"))
