"""Ways to a smaller model, side by side: every step a bundle with its measured quality, size and speed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headstart import bundle as bundles
from headstart.bundle import Bundle
from headstart.compression.export import weights_size
from headstart.compression.forms import Forms
from headstart.compression.learn import HEAL, learn
from headstart.compression.plan import FORMS, Line, Step, parse, slug
from headstart.compression.quality import GATE, Labelled, Quality, compare_scores, find_rows, refusal
from headstart.compression.timing import fastest, in_turn
from headstart.errors import BundleError, DataError, HeadstartError, Interrupted, ProofError, SpecError
from headstart.loop import Listener
from headstart.spec.notation import parse_gate

START = "start"
BEST = "best"
STEPS = "steps"
STATE = "compress-step.json"
JSON, PAGE = "compress.json", "compress.html"
DONE, STOPPED, FAILED = "done", "stopped", "failed"


@dataclass
class Row:
    """A model of the table: the start, or what some steps made of it.

    name: the steps, as they were written. state: done; stopped, where the gate was not passed; failed, where the step
    could not be done, with the reason. folder: of the bundle. value: the main metric; test: of test rows, where others
    than these choose. loss: by how much value is worse than the start's. parameters: of the network; 0 in a graph.
    bytes: of the weights. latency_ms and rows_per_second as measured, once and many: how many times as fast as the
    start. frontier: nothing here is better in quality, one row's time and size at once.
    """

    name: str
    state: str
    folder: str | None = None
    reason: str = ""
    value: float | None = None
    test: float | None = None
    loss: float | None = None
    agreement: float | None = None
    gate: float | None = None
    parameters: int = 0
    bytes: int = 0
    latency_ms: float | None = None
    rows_per_second: float | None = None
    once: float | None = None
    many: float | None = None
    frontier: bool = False
    best: bool = False


@dataclass
class Compression:
    """The table of all models that were made, and what they were judged on.

    rows: of the data set, how many; data: where they are from; gate: the largest loss of `metric` allowed.
    """

    start: str
    metric: str
    greater_is_better: bool
    rows: int
    data: str
    gate: float
    plans: list[str]
    table: list[Row] = field(default_factory=list)
    best: str = START

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def write(self, folder: Path) -> Path:
        """`compress.json` and `compress.html` in `folder`; returns the page's path."""
        from headstart.evaluation.compression import render_compression

        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(render_compression(self.to_json()), encoding="utf-8")
        return folder / PAGE


def compress(
    bundle: Bundle | str | Path,
    out: str | Path,
    plan: str | Sequence[str] = (),
    *,
    prune: float | None = None,
    heal_epochs: int | None = None,
    gate: str | float | None = None,
    rows: str | Path | None = None,
    train: str | Path | None = None,
    task: str | None = None,
    overwrite: bool = False,
    listen: Listener = lambda event, figures: None,
) -> Compression:
    """Make smaller models of a finished one, step by step, and say what each costs and brings.

    plan: steps that follow each other, as 'prune:0.4 distil:layers=3 int8', or several such alternatives; steps that
    they share are done once. prune: a share, the plan of one step. heal_epochs: passes over the training rows after a
    cut, where the step does not say. gate: the largest loss of the main metric against the start, 1 % when left out; a
    step that loses more ends its line. rows: labelled rows to judge on; the validation rows of the bundle when left
    out, or its test rows. train: training rows in place of those that the bundle was made with. task: of several.

    The folder gets a bundle for each step, `best` (the fastest within the gate on this machine, the start itself where
    none is faster), `compress.json` and `compress.html`. Steps that it holds already are not done again.
    Raises SpecError for a plan that cannot be, DataError without labelled rows, BundleError for an export or a folder
    that holds the steps of another bundle.
    """
    texts = [plan] if isinstance(plan, str) else list(plan)
    texts += [] if prune is None else [f"prune:{prune:g}"]
    if not texts:
        raise SpecError("expected a plan such as 'prune:0.4 int8', or a share to prune, received neither")
    if heal_epochs is not None and heal_epochs < 0:
        raise SpecError(f"expected epochs to heal of at least 0, received {heal_epochs}")
    lines = [parse(text) for text in dict.fromkeys(texts)]
    limit = GATE if gate is None else parse_gate(gate)
    source = bundle if isinstance(bundle, Bundle) else bundles.load(bundle)
    source = source if task is None else source.only(task)
    if source.tasks:
        raise SpecError(f"a model of several tasks is compressed one at a time: say --task {source.tasks[0]}")
    if "runtime" in source.record:
        raise BundleError("this bundle is an export already; compress the one that it was made from")
    judged = find_rows(source, rows)
    if judged is None:
        raise DataError("the loss of quality has to be measured, and no rows were found: give labelled rows, as --rows")
    folder = Path(out)
    heal = HEAL if heal_epochs is None else heal_epochs
    work = _Work(source, folder, judged, limit, heal, None if train is None else str(train), listen)
    work.begin(overwrite)
    for line in lines:
        work.walk(line)
    return work.finish(texts)


