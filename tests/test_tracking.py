"""Curves, parameters and artefacts, read back from where they were written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from headstart import tracking
from headstart.errors import Interrupted, MissingExtra, SpecError
from headstart.tracking import closing, flatten, numbers, open_tracker

SPEC = {
    "training": {"epochs": 3, "learning_rate": 1e-3, "clip": None},
    "methods": [{"name": "lora", "options": {"r": 8}}],
}
REPORT = {
    "task": "classification",
    "metrics": {"test": {"accuracy": {"value": 0.9, "low": 0.85, "high": 0.94}, "f1_macro": {"value": 0.88}}},
    "cost": {"seconds": 12.5},
    "rows": {"read": 10, "dropped": {"empty": 1}},
    "labels": ["a", "b"],
}


def test_flatten_gives_dotted_leaves_and_drops_nothing_but_none() -> None:
    assert flatten(SPEC) == {
        "training.epochs": 3,
        "training.learning_rate": 1e-3,
        "methods.0.name": "lora",
        "methods.0.options.r": 8,
    }
    assert flatten({"a": [1, 2], "b": (), "c": {}}) == {"a": [1, 2], "b": ()}


def test_numbers_are_the_reports_figures_by_short_name() -> None:
    assert numbers(REPORT) == {
        "test.accuracy": 0.9,
        "test.accuracy.low": 0.85,
        "test.accuracy.high": 0.94,
        "test.f1_macro": 0.88,
        "cost.seconds": 12.5,
        "rows.read": 10.0,
        "rows.dropped.empty": 1.0,
    }
    assert numbers({"metrics": {"test": {"ok": {"value": True}}}, "seed": 3}) == {}


def test_none_keeps_nothing(tmp_path: Path) -> None:
    tracker = open_tracker("none", tmp_path, run_name="r")
    with closing(tracker):
        tracker.params(SPEC)
        tracker.metrics({"loss": 1.0}, step=1)
        tracker.report(REPORT)
        tracker.artefact(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "as asked" in tracker.note()


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("mlflw:x.db", "did you mean 'mlflow'"),
        ("tensorbord", "did you mean 'tensorboard'"),
        ("wandb", "expected --track tensorboard, none or mlflow:URI, received 'wandb'"),
        ("mlflow:", "received no URI"),
        ("mlflow", "received no URI"),
    ],
)
def test_unknown_address_is_refused_with_what_is_expected(tmp_path: Path, uri: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        open_tracker(uri, tmp_path, run_name="r")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if neither library were installed."""
    real = tracking.find_spec
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name in ("tensorboard", "mlflow") else real(name))


@pytest.mark.usefixtures("bare")
def test_without_the_libraries_the_default_is_silent_and_the_named_ones_say_what_to_install(tmp_path: Path) -> None:
    tracker = open_tracker(None, tmp_path, run_name="r")
    tracker.metrics({"loss": 1.0}, step=1)
    assert "pip install 'headstart[tracking]'" in tracker.note()
    for uri in ("tensorboard", "mlflow:x.db"):
        with pytest.raises(MissingExtra, match=r"pip install 'headstart\[tracking\]'"):
            open_tracker(uri, tmp_path, run_name="r")
    assert list(tmp_path.iterdir()) == []


# TensorBoard ---------------------------------------------------------------------------------------------------------


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder))
    read.Reload()
    return read


