"""On which rows a smaller model is judged, and what counts as a loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import headstart as hs
from headstart.compression.quality import compare, compare_scores, find_rows
from headstart.errors import DataError, SpecError
from headstart.spec.notation import parse_gate
from headstart.tasks.regression import Regression


def test_gates() -> None:
    assert parse_gate("0.5%") == pytest.approx(0.005) and parse_gate(0.02) == 0.02 and parse_gate("0") == 0
    for bad in ("lots", "100%", "-1%", "nan"):
        with pytest.raises(SpecError, match="expected a gate from 0 to 1"):
            parse_gate(bad)


def test_rows_given_come_first_then_those_that_validated_then_the_test(made: Path, tmp_path: Path) -> None:
    source = hs.load(made / "bundle")
    few = tmp_path / "few.csv"
    few.write_text("text,kind\nwhere is it,track\n", encoding="utf-8")
    found = find_rows(source, few)
    assert found is not None and (found.split, len(found), found.ids) == ("test", 1, [1])
    # Fifteen rows are too few to split any off, so the test rows are what is left.
    found = find_rows(source)
    assert found is not None and (found.split, found.source, len(found)) == ("test", str(made / "test.csv"), 15)
    source.record["spec"]["data"]["validation"] = str(few)
    found = find_rows(source)
    assert found is not None and (found.split, found.source) == ("validation", str(few))
    source.record["spec"]["data"] |= {"validation": None, "test": None}
    assert find_rows(source) is None
    few.write_text("text,kind\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"few\.csv"):
        find_rows(source, few)


def test_rows_that_were_split_off_are_found_again(tickets: dict[str, Path], tiny_bert: Path) -> None:
    source = hs.fit(tickets["train"], test=tickets["test"], backbone=f"file:{tiny_bert}", methods=["freeze:probe"],
                    label="intent", sets=["data.validation_fraction=0.3"])  # fmt: skip
    found = find_rows(source)
    assert found is not None and found.split == "validation"
    assert source.report is not None and len(found) == source.report["rows"]["validated"] > 0
    measured = compare(source.task, source.temperature, *[source.outputs(found.inputs)] * 2, found.targets)
    assert measured.before == pytest.approx(source.report["metrics"]["validation"]["accuracy"]["value"])
    assert measured.loss == 0 and measured.agreement == 1
    # Other training rows than those that it learned from have other validation rows, perhaps ones that it has seen.
    text = tickets["train"].read_text(encoding="utf-8")
    tickets["train"].write_text(text + "one row more,refund,chat\n", encoding="utf-8")
    found = find_rows(source)
    assert found is not None and found.split == "test"


def test_a_loss_of_an_error_is_a_share_of_it() -> None:
    task = Regression.fit([0.0, 1.0, 2.0, 3.0])
    truth = np.array([[0.0], [1.0], [2.0], [3.0]], dtype=np.float32)
    targets = task.encode(truth[:, 0].tolist()).numpy()
    assert task.metric == "rmse"
    found = compare_scores(task, truth + 0.1, truth + 0.11, targets)
    assert found.before == pytest.approx(0.1, rel=1e-3) and found.loss == pytest.approx(0.1, rel=1e-2)