@dataclass
class _Work:
    """One call: the steps that are done, by their name."""

    source: Bundle
    folder: Path
    rows: Labelled
    limit: float
    heal: int
    train: str | None
    listen: Listener
    found: dict[str, Row] = field(default_factory=dict)
    models: dict[str, Bundle] = field(default_factory=dict)
    last: str = START
    """The last model of the line that can learn."""

    teacher: Path = Path()

    def begin(self, overwrite: bool) -> None:
        """The folder for these steps, with the start as the teacher finds it."""
        digest = hashlib.sha256(self.source.probe_outputs.tobytes() + self.source.record["fingerprint"].encode())
        identity = {"start": digest.hexdigest(), "base": self.source.record["base"]["digest"], "train": self.train}
        place = self.folder / STEPS / "start.json"
        if overwrite:
            shutil.rmtree(self.folder / STEPS, ignore_errors=True)
        if place.exists() and json.loads(place.read_text(encoding="utf-8")) != identity:
            raise BundleError(f"'{self.folder}' holds the steps of another bundle: choose another --out or --overwrite")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(identity), encoding="utf-8")
        if self.source.folder is None or not (self.source.folder / "bundle.json").exists():
            copied = self.folder / STEPS / START
            if not (copied / "bundle.json").exists():
                dataclasses.replace(self.source, folder=None).save(copied)
            # A second run has to find the very parent of the steps.
            self.source = bundles.load(copied)
        self.teacher = self.source.folder or self.teacher
        self.answers = self.source.scores(self.rows.inputs)
        quality = compare_scores(self.source.task, self.answers, self.answers, self.rows.targets)
        self.models[START] = self.source
        self.found[START] = self._row(START, self.source, quality, None, self.source.folder)

    def walk(self, line: Line) -> None:
        """The steps of one alternative, until one does not pass."""
        model, forms, self.last = self.source, None, START
        for place, step in enumerate(line):
            name = " ".join(map(str, line[: place + 1]))
            if name not in self.found:
                self.listen("stage", {"name": name, "number": place + 1, "of": len(line)})
                home = self.folder / STEPS / slug(line[: place + 1])
                if not step.learned:
                    forms = forms or Forms(model, self.rows)
                self._do(name, step, home, model, forms)
                self._say(self.found[name])
            if self.found[name].state != DONE:
                return
            if step.learned:
                model, self.last = self.models[name], name

    def _do(self, name: str, step: Step, home: Path, model: Bundle, forms: Forms | None) -> None:
        """One step, or what is left of it: its model and its row."""
        limit = self.limit if step.gate is None else step.gate
        left = max(0.0, limit - (self.found[self.last].loss or 0.0))
        try:
            made = self._made(step, home, model, forms, left)
            scores = made.scores(self.rows.inputs)
        except Interrupted:
            raise
        except HeadstartError as error:
            state = STOPPED if isinstance(error, ProofError) else FAILED
            more = f" (of a gate of {100 * limit:g} %, the steps before used the rest)" if left < limit else ""
            self.found[name] = Row(name, state, reason=str(error) + (more if state == STOPPED else ""), gate=limit)
            return
        quality = compare_scores(self.source.task, self.answers, scores, self.rows.targets)
        row = self._row(name, made, quality, limit, home)
        if not quality.loss <= limit:
            row.state = STOPPED
            row.reason = refusal("this step", quality, limit, made.task.metric, "the line ends here")
        self.found[name], self.models[name] = row, made
        told = json.loads((home / STATE).read_text(encoding="utf-8"))
        (home / STATE).write_text(json.dumps({**told, "measured": asdict(row)}, indent=2) + "\n", encoding="utf-8")

    def _made(self, step: Step, home: Path, model: Bundle, forms: Forms | None, limit: float) -> Bundle:
        """The bundle of a step: the one that is there, if it is a child of this model and was asked for alike."""
        asked = {"step": step.work, "heal": self.heal, "parent": model.record["lineage"]["id"]}
        if not step.learned:
            asked |= {"gate": limit, "rows": self.rows.source}
        state = home / STATE
        begun = state.exists() and json.loads(state.read_text(encoding="utf-8"))["asked"] == asked
        if begun and (home / "bundle.json").exists():
            self.listen("note", {"text": f"'{home}' is done already"})
            return bundles.load(home)
        home.mkdir(parents=True, exist_ok=True)
        state.write_text(json.dumps({"asked": asked}), encoding="utf-8")
        if forms is None:
            return learn(
                model, step, self.teacher, home, rows=self.rows, heal=self.heal, train=self.train,
                resume=begun, listen=_quiet(self.listen),
            )  # fmt: skip
        engine, bits = FORMS[step.name]
        # In full precision the answers are proven to be the same, so there is nothing to lose.
        form = forms.full(engine) if bits is None else forms.int8(engine, limit)
        form.bundle.save(home, overwrite=True)
        return form.bundle

    def _row(self, name: str, made: Bundle, quality: Quality, limit: float | None, home: Path | None) -> Row:
        metric = made.task.metric
        # Test rows that choose are no test.
        apart = made.report is not None and self.rows.split != "test"
        measured = made.report["metrics"].get("test", {}) if apart and made.report is not None else {}
        exported = "runtime" in made.record
        return Row(
            name, DONE, None if home is None else str(home), "", quality.after,
            measured.get(metric, {}).get("value"), quality.loss, quality.agreement, limit,
            0 if exported else sum(p.numel() for p in made.model.parameters()), weights_size(made),
        )  # fmt: skip

    def _say(self, row: Row) -> None:
        text = row.reason if row.state != DONE else f"{self.source.task.metric} {row.value:.4f}, {_lost(row)}"
        self.listen("note", {"text": f"{row.name}: {text}"})

    def finish(self, texts: list[str]) -> Compression:
        """Time all models in turn, choose, and write the table."""
        passed = {name: self.models[name] for name, row in self.found.items() if row.state == DONE}
        speeds = in_turn(self.models, self.rows.inputs)
        for name, speed in speeds.items():
            row = self.found[name]
            row.latency_ms, row.rows_per_second = speed.latency_ms, speed.rows_per_second
            row.once, row.many = speed.once, speed.many
        within = {n: speeds[n] for n in passed if self.found[n].loss is not None and self.found[n].loss <= self.limit}  # type: ignore[operator]
        best = fastest(within)
        self.found[best].best = True
        task = self.source.task
        found = Compression(
            str(self.source.folder or self.source.record["lineage"]["name"]), task.metric, task.better(1.0, 0.0),
            len(self.rows), self.rows.source, self.limit, texts, list(self.found.values()), best,
        )  # fmt: skip
        mark_frontier(found)
        _keep(self.models[best], self.folder / BEST)
        found.write(self.folder)
        return found


