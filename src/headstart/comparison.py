"""Several ways of learning on the same rows, seeds and folds: what each reaches, what it costs, what is chance.

An arm is one way of learning. Every arm is fitted at every label budget, seed and fold, and answers the same rows; its
answers are kept, so that differences are paired row by row (`evaluation/versus.py`) and a comparison that was cut off
goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.adapt import Run, execute, make_spec, prepare
from headstart.errors import SpecError
from headstart.evaluation.versus import Answers, effects, summarise
from headstart.hooks import make_methods
from headstart.loop import Listener
from headstart.members import Member
from headstart.planning import choose_epochs
from headstart.protocols import Task
from headstart.spec import DataSpec, MethodSpec, Spec

RECIPE = "recipe"
SINGLE = "single"
SCRATCH_EPOCHS = 2
"""A network that starts at random is given this many times the plan's epochs: it has more to learn."""

SCRATCH_RATE = 5e-4
"""Its learning rate, unless the user sets one: there is nothing to preserve."""

TEST_FRACTION = 0.2
"""Share of the rows set aside to measure on when no test file is given."""

CELLS = "cells"
ADDED = ("rows", "seconds", "cpu_seconds", "trainable", "total", "bytes")
"""Costs of a cell that add up where tasks are fitted one by one."""


@dataclass(frozen=True)
class Cell:
    """One fit. budget: the share or count as the user wrote it; fold: from 1, 0 where there are no folds.

    rows: training rows used; seconds: of the clock and of the processor; peak_memory_bytes: the largest size of the
    process during the fit; bytes: of the finished model's weights; value: the metric on the rows it was measured on.
    """

    arm: str
    budget: str
    seed: int
    fold: int
    rows: int
    value: float
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    trainable: int
    total: int
    bytes: int
    stage: str


@dataclass
class Comparison:
    """All cells with what they say: a summary per arm and budget, and the first arm's difference to every other."""

    metric: str
    cells: list[Cell] = field(default_factory=list)
    summary: list[dict[str, Any]] = field(default_factory=list)
    transfer: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def write(self, folder: str | Path) -> Path:
        """`compare.json` and `compare.html` in `folder`; returns the page's path."""
        from headstart.evaluation.page import render_comparison

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compare.json").write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        page = folder / "compare.html"
        page.write_text(render_comparison(self.to_json()), encoding="utf-8")
        return page


@dataclass(frozen=True)
class _Fit:
    """A cell to come, with the spec that makes it."""

    arm: str
    budget: str
    seed: int
    fold: int
    spec: Spec


def arm_spec(spec: Spec, arm: str) -> Spec:
    """The spec of an arm: 'recipe', 'scratch', 'probe', 'finetune', any methods as `a+b:k=v`, or a spec's file.

    'single', for a spec of several tasks, is the spec itself, whose tasks are then fitted one by one.

    A file (`.toml`, or a bundle whose run to repeat) gives everything but the rows, which are the comparison's.
    """
    record = spec.to_json()
    if arm == RECIPE:
        return spec
    if arm == SINGLE:
        if not spec.tasks:
            raise SpecError("the arm 'single' fits each of several tasks alone, and this spec has one task")
        return spec
    if _is_file(arm):
        path = Path(arm)
        other = Spec.read(path / "bundle.json" if path.is_dir() else path).to_json()
        rows = {"data": record["data"], "tasks": record["tasks"]}
        return Spec.make({**other, **rows, **({"task": record["task"]} if spec.tasks else {})})
    record["stages"], record["keep"] = [], "last"
    if arm == "scratch":
        record["methods"] = []
        record["backbone"]["pretrained"] = False
        record["training"]["head"] = "random"
        record["training"]["learning_rate"] = spec.training.learning_rate or SCRATCH_RATE
        return Spec.make(record)
    record["methods"] = {"probe": ["freeze:probe"], "finetune": []}.get(arm, arm.split("+"))
    return Spec.make(record)


def _is_file(arm: str) -> bool:
    return arm.endswith(".toml") or (Path(arm) / "bundle.json").exists()


def budget_spec(spec: Spec, budget: str) -> Spec:
    """The spec with fewer labels: '10%' is a share of the training rows by class, '8' so many rows a class."""
    text = budget.strip()
    try:
        change = {"fraction": float(text[:-1]) / 100} if text.endswith("%") else {"per_class": int(text)}
    except ValueError:
        raise SpecError(f"expected label budgets such as 10% or 8 (rows a class), received '{budget}'") from None
    return _with_data(spec, change)


def _with_data(spec: Spec, change: Mapping[str, Any]) -> Spec:
    """The spec with keys of `data` changed, in every task where there are several."""
    record = spec.to_json()
    for part in record["tasks"].values() if spec.tasks else (record,):
        part["data"] |= change
    return Spec.make(record)


