"""What a challenger is measured on, and what lets it pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headstart as hs
from headstart.errors import DataError, RegistryError, SpecError
from headstart.registry import gate
from headstart.registry.gate import judge
from headstart.spec.notation import parse_gate
from ticket_rows import EXTRA, write_rows


@pytest.mark.parametrize(("text", "value"), [("0.5%", 0.005), ("0.005", 0.005), (0, 0.0), ("0 %", 0.0), ("99%", 0.99)])
def test_gates(text: str | float, value: float) -> None:
    assert parse_gate(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["-1%", "100%", "1", "a", "", "nan"])
def test_gates_that_are_none(text: str) -> None:
    with pytest.raises(SpecError, match="expected a gate from 0 to 1 or a percentage, such as "):
        parse_gate(text)


def test_both_are_measured_on_the_champions_test_rows_as_evaluate_measures_them(
    good: Path, bad: Path, rows: dict[str, Path]
) -> None:
    found = judge(hs.load(good), hs.load(bad))
    (measured,) = found.measured
    expected = [hs.evaluate(each, rows["test"])["metrics"]["accuracy"]["value"] for each in (good, bad)]
    assert [measured.champion, measured.challenger] == pytest.approx(expected)
    assert measured.loss == pytest.approx(expected[0] - expected[1]) and measured.rows == 72
    assert measured.low is not None and measured.high is not None and measured.p is not None
    assert measured.low < -measured.loss < measured.high < 0 and measured.p < 0.01
    assert found.reasons and "points worse on 72 rows" in found.reasons[0]
    assert measured.source == f"'{rows['test']}'" and measured.notes == ()


def test_a_challenger_as_good_passes_and_so_does_one_within_the_gate(good: Path, bad: Path) -> None:
    champion = hs.load(good)
    assert judge(champion, hs.load(good)).reasons == ()
    assert judge(hs.load(bad), champion).reasons == ()
    loss = judge(champion, hs.load(bad)).measured[0].loss
    assert judge(champion, hs.load(bad), gate=loss + 1e-9).reasons == ()
    assert judge(champion, hs.load(bad), gate=loss - 1e-3).reasons != ()


@pytest.mark.parametrize(
    ("greater", "champion", "challenger", "loss"),
    [
        (True, 0.9, 0.88, 0.02),
        (True, 0.9, 0.95, -0.05),
        (False, 2.0, 2.5, 0.25),
        (False, 2.0, 1.0, -0.5),
        (True, -0.5, -0.6, 0.2),
        (False, 0.5, 0.75, 0.5),
    ],
)
def test_losses_are_points_of_what_lies_between_0_and_1_else_shares(
    greater: bool, champion: float, challenger: float, loss: float
) -> None:
    assert gate._loss(greater, champion, challenger) == pytest.approx(loss)


def test_rows_that_a_model_learned_from_are_left_out(
    made: Callable[..., Path], good: Path, bad: Path, rows: dict[str, Path], tmp_path: Path
) -> None:
    """A challenger that was also trained on half of the champion's test rows is measured on the other half."""
    more = write_rows(tmp_path / "more.csv", EXTRA[:7])
    (measured,) = judge(hs.load(good), hs.load(made(more, None))).measured
    assert (measured.rows, measured.left_out) == (36, 36)
    assert measured.notes == ("36 of 72 rows are left out: the challenger learned from them",)
    other = write_rows(tmp_path / "test.csv", EXTRA[2:6])
    (measured,) = judge(hs.load(good), hs.load(bad), test=other).measured
    assert (measured.rows, measured.left_out) == (24, 24)
    assert {note.split(":")[0] for note in measured.notes} == {"24 of 48 rows are left out"}
    with pytest.raises(RegistryError, match=r"a model learned from all 48 rows of .*: give rows that neither has seen"):
        judge(hs.load(good), hs.load(bad), test=rows["train"])


def test_test_rows_that_were_set_aside_are_found_again(made: Callable[..., Path], tmp_path: Path) -> None:
    whole = write_rows(tmp_path / "all.csv", EXTRA)
    folder = made(whole, None, sets=["data.test_fraction=0.3"])
    champion = hs.load(folder)
    (measured,) = judge(champion, champion).measured
    report = json.loads((folder / "report.json").read_text())
    assert measured.rows + measured.left_out == report["rows"]["tested"] == 36
    assert measured.champion == pytest.approx(report["metrics"]["test"]["accuracy"]["value"])
    assert measured.source == f"the test rows of '{whole}'"


