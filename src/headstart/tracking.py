"""Where a run's curves go: TensorBoard files beside the bundle, an MLflow server or store, or nowhere.

    --track tensorboard                     OUT/tensorboard (the default where the package is installed)
    --track mlflow:sqlite:///runs/mlflow.db  a database file; also mlflow:runs.db
    --track mlflow:runs/mlruns              a folder; also mlflow:file:///...
    --track mlflow:https://host:5000        a server
    --track none

Tracking never decides about a run: a store that cannot be opened is refused before anything is spent, and one that
fails later is reported by `note` while training goes on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from headstart.errors import Interrupted, MissingExtra, SpecError, did_you_mean
from headstart.stores import address, first_line, prepare, shown

Status = Literal["FINISHED", "FAILED", "KILLED"]

_RUN = ".tracking.json"
_BESIDE = ("stages", "tensorboard")
"""Folders of a run that are not part of its result."""

_EXPERIMENT = "headstart"
_BUFFER = 200
_FLUSH_SECONDS = 5.0
_LONGEST = 6000
"""Characters that MLflow keeps of a parameter."""


class Tracker(Protocol):
    """What a run tells about itself while it goes on. `finish` may be called twice; the first status counts."""

    def note(self) -> str:
        """One sentence for people: where the curves are, why there are none, or why they stopped."""

    def params(self, values: Mapping[str, Any]) -> None:
        """What was asked for; nested tables become dotted names."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves, by name."""

    def artefact(self, path: str | Path) -> None:
        """Keep a file, or a bundle's folder without what lies beside the result."""

    def report(self, values: Mapping[str, Any]) -> None:
        """The finished report: its numbers as values by dotted name, and the whole as `report.json`."""

    def finish(self, status: Status) -> None:
        """Write what is still held back and close."""


def open_tracker(uri: str | None, folder: str | Path, *, run_name: str, fresh: bool = False) -> Tracker:
    """The tracker that `uri` names: None (TensorBoard if it is installed), 'tensorboard', 'none' or 'mlflow:URI'.

    A run that was cut off goes on under its old MLflow run and beside its old TensorBoard file; `fresh` starts anew
    instead. Raises SpecError for another uri or a store that cannot be opened, MissingExtra without the library.
    """
    folder = Path(folder)
    kind, _, rest = (uri or "").partition(":")
    if uri is None and find_spec("tensorboard") is None:
        return _Silent("no curves are kept: TensorBoard is not installed (pip install 'headstart[tracking]')")
    if uri is None or uri == "tensorboard":
        if find_spec("tensorboard") is None:
            raise MissingExtra("tensorboard", "tracking", "--track tensorboard")
        return _TensorBoard(folder / "tensorboard", fresh=fresh)
    if uri == "none":
        return _Silent("no curves are kept, as asked")
    if kind != "mlflow":
        raise SpecError(
            f"expected --track tensorboard, none or mlflow:URI, received '{uri}': "
            f"{did_you_mean(kind, ('tensorboard', 'none', 'mlflow'))}"
        )
    if not rest:
        raise SpecError("expected --track mlflow:URI, such as mlflow:sqlite:///runs/mlflow.db, received no URI")
    if find_spec("mlflow") is None:
        raise MissingExtra("mlflow-skinny", "tracking", "--track mlflow:URI")
    return _MLflow(rest, folder, run_name, fresh=fresh)


@contextmanager
def closing(tracker: Tracker) -> Iterator[Tracker]:
    """Finish a tracker by how the block ended: FINISHED, KILLED when the user stopped it, else FAILED."""
    try:
        yield tracker
    except (KeyboardInterrupt, Interrupted):
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name. Lists of tables are numbered from 0; other lists stay whole; None is left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, Mapping):
            found.update(flatten(value, f"{name}."))
        elif value is not None:
            found[name] = value
    return found


def numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """The report's figures that are one number: metrics with their intervals, cost, rows, parameters.

    `metrics.test.accuracy.value` becomes `test.accuracy`, its interval `test.accuracy.low` and `.high`.
    """
    chosen = {
        key: report[key] for key in ("metrics", "cost", "rows", "parameters") if isinstance(report.get(key), Mapping)
    }
    found: dict[str, float] = {}
    for name, value in flatten(chosen).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name.removeprefix("metrics.").removesuffix(".value")] = float(value)
    return found