def compare(
    train: Any = None,
    *,
    against: Sequence[str] = ("scratch", "probe"),
    baseline: str = RECIPE,
    labels: Sequence[str] = ("100%",),
    seeds: int = 1,
    folds: int | None = None,
    spec: Spec | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    listen: Listener = lambda event, figures: None,
    **asked: Any,
) -> Comparison:
    """Fit the baseline and every arm at every budget, seed and fold; measure all on the same rows.

    folds: cross-validation over so many parts of the training rows, the same for every arm and seed; takes the place of
    a test file. resume: fits that `out` holds already are not repeated.
    Raises SpecError for an unknown arm, budget or metric before anything is trained.
    """
    fits = _plan(make_spec(train, spec=spec, **asked), baseline, against, labels, seeds, folds)
    if resume and out is None:
        raise SpecError("resume needs out, the folder of the comparison that was cut off")
    keep = None if out is None else Path(out) / CELLS
    found = Comparison("")
    answers: dict[tuple[str, str], dict[int, list[Answers]]] = {}
    task: Task | None = None
    for fit in fits:
        run = _prepared(fit)
        task, found.metric, targets = run.task, run.task.metric, _targets(run)
        place = None if keep is None else keep / _key(fit, run)
        before = _done(place) if resume and place is not None else None
        cell, scores = before or (_fit_each if fit.arm == SINGLE else _fit)(fit, run)
        if before is None and place is not None:
            _keep(place, cell, scores)
        found.cells.append(cell)
        by_seed = answers.setdefault((fit.arm, fit.budget), {})
        by_seed.setdefault(fit.seed, []).append(Answers(scores, targets))
        listen("cell", {"cell": cell, "metric": found.metric, "done": len(found.cells), "of": len(fits)})
    same_rows = folds is not None or all(data.test is not None for data in _data_of(fits[0].spec))
    if task is not None:
        found.summary = summarise(task, [asdict(cell) for cell in found.cells], answers, same_rows=same_rows)
        found.transfer = effects(task, baseline, answers, same_rows=same_rows)
        for member in task.members:
            own = {
                arm: {s: [_share(a, member) for a in each] for s, each in seeds.items()}
                for arm, seeds in answers.items()
            }
            each = effects(member.task, baseline, own, same_rows=same_rows)
            found.transfer += [{**effect, "against": f"{effect['against']} ({member.name})"} for effect in each]
    if out is not None:
        found.write(out)
    return found


def _data_of(spec: Spec) -> list[DataSpec]:
    return [own.data for own in spec.tasks.values()] or [spec.data]


def _share(answers: Answers, member: Member) -> Answers:
    """What a fit of several tasks answered to the rows of one."""
    rows = member.rows(answers.targets)
    return Answers(answers.scores[rows][:, member.columns], member.own(answers.targets[rows]))


def _plan(
    base: Spec, baseline: str, against: Sequence[str], budgets: Sequence[str], seeds: int, folds: int | None
) -> list[_Fit]:
    """Every fit to come, each spec made and its methods looked up before anything is trained."""
    if seeds < 1:
        raise SpecError(f"expected at least 1 seed, received {seeds}")
    if folds is not None and base.tasks:
        raise SpecError("folds are parts of one set of rows, and this spec has several tasks: give each test rows")
    if folds is not None and base.data.test is not None:
        raise SpecError("folds and a test file are two ways to measure: leave one of them out")
    if folds is not None:
        base = Spec.make(base.to_json(), data__folds=folds, data__fold=1)
    elif all(data.test is None and data.test_fraction == 0 for data in _data_of(base)):
        base = _with_data(base, {"test_fraction": TEST_FRACTION})
    fits = []
    for arm in dict.fromkeys((baseline, *against)):
        whole = arm_spec(base, arm)
        make_methods(whole.methods or ())
        for budget in budgets:
            part = budget_spec(whole, budget)
            for seed in range(base.training.seed, base.training.seed + seeds):
                for fold in range(1, folds + 1) if folds is not None else (0,):
                    chosen = Spec.make(part.to_json(), training__seed=seed, data__fold=fold or None)
                    fits.append(_Fit(arm, budget, seed, fold, chosen))
    return fits


def _prepared(fit: _Fit) -> Run:
    run = prepare(fit.spec)
    if fit.arm == "scratch" and fit.spec.training.epochs is None:
        epochs = SCRATCH_EPOCHS * choose_epochs(fit.spec.training, len(run.data.train))
        run = prepare(Spec.make(fit.spec.to_json(), training__epochs=epochs))
    return run


def _targets(run: Run) -> np.ndarray:
    if run.test is None or run.test.targets is None:
        raise SpecError("there are no test rows to compare on")
    return run.test.targets.numpy()


