"""Several tasks in one run: from a spec, from Python and from the command line to one proven bundle."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.cli import run
from headstart.errors import BadInput, BundleError, DataError, MethodError, SpecError
from headstart.spec import Spec

MOODS = {"good": 2.0, "bad": -2.0, "great": 4.0, "terrible": -4.0}


@pytest.fixture
def moods(tmp_path: Path) -> dict[str, Path]:
    """A csv of texts with a number each, under other column names than the tickets have."""
    paths = {"train": tmp_path / "moods.csv", "test": tmp_path / "moods_test.csv"}
    things, extra = ("film", "plot", "actor", "music", "one"), ("", "the", "a", "today")
    for part, chosen in (("train", extra[:3]), ("test", extra[3:])):
        with paths[part].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["said", "score"])
            for word, value in MOODS.items():
                for number, thing in enumerate(things):
                    writer.writerows([f"{word} {thing} {more}", value + number / 10] for more in chosen)
    return paths


def tasks(tickets: dict[str, Path], moods: dict[str, Path]) -> dict[str, Any]:
    return {
        "intent": {"data": {"train": str(tickets["train"]), "test": str(tickets["test"]), "label": "intent"}},
        "mood": {
            "data": {"train": str(moods["train"]), "test": str(moods["test"]), "text": "said", "label": "score"},
            "task": {"name": "regression"},
        },
    }


SETTINGS: dict[str, Any] = {"methods": [], "epochs": 12, "learning_rate": 2e-3, "batch_size": 16}


@pytest.fixture
def spec_file(tickets: dict[str, Path], moods: dict[str, Path], tiny_bert: Path, tmp_path: Path) -> Path:
    path = tmp_path / "both.toml"
    path.write_text(
        f"""