class _Silent:
    """Keeps nothing."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def note(self) -> str:
        return self.reason

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def artefact(self, path: str | Path) -> None: ...

    def report(self, values: Mapping[str, Any]) -> None: ...

    def finish(self, status: Status) -> None: ...


class _TensorBoard:
    """Event files in a folder. Artefacts lie beside it already."""

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        if fresh:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        try:
            # Untyped, hence imported by name.
            self.writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder), flush_secs=10)
        except OSError as error:
            raise SpecError(f"cannot write curves to '{folder}': {error.strerror or error}; try --track none") from None
        self.folder = folder
        self.step = 0
        self.done = False

    def note(self) -> str:
        return f"curves: tensorboard --logdir {self.folder}"

    def params(self, values: Mapping[str, Any]) -> None:
        rows = "\n".join(f"| {name} | {value} |" for name, value in flatten(values).items())
        self.writer.add_text("spec", f"| option | value |\n| --- | --- |\n{rows}", 0)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.step = max(self.step, step)
        for name, value in values.items():
            self.writer.add_scalar(name, float(value), step)

    def artefact(self, path: str | Path) -> None: ...

    def report(self, values: Mapping[str, Any]) -> None:
        for name, value in numbers(values).items():
            self.writer.add_scalar(f"report/{name}", value, self.step)

    def finish(self, status: Status) -> None:
        if not self.done:
            self.done = True
            self.writer.add_text("status", status, self.step)
            self.writer.close()


class _MLflow:
    """One MLflow run through the client, which leaves MLflow's global state alone."""

    def __init__(self, uri: str, folder: Path, run_name: str, *, fresh: bool) -> None:
        prepare()
        self.broken = ""
        self.done = False
        self.held: list[Any] = []
        self.flushed = time.monotonic()
        try:
            self.uri = address(uri)
            self.client = import_module("mlflow").MlflowClient(tracking_uri=self.uri)
            self.experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT))
            self.run_id = self._run(folder, run_name, fresh=fresh)
        except Exception as error:
            reason = f"{first_line(error)}; try another --track"
            raise SpecError(f"cannot open the MLflow store '{shown(uri)}': {reason}") from None

    def _experiment(self, name: str) -> str:
        known = self.client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=_artefacts(self.uri)))
            except Exception:
                # Another run may have made it in the meantime.
                known = self.client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)

    def _run(self, folder: Path, run_name: str, *, fresh: bool) -> str:
        """The run that this folder's unfinished work belongs to, else a new one."""
        memory = folder / _RUN
        if not fresh and memory.is_file():
            kept = json.loads(memory.read_text(encoding="utf-8"))
            if kept.get("uri") == shown(self.uri) and self.client.get_run(kept["run_id"]).info.status != "FINISHED":
                self.client.update_run(kept["run_id"], status="RUNNING")
                return str(kept["run_id"])
        made = str(self.client.create_run(self.experiment, run_name=run_name).info.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        memory.write_text(json.dumps({"uri": shown(self.uri), "run_id": made}), encoding="utf-8")
        return made

    def note(self) -> str:
        return self.broken or f"curves: MLflow run {self.run_id} in {shown(self.uri)}"

    def params(self, values: Mapping[str, Any]) -> None:
        entities = import_module("mlflow.entities")
        with self._careful():
            # A parameter cannot be written twice: a run that goes on has them already.
            known = set(self.client.get_run(self.run_id).data.params)
            fresh = [
                entities.Param(_name(name), str(value)[:_LONGEST])
                for name, value in flatten(values).items()
                if _name(name) not in known
            ]
            for start in range(0, len(fresh), 100):
                self.client.log_batch(self.run_id, params=fresh[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        entity = import_module("mlflow.entities").Metric
        now = int(time.time() * 1000)
        self.held += [entity(_name(name), float(value), now, step) for name, value in values.items()]
        if len(self.held) >= _BUFFER or time.monotonic() - self.flushed > _FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        held, self.held = self.held, []
        self.flushed = time.monotonic()
        with self._careful():
            for start in range(0, len(held), 1000):
                self.client.log_batch(self.run_id, metrics=held[start : start + 1000])

    def artefact(self, path: str | Path) -> None:
        path = Path(path)
        if path.is_file():
            with self._careful():
                self.client.log_artifact(self.run_id, str(path))
            return
        for entry in sorted(path.iterdir()):
            if entry.name.startswith(".") or entry.name in _BESIDE:
                continue
            with self._careful():
                self.client.log_artifact(self.run_id, str(entry), "bundle")

    def report(self, values: Mapping[str, Any]) -> None:
        self.metrics({name: value for name, value in numbers(values).items() if math.isfinite(value)}, step=0)
        self._flush()
        with self._careful():
            self.client.log_text(self.run_id, json.dumps(values, indent=2, default=str), "report.json")

    def finish(self, status: Status) -> None:
        if not self.done:
            self.done = True
            self._flush()
            with self._careful():
                self.client.set_terminated(self.run_id, status)

    @contextmanager
    def _careful(self) -> Iterator[None]:
        """A store that fails while a run goes on must not end the run; what was lost is told."""
        try:
            yield
        except Exception as error:
            if not self.broken:
                self.broken = f"tracking has gaps: MLflow store '{shown(self.uri)}': {first_line(error)}"
                logging.getLogger(__name__).warning(self.broken)


def _artefacts(uri: str) -> str | None:
    """A database on this disk keeps its files in a folder beside it; other stores know a place of their own."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


def _name(text: str) -> str:
    """MLflow names hold letters, digits and _-. /: only."""
    return re.sub(r"[^\w\-. /:]", "_", text)


def curves(
    listen: Callable[[str, Mapping[str, Any]], None], tracker: Tracker | None
) -> Callable[[str, Mapping[str, Any]], None]:
    """A run's listener that also sends each stage's figures to the tracker."""
    if tracker is None:
        return listen

    stage = ""

    def hear(event: str, figures: Mapping[str, Any]) -> None:
        nonlocal stage
        listen(event, figures)
        if event == "stage":
            stage = figures["name"]
        if event in ("step", "epoch"):
            # Steps count from 0 in every stage, so each has curves of its own.
            known = {key: value for key, value in figures.items() if isinstance(value, int | float) and key != "step"}
            numbers = {f"{stage}/{event}/{key}": float(value) for key, value in known.items()}
            tracker.metrics(numbers, step=int(figures["step"]))

    return hear