def test_when_the_training_rows_are_gone_that_is_said_and_without_test_rows_they_are_asked_for(
    made: Callable[..., Path], rows: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(rows["train"], tmp_path / "train.csv")
    shutil.copy(rows["test"], tmp_path / "test.csv")
    champion = hs.load(made(tmp_path / "train.csv", tmp_path / "test.csv"))
    (tmp_path / "train.csv").unlink()
    (measured,) = judge(champion, champion).measured
    assert measured.rows == 72
    assert measured.notes[0] == (
        "the champion may have learned from these rows: its training rows are not there as they were"
    )
    (tmp_path / "test.csv").unlink()
    with pytest.raises(RegistryError, match=r"the test rows of the champion are not there as they were.*--test FILE"):
        judge(champion, champion)
    assert judge(champion, champion, test=rows["test"]).measured[0].rows == 72


def test_the_worst_slice_may_not_be_worse(good: Path, bad: Path, rows: dict[str, Path]) -> None:
    """The bad model is right about deliveries: as good on half of the email rows, wrong on all chat rows."""
    found = judge(hs.load(good), hs.load(bad), gate=0.9, slices=["channel"])
    values = {value["value"]: value for value in found.measured[0].slices["channel"]}
    assert {name: value["rows"] for name, value in values.items()} == {"email": 48, "chat": 24}
    expected = {
        value["value"]: value["score"]
        for value in hs.evaluate(bad, rows["test"], slices=["channel"])["slices"]["channel"]
    }
    assert {name: value["challenger"] for name, value in values.items()} == pytest.approx(expected)
    assert values["email"]["judged"] and not values["chat"]["judged"], "24 rows are too few"
    assert found.reasons == ()
    strict = judge(hs.load(good), hs.load(bad), slices=["channel"])
    assert len(strict.reasons) == 2 and "on the worst slice by channel is" in strict.reasons[1]
    assert judge(hs.load(bad), hs.load(good), slices=["channel"]).reasons == ()
    text = "\n".join(gate.lines(strict))
    assert "by channel:" in text and "on 24 rows, too few to judge" in text


def test_a_model_that_is_better_on_the_whole_and_worse_on_its_worst_slice_is_refused() -> None:
    slices = {
        "channel": [
            {"value": "email", "rows": 900, "champion": 0.8, "challenger": 0.95, "judged": True},
            {"value": "phone", "rows": 100, "champion": 0.8, "challenger": 0.6, "judged": True},
            {"value": "fax", "rows": 3, "champion": 1.0, "challenger": 0.0, "judged": False},
        ]
    }
    measured = gate.Measured(
        "", "accuracy", True, "'t.csv'", 1000, 0, 0.8, 0.915, -0.115, 0.115, 0.1, 0.13, 0.01, slices, ()
    )
    (reason,) = gate._against(measured, 0.0)
    assert reason == "accuracy on the worst slice by channel is 0.6000 (phone) against 0.8000 (email)"
    assert gate._against(measured, 0.2) == []


def test_columns_that_cannot_be_sliced_by_are_said(good: Path, rows: dict[str, Path], tmp_path: Path) -> None:
    model = hs.load(good)
    with pytest.raises(DataError, match="has no column 'chanel': did you mean 'channel'"):
        judge(model, model, slices=["chanel"])
    few = write_rows(tmp_path / "few.csv", EXTRA[4:5])
    with pytest.raises(DataError, match="no value of 'channel' has 30 rows in"):
        judge(model, model, test=few, slices=["channel"])


def test_a_budget_of_time_for_one_row(good: Path) -> None:
    model = hs.load(good)
    slow = judge(model, model, latency_ms=1e-6)
    assert slow.latency_ms is not None and slow.latency_ms[0] is not None and min(slow.latency_ms) > 0  # type: ignore[type-var]
    assert len(slow.reasons) == 1 and slow.reasons[0].endswith("ms, and 1e-06 ms are allowed")
    assert judge(model, model, latency_ms=1e9).reasons == ()
    first = judge(None, model, latency_ms=1e-6)
    assert first.latency_ms is not None and first.latency_ms[0] is None and first.measured == ()
    assert len(first.reasons) == 1, "the first champion has a budget too"
    assert judge(None, model).reasons == () and judge(None, model).latency_ms is None


def test_models_with_other_labels_are_compared_by_name(
    made: Callable[..., Path], good: Path, rows: dict[str, Path], tmp_path: Path
) -> None:
    """Another class moves the numbers of the others; a class that the challenger lacks cannot be answered."""
    text = rows["train"].read_text()
    (tmp_path / "more.csv").write_text(text + "".join(f"blue film {word},art,email\n" for word in EXTRA[:4]))
    wider = hs.load(made(tmp_path / "more.csv", None))
    assert wider.labels == ("art", "delivery", "login", "refund")
    (measured,) = judge(hs.load(good), wider).measured
    expected = hs.evaluate(wider, rows["test"])["metrics"]["accuracy"]["value"]
    assert measured.challenger == pytest.approx(expected) and expected > 0.5
    fewer = write_rows(tmp_path / "fewer.csv", EXTRA[:4], lambda label: "login" if label == "refund" else label)
    with pytest.raises(
        RegistryError, match=r"the challenger cannot answer what the champion is measured on: .*'refund'"
    ):
        judge(hs.load(good), hs.load(made(fewer, None)))


def numbers(tmp_path: Path, tiny_bert: Path, *names: str) -> hs.Bundle:
    draws = np.random.default_rng(0)
    lines = [",".join(["text", *names])]
    for seed in range(40):
        words = draws.choice(EXTRA, 4)
        lines.append(
            ",".join([" ".join(words), *(str(float(seed % (5 + place)) - 0.5) for place in range(len(names)))])
        )
    path = tmp_path / f"{'-'.join(names)}.csv"
    path.write_text("\n".join(lines) + "\n")
    return hs.fit(
        path, label=list(names), task="regression", backbone=f"file:{tiny_bert}", methods=["freeze:probe"],
        sets=["data.test_fraction=0.25"],
    )  # fmt: skip


def test_what_cannot_be_compared_is_said(good: Path, tiny_bert: Path, tmp_path: Path) -> None:
    model, one = hs.load(good), numbers(tmp_path, tiny_bert, "stars")
    with pytest.raises(
        RegistryError, match=r"expected a challenger of the champion's kind \(text classification\), rec"
    ):
        judge(model, one)
    both, swapped = (numbers(tmp_path, tiny_bert, *names) for names in (("a", "b"), ("b", "a")))
    with pytest.raises(RegistryError, match="expected a challenger for the champion's targets, a, b, received b, a"):
        judge(both, swapped)
    found = judge(one, one)
    assert found.reasons == () and not found.measured[0].greater


def test_several_tasks_are_measured_each_on_its_own_rows(
    rows: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    def fit(train: Path) -> hs.Bundle:
        asked: dict[str, Any] = {
            name: {"data": {"train": str(path), "test": str(rows["test"]), "text": "text", "label": label}}
            for name, path, label in (("intent", train, "intent"), ("way", rows["train"], "channel"))
        }
        return hs.fit(tasks=asked, backbone=f"file:{tiny_bert}", methods=["freeze:probe"])

    champion, challenger = fit(rows["train"]), fit(rows["swapped"])
    found = judge(champion, challenger)
    assert [measured.task for measured in found.measured] == ["intent", "way"]
    assert found.measured[0].loss > 0.2 and found.reasons[0].startswith("intent: accuracy ")
    with pytest.raises(RegistryError, match=r"has several tasks \(intent, way\).*leave --test out"):
        judge(champion, challenger, test=rows["test"])


def test_pictures_are_measured_and_told_apart_by_their_content(hub: Callable[[str], Path], tmp_path: Path) -> None:
    from PIL import Image

    draws = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for name, low in (("dark", 0), ("light", 150)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(low, low + 90, (32, 40, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    shutil.copy(tmp_path / "train" / "dark" / "0.png", tmp_path / "test" / "dark" / "again.png")
    model = hs.fit(
        tmp_path / "train", test=tmp_path / "test", backbone=f"file:{hub('vit')}", methods=["freeze:probe"]
    )  # fmt: skip
    (measured,) = judge(model, model).measured
    assert (measured.rows, measured.left_out, measured.loss) == (8, 1, 0.0)


def test_figures_are_plain_json(good: Path, bad: Path) -> None:
    found = judge(hs.load(good), hs.load(bad), slices=["channel"], latency_ms=1e9).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert gate._finite({"a": [float("nan"), 1.0], "b": float("inf")}) == {"a": [None, 1.0], "b": None}