methods = ["pcgrad"]
[tasks.intent]
data = {{ train = "{tickets["train"]}", test = "{tickets["test"]}", label = "intent" }}
[tasks.mood.data]
train = "{moods["train"]}"
test = "{moods["test"]}"
text = "said"
label = "score"
[tasks.mood.task]
name = "regression"
[backbone]
ref = "file:{tiny_bert}"
[training]
epochs = 12
learning_rate = 2e-3
batch_size = 16
sampling = "temperature"
""",
        encoding="utf-8",
    )
    return path


def test_both_tasks_learn_at_once_and_the_report_has_each(
    tickets: dict[str, Path], moods: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    model = hs.fit(tasks=tasks(tickets, moods), backbone=f"file:{tiny_bert}", out=tmp_path / "both", **SETTINGS)
    report = model.report.to_json()  # type: ignore[union-attr]
    test = report["metrics"]["test"]
    assert test["intent.accuracy"]["value"] > 0.8 and test["mood.r2"]["value"] > 0.5
    assert test["mean"]["value"] == pytest.approx((test["intent.accuracy"]["value"] + test["mood.r2"]["value"]) / 2)
    assert report["tasks"]["intent"]["metrics"]["test"]["accuracy"] == test["intent.accuracy"]
    assert report["tasks"]["mood"]["task"] == "regression" and report["tasks"]["mood"]["splits"]["test"]["scatter"]
    rows, each = report["rows"], [task["rows"] for task in report["tasks"].values()]
    assert all(rows[key] == sum(own[key] for own in each) for key in ("read", "trained", "validated", "tested"))
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert all(f'id="task-{name}"' in page and f'href="#task-{name}"' in page for name in ("intent", "mood"))
    card = (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    assert "does 2 tasks on texts: intent, mood" in card and "tickets.csv, moods.csv" in card

    loaded = hs.load(tmp_path / "both")
    assert loaded.tasks == ("intent", "mood") and loaded.temperature["mood"] == 1.0
    (answer,) = loaded.predict(["please refund the order"])
    assert answer == {"intent": "refund", "mood": pytest.approx(answer["mood"])}
    alone = loaded.only("intent")
    assert alone.predict(["please refund the order"]) == loaded.predict(["please refund the order"], task="intent")
    assert np.allclose(alone.scores(["late"]), loaded.scores(["late"])[:, :3])
    alone.save(tmp_path / "intent")
    again = hs.load(tmp_path / "intent")
    assert again.tasks == () and again.predict(["refund"]) == ["refund"] and again.labels == alone.labels
    Spec.make(again.record["spec"])
    with pytest.raises(BundleError, match=r"no task 'intnet'.*did you mean 'intent'"):
        loaded.predict(["refund"], task="intnet")
    with pytest.raises(BundleError, match="single task"):
        again.only("intent")


def test_the_command_line_fits_predicts_and_evaluates(
    spec_file: Path,
    tickets: dict[str, Path],
    moods: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bundle"
    assert run(["fit", "--spec", str(spec_file), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(printed["tasks"]) == {"intent", "mood"}

    assert run(["predict", str(out), str(tickets["test"]), "--out", str(tmp_path / "all.csv")]) == 0
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert list(first)[3:] == [
        "prediction_intent", "prediction_mood", "probability_intent_delivery", "probability_intent_login",
        "probability_intent_refund",
    ]  # fmt: skip
    # The other task's file calls its texts otherwise.
    assert run(["predict", str(out), str(moods["test"]), "--out", str(tmp_path / "other.csv")]) == 0
    assert run(["predict", str(out), str(moods["test"]), "--task", "mood", "--out", str(tmp_path / "mood.csv")]) == 0
    with (tmp_path / "mood.csv").open(encoding="utf-8", newline="") as file:
        assert list(next(csv.DictReader(file))) == ["said", "score", "prediction"]
    capsys.readouterr()

    assert run(["evaluate", str(out), str(tickets["test"]), "--task", "intent", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    whole = printed["tasks"]["intent"]["metrics"]["test"]["accuracy"]["value"]
    assert measured["metrics"]["accuracy"]["value"] == pytest.approx(whole)
    assert run(["evaluate", str(out), str(tickets["test"])]) == 2
    assert "--task intent" in capsys.readouterr().err
    with pytest.raises(BadInput, match="several tasks"):
        hs.evaluate(out, tickets["test"])


class Cut(Exception):
    pass


@pytest.mark.parametrize("sampling", ["temperature", "round_robin"])
def test_a_run_that_was_cut_off_ends_as_if_left_alone(
    sampling: str, tickets: dict[str, Path], moods: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    more = {"methods": ["uncertainty"], "epochs": 2, "batch_size": 16, "backbone": f"file:{tiny_bert}"}
    sets = [f"training.sampling={sampling}", "training.checkpoint_every=1e-9"]
    both = tasks(tickets, moods)
    alone = hs.fit(tasks=both, out=tmp_path / "alone", sets=sets, **more)  # type: ignore[arg-type]

    def cut(event: str, figures: Any) -> None:
        if event == "step" and figures["step"] == 5:
            raise Cut

    with pytest.raises(Cut):
        hs.fit(tasks=both, out=tmp_path / "cut", sets=sets, listen=cut, **more)  # type: ignore[arg-type]
    resumed = hs.fit(out=tmp_path / "cut", resume=True)
    first, second = alone.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_default_recipe_takes_several_tasks(
    tickets: dict[str, Path], moods: dict[str, Path], tiny_bert: Path
) -> None:
    model = hs.fit(tasks=tasks(tickets, moods), backbone=f"file:{tiny_bert}", epochs=2)
    stages = model.report.to_json()["stages"]  # type: ignore[union-attr]
    assert [stage["name"] for stage in stages] == ["probe", "finetune"]
    assert set(stages[0]["details"]["c"]) == {"intent", "mood"}


def test_rows_may_be_in_memory(tiny_bert: Path) -> None:
    texts = ["my parcel is late", "refund my money", "password lost"] * 8
    kinds, many = ["delivery", "refund", "login"] * 8, [["late"], ["money", "refund"], []] * 8
    both = {
        "intent": {"data": {"train": (texts, kinds)}},
        "tags": {"data": {"train": (texts, many)}, "task": {"name": "multilabel"}},
    }
    model = hs.fit(tasks=both, backbone=f"file:{tiny_bert}", methods=["freeze:probe"])
    assert model.predict(texts[:2]) == [
        {"intent": "delivery", "tags": ["late"]}, {"intent": "refund", "tags": ["money", "refund"]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"tasks": {"a": {"data": {"trian": "x"}}, "b": {}}},
            r"unknown key 'tasks.a.data.trian': did you mean 'train'",
        ),
        ({"tasks": {"a": {"dta": {}}, "b": {}}}, r"unknown key 'tasks.a.dta': did you mean 'data'"),
        ({"taks": {}}, "unknown key 'taks': did you mean 'tasks'"),
        ({"tasks": {"a": {}}}, "two or more, received one"),
        ({"tasks": {"a": {}, "b": {}}, "data": {"train": "x.csv"}}, r"data.train stands beside tasks.*tasks.NAME.data"),
        ({"tasks": {"a": {}, "b": {}}, "task": {"name": "regression"}}, r"task.name stands beside tasks"),
        ({"tasks": {"a.b": {}, "c": {}}}, r"letters, digits and underscores, received 'a.b'"),
        ({"training": {"sampling": "uniform"}}, "this run has one"),
        ({"tasks": {"a": {}, "b": {}}, "training": {"sampling": "unifrom"}}, "training.sampling"),
        ({"tasks": {"a": {}, "b": {}}, "training": {"batches": "pairs"}}, "pairs"),
        ({"tasks": {"a": {}, "b": {}}, "stages": [{"name": "s", "task": {"focal_gamma": 1.0}}]}, "use tasks.NAME.task"),
        ({"tasks": {"a": {"data": {"split": "group"}}, "b": {}}}, "tasks.a.data.split = 'group' needs data.group"),
        ({"task": {"name": "multitask"}}, r"\[tasks.NAME\]"),
    ],
)
def test_specs_that_cannot_be_meant_say_why(record: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Spec.make(record)


def test_one_task_of_a_spec_stands_by_itself() -> None:
    both = {"a": {"data": {"train": "a.csv"}}, "b": {"data": {"train": "b.csv"}, "task": {"focal_gamma": 1.0}}}
    spec = Spec.make({"tasks": both, "training": {"sampling": "uniform", "epochs": 3}})
    assert spec.alone("b") == Spec.make(
        {"data": {"train": "b.csv"}, "task": {"focal_gamma": 1.0}, "training": {"epochs": 3}}
    )


@pytest.mark.parametrize("method", ["uncertainty", "gradnorm", "pcgrad"])
def test_methods_for_several_tasks_need_several(method: str, tickets: dict[str, Path], tiny_bert: Path) -> None:
    with pytest.raises(MethodError, match=rf"'{method}' cannot be used here.*this run has one"):
        hs.fit(tickets["train"], label="intent", backbone=f"file:{tiny_bert}", methods=[method])


def test_wrong_company_is_refused_before_training(
    tickets: dict[str, Path], moods: dict[str, Path], tiny_bert: Path
) -> None:
    both, more = tasks(tickets, moods), {"backbone": f"file:{tiny_bert}"}
    with pytest.raises(MethodError, match="'mixup' cannot be used here"):
        hs.fit(tasks=both, methods=["mixup"], **more)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="'contrast' cannot be used here"):
        hs.fit(tasks=both, methods=["contrast"], **more)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="'pcgrad' compares the tasks of a batch"):
        hs.fit(tasks=both, methods=["pcgrad"], sets=["training.sampling=round_robin"], **more)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="rows were given beside tasks"):
        hs.fit(["a text"], ["a"], spec={"tasks": both}, **more)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"data.train stands beside tasks"):
        hs.fit(tickets["train"], tasks=both, **more)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"did you mean 'intent.accuracy'"):
        hs.fit(tasks=both, sets=["training.metric=intnet.accuracy"], **more)  # type: ignore[arg-type]


def test_compare_says_what_each_task_gains_over_being_alone(
    tickets: dict[str, Path], moods: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    spec = {
        "tasks": tasks(tickets, moods),
        "methods": ["pcgrad"],
        "backbone": {"ref": f"file:{tiny_bert}"},
        "training": {"epochs": 3, "learning_rate": 2e-3, "sampling": "uniform"},
    }
    found = hs.compare(spec=spec, against=["single"], out=tmp_path / "compare")
    both, single = found.cells
    assert both.arm == "recipe" and single.arm == "single" and single.rows == both.rows
    assert [effect["against"] for effect in found.transfer] == ["single", "single (intent)", "single (mood)"]
    assert found.transfer[0]["value"] == pytest.approx(both.value - single.value, abs=1e-6)
    # Alone means alone: the same task without the others, by the same settings.
    alone = Spec.make(spec).alone("intent").to_json()
    report = hs.fit(spec={**alone, "methods": []}).report
    gain = found.transfer[1]["value"]
    together = hs.fit(spec=spec).report
    assert gain == pytest.approx(together["tasks"]["intent"]["metrics"]["test"]["accuracy"]["value"] - report.value())  # type: ignore[index, union-attr]
    again = hs.compare(spec=spec, against=["single"], out=tmp_path / "compare", resume=True)
    assert [cell.seconds for cell in again.cells] == [cell.seconds for cell in found.cells]
    with pytest.raises(SpecError, match="this spec has one task"):
        hs.compare(spec=alone, against=["single"])