def _fit(fit: _Fit, run: Run) -> tuple[Cell, np.ndarray]:
    started, busy = time.monotonic(), time.process_time()
    made = execute(run, None, timed=False)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - busy
    report = made.report.to_json() if made.report is not None else {}
    if run.answers is None:
        raise SpecError("the fit answered no test rows")
    scores = run.task.scores(torch.from_numpy(run.answers), made.temperature).numpy()
    kept = next(stage for stage in report["stages"] if stage["kept"])
    weights = made.model.state_dict().values()
    cell = Cell(
        fit.arm, fit.budget, fit.seed, fit.fold, len(run.data.train),
        float(report["metrics"]["test"][run.task.metric]["value"]), seconds, cpu_seconds,
        report["cost"]["peak_memory_bytes"], report["parameters"]["trainable"], report["parameters"]["total"],
        sum(value.numel() * value.element_size() for value in weights), kept["name"],
    )  # fmt: skip
    return cell, scores


def _fit_each(fit: _Fit, run: Run) -> tuple[Cell, np.ndarray]:
    """Every task of the spec by itself, with the same settings less the methods that need several; one cell for all."""
    targets = _targets(run)
    scores = np.zeros((len(targets), run.task.outputs), dtype=np.float32)
    cells: list[Cell] = []
    for member in run.task.members:
        alone = prepare(_for_one(fit.spec.alone(member.name)))
        cell, own = _fit(fit, alone)
        cells.append(cell)
        rows = np.flatnonzero(member.rows(targets))
        scores[rows[:, None], np.arange(run.task.outputs)[member.columns]] = own
    value = run.task.measure(scores, targets)[run.task.metric]
    sums = {key: sum(getattr(cell, key) for cell in cells) for key in ADDED}
    peak = max(cell.peak_memory_bytes for cell in cells)
    return replace(cells[0], value=value, peak_memory_bytes=peak, stage="each", **sums), scores


def _for_one(spec: Spec) -> Spec:
    """The spec without methods that require several tasks, and with the task's own metric."""

    def fits(listed: Sequence[MethodSpec]) -> tuple[MethodSpec, ...]:
        made = make_methods(tuple(listed))
        return tuple(one for one in listed if "task.multitask" not in made[one.name].requires())

    stages = tuple(stage.model_copy(update={"methods": fits(stage.methods)}) for stage in spec.stages)
    methods = None if spec.methods is None else fits(spec.methods)
    training = spec.training.model_copy(update={"metric": None})
    return spec.model_copy(update={"stages": stages, "methods": methods, "training": training})


def _key(fit: _Fit, run: Run) -> str:
    """The name of a fit's files. Tasks that are fitted one by one have the spec and the rows of those that are not."""
    return hashlib.sha256((run.identity + (SINGLE if fit.arm == SINGLE else "")).encode()).hexdigest()[:32]


def _keep(place: Path, cell: Cell, scores: np.ndarray) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    np.save(place.with_suffix(".npy"), scores)
    # Written last: answers without a cell are not a finished fit.
    place.with_suffix(".json").write_text(json.dumps(asdict(cell)) + "\n", encoding="utf-8")


def _done(place: Path) -> tuple[Cell, np.ndarray] | None:
    """The cell and the answers of a fit that was finished before, by its spec and its data."""
    try:
        cell = Cell(**json.loads(place.with_suffix(".json").read_text(encoding="utf-8")))
        return cell, np.load(place.with_suffix(".npy"), allow_pickle=False)
    except (OSError, ValueError, TypeError):
        return None


def lines(found: Comparison) -> list[str]:
    """The comparison as tables for the terminal."""
    width = max(12, *(len(row["arm"]) for row in found.summary))
    table = [
        f"{'arm':{width}s} {'labels':>8s} {'rows':>8s} {found.metric:>20s} {'95 % interval':>18s} {'cpu s':>8s} "
        f"{'peak MB':>8s} {'learns':>12s}"
    ]
    for row in found.summary:
        value = f"{row['mean']:.4f}" + (f" +- {row['sd']:.4f}" if row["sd"] is not None else "")
        band = "-" if row["low"] is None else f"[{row['low']:.4f}, {row['high']:.4f}]"
        table.append(
            f"{row['arm']:{width}s} {row['budget']:>8s} {row['rows']:>8,d} {value:>20s} {band:>18s} "
            f"{row['cpu_seconds']:>8.1f} {row['peak_memory_bytes'] / 2**20:>8,.0f} {row['trainable']:>12,d}"
        )
    for effect in found.transfer:
        band = "" if effect["low"] is None else f" [{effect['low']:+.4f}, {effect['high']:+.4f}], p {effect['p']:.3f}"
        wins = f", better on {effect['wins']} of {effect['seeds']} seeds" if effect["seeds"] > 1 else ""
        table.append(
            f"{effect['arm']} against {effect['against']} at {effect['budget']}: {effect['value']:+.4f}{band} "
            f"on the same test rows{wins}"
        )
    return table