def test_tensorboard_is_the_default_and_its_curves_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = open_tracker(None, tmp_path, run_name="r")
    assert str(tmp_path / "tensorboard") in tracker.note()
    with closing(tracker):
        tracker.params(SPEC)
        for step, loss in ((1, 2.0), (2, 1.0), (3, 0.5)):
            tracker.metrics({"step/loss": loss}, step=step)
        tracker.report(REPORT)
    read = events(tmp_path / "tensorboard")
    assert [(point.step, point.value) for point in read.Scalars("step/loss")] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    last = read.Scalars("report/test.accuracy")[0]
    assert last.step == 3 and last.value == pytest.approx(0.9)
    assert b"methods.0.options.r | 8" in read.Tensors("spec/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_goes_on_beside_the_old_file_and_fresh_removes_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    def log(step: int, *, fresh: bool) -> list[int]:
        tracker = open_tracker("tensorboard", tmp_path, run_name="r", fresh=fresh)
        tracker.metrics({"loss": 1.0}, step=step)
        tracker.finish("FINISHED")
        return [point.step for point in events(tmp_path / "tensorboard").Scalars("loss")]

    assert log(1, fresh=True) == [1]
    assert sorted(log(2, fresh=False)) == [1, 2]
    assert log(3, fresh=True) == [3]


def test_tensorboard_refuses_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file, not a folder")
    with pytest.raises(SpecError, match="cannot write curves to"):
        open_tracker("tensorboard", tmp_path, run_name="r")


# MLflow --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """The address of a folder store, and a client that reads it."""
    mlflow = pytest.importorskip("mlflow")
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    place = tmp_path / "mlruns"
    return f"mlflow:{place}", mlflow.MlflowClient(tracking_uri=place.as_uri())


def runs(client: Any) -> list[Any]:
    experiment = client.get_experiment_by_name("headstart")
    return list(client.search_runs([experiment.experiment_id]))


def write_bundle(folder: Path) -> Path:
    for name, text in (("bundle.json", "{}"), ("backbone/config.json", "[]"), ("stages/1-probe/bundle.json", "{}")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def exercise(tracker: tracking.Tracker, out: Path) -> None:
    with closing(tracker):
        tracker.params(SPEC)
        for step in range(450):
            tracker.metrics({"step/loss": 1 / (1 + step), "odd name (%)": float(step)}, step=step)
        tracker.report(REPORT)
        tracker.artefact(write_bundle(out))
        tracker.artefact(out / "bundle.json")


def files(client: Any, run: Any, path: str | None = None) -> set[str]:
    found: set[str] = set()
    for entry in client.list_artifacts(run.info.run_id, path):
        found |= files(client, run, entry.path) if entry.is_dir else {entry.path}
    return found


def check(client: Any, tmp_path: Path) -> None:
    (run,) = runs(client)
    assert run.info.status == "FINISHED" and run.info.run_name == "tickets"
    assert run.data.params == {name: str(value) for name, value in flatten(SPEC).items()}
    curve = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "step/loss"))
    assert curve == [(step, pytest.approx(1 / (1 + step))) for step in range(450)]
    assert len(client.get_metric_history(run.info.run_id, "odd name ___")) == 450
    assert run.data.metrics["test.accuracy"] == pytest.approx(0.9)
    assert files(client, run) == {"report.json", "bundle.json", "bundle/bundle.json", "bundle/backbone/config.json"}
    copy = client.download_artifacts(run.info.run_id, "report.json", str(tmp_path))
    assert json.loads(Path(copy).read_text()) == REPORT


def test_mlflow_folder_keeps_parameters_curves_report_and_bundle(tmp_path: Path, store: Any) -> None:
    uri, client = store
    exercise(open_tracker(uri, tmp_path / "out", run_name="tickets"), tmp_path / "out")
    check(client, tmp_path)


def test_mlflow_sqlite_keeps_the_same_and_its_files_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    exercise(open_tracker("mlflow:sqlite:///store/runs.db", tmp_path / "out", run_name="tickets"), tmp_path / "out")
    assert (tmp_path / "store" / "runs.db").is_file() and (tmp_path / "store" / "mlartifacts").is_dir()
    assert not (tmp_path / "mlruns").exists()
    check(mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/store/runs.db"), tmp_path)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (Interrupted("saved"), "KILLED")],
)
def test_mlflow_run_ends_by_how_the_work_ended(tmp_path: Path, store: Any, error: BaseException, status: str) -> None:
    uri, client = store
    with pytest.raises(type(error)), closing(open_tracker(uri, tmp_path / "out", run_name="r")) as tracker:
        tracker.metrics({"loss": 1.0}, step=1)
        raise error
    (run,) = runs(client)
    assert run.info.status == status
    assert run.data.metrics == {"loss": 1.0}, "what was held back is written before the run is closed"


def test_mlflow_run_that_was_cut_off_goes_on_and_another_starts_anew(tmp_path: Path, store: Any) -> None:
    uri, client = store
    first = open_tracker(uri, tmp_path / "out", run_name="r")
    first.params(SPEC)
    first.finish("KILLED")
    with closing(open_tracker(uri, tmp_path / "out", run_name="r")) as second:
        assert runs(client)[0].info.status == "RUNNING"
        second.params({**SPEC, "more": 1})
    (run,) = runs(client)
    assert run.info.status == "FINISHED" and run.data.params["more"] == "1"
    open_tracker(uri, tmp_path / "out", run_name="r").finish("FAILED")
    assert len(runs(client)) == 2
    open_tracker(uri, tmp_path / "out", run_name="r", fresh=True).finish("FINISHED")
    assert len(runs(client)) == 3


def test_mlflow_failure_in_the_middle_is_told_and_the_run_goes_on(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, client = store
    tracker: Any = open_tracker(uri, tmp_path / "out", run_name="r")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full\nand a second line")

    monkeypatch.setattr(tracker.client, "log_batch", fail)
    with closing(tracker):
        tracker.metrics({"loss": math.nan}, step=1)
    assert "disk full" in tracker.note() and "second line" not in tracker.note()
    assert runs(client)[0].info.status == "FINISHED"


def test_mlflow_server_that_does_not_answer_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SpecError, match="cannot open the MLflow store") as caught:
        open_tracker("mlflow:http://me:secret@127.0.0.1:9", tmp_path, run_name="r")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_mlflow_sends_no_telemetry(tmp_path: Path, store: Any) -> None:
    open_tracker(store[0], tmp_path, run_name="r").finish("FINISHED")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true", "standard output is for --json"