def mark_frontier(found: Compression) -> None:
    """Say which models no other one beats in quality, one row's time and size at once."""
    sign = 1 if found.greater_is_better else -1

    def figures(row: Row) -> np.ndarray:
        return np.array([-sign * (row.value or 0.0), row.latency_ms or 0.0, float(row.bytes)])

    known = [row for row in found.table if row.value is not None and row.latency_ms is not None]
    for row in known:
        mine = figures(row)
        rivals = (figures(other) for other in known if other is not row)
        row.frontier = not any(bool((rival <= mine).all() and (rival < mine).any()) for rival in rivals)


def _keep(model: Bundle, home: Path) -> None:
    """A copy of the best bundle."""
    (home / "bundle.json").unlink(missing_ok=True)
    shutil.rmtree(home, ignore_errors=True)
    dataclasses.replace(model, folder=None).save(home)


def _quiet(listen: Listener) -> Listener:
    """The listener without the plans of single runs."""

    def hear(event: str, figures: Mapping[str, Any]) -> None:
        if event not in ("plan", "stage"):
            listen(event, figures)

    return hear


def _lost(row: Row) -> str:
    return f"{100 * row.loss:.2f} % worse" if row.loss is not None and row.loss > 0 else "no worse"


def lines(found: Compression) -> list[str]:
    """The table for a terminal."""
    width = max(len(row.name) for row in found.table)
    heads = ("lost %", "MB", "ms a row", "rows/s", "times")
    said = [
        f"{found.metric} on {found.rows} rows of {found.data}; gate {100 * found.gate:g} %",
        f"{'model':{width}s} {found.metric:>10s} "
        + "".join(f"{head:>{size}s}" for head, size in zip(heads, (8, 8, 10, 9, 13), strict=True)),
    ]
    for row in found.table:
        if row.value is None or row.latency_ms is None:
            said.append(f"{row.name:{width}s} {row.state}: {row.reason}")
            continue
        times = f"{row.once:.2f}, {row.many:.2f}"
        marks = "  best" if row.best else "  stopped by the gate" if row.state == STOPPED else ""
        said.append(
            f"{row.name:{width}s} {row.value:10.4f} {100 * (row.loss or 0):7.2f} {row.bytes / 1e6:7.1f} "
            f"{row.latency_ms:9.1f} {row.rows_per_second:8.1f} {times:>12s}{marks}"
        )
    return [*said, "times: as fast as the start, one row and a batch, measured in turn"]
