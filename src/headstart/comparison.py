"""How much transfer helped: the same rows learned in several ways, at several label budgets, over several seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headstart.adapt import execute, make_spec, prepare
from headstart.errors import SpecError
from headstart.evaluation.intervals import paired_difference
from headstart.loop import Listener
from headstart.planning import choose_epochs
from headstart.protocols import Task
from headstart.spec import Spec
from headstart.stages import make_methods

RECIPE = "recipe"
SCRATCH_EPOCHS = 2
"""A network that starts at random is given this many times the plan's epochs: it has more to learn."""

SCRATCH_RATE = 5e-4
"""Its learning rate, unless the user sets one: there is nothing to preserve."""

TEST_FRACTION = 0.2
"""Share of the rows set aside to measure on when no test file is given."""


@dataclass(frozen=True)
class Cell:
    """One fit. budget: the share or count as the user wrote it; rows: training rows used; predictions: for pairing."""

    arm: str
    budget: str
    seed: int
    rows: int
    value: float
    seconds: float
    trainable: int
    total: int
    stage: str


@dataclass
class Comparison:
    """All cells with what they say: a summary per arm and budget, and the effect of transfer against each arm."""

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


def arm_spec(spec: Spec, arm: str) -> Spec:
    """The spec of an arm: 'recipe', 'scratch', 'probe', 'finetune', or any methods as `a+b:k=v`."""
    record = spec.to_json()
    if arm == RECIPE:
        return spec
    record["stages"], record["keep"] = [], "last"
    if arm == "scratch":
        record["methods"] = []
        record["backbone"]["pretrained"] = False
        record["training"]["head"] = "random"
        record["training"]["learning_rate"] = spec.training.learning_rate or SCRATCH_RATE
        return Spec.make(record)
    record["methods"] = {"probe": ["freeze:probe"], "finetune": []}.get(arm, arm.split("+"))
    return Spec.make(record)


def budget_spec(spec: Spec, budget: str) -> Spec:
    """The spec with fewer labels: '10%' is a share of the training rows by class, '8' so many rows a class."""
    text = budget.strip()
    try:
        change = {"fraction": float(text[:-1]) / 100} if text.endswith("%") else {"per_class": int(text)}
    except ValueError:
        raise SpecError(f"expected label budgets such as 10% or 8 (rows a class), received '{budget}'") from None
    return Spec.make({**spec.to_json(), "data": {**spec.to_json()["data"], **change}})


def compare(
    train: Any = None,
    *,
    against: Sequence[str] = ("scratch", "probe"),
    labels: Sequence[str] = ("100%",),
    seeds: int = 1,
    spec: Spec | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    listen: Listener = lambda event, figures: None,
    **asked: Any,
) -> Comparison:
    """Fit the spec and every arm at every budget and seed, measure all on the same test rows.

    Raises SpecError for an unknown arm, budget or metric before anything is trained.
    """
    if seeds < 1:
        raise SpecError(f"expected at least 1 seed, received {seeds}")
    base = make_spec(train, spec=spec, **asked)
    if base.data.test is None and base.data.test_fraction == 0:
        base = Spec.make(base.to_json(), data__test_fraction=TEST_FRACTION)
    arms = list(dict.fromkeys((RECIPE, *against)))
    plans = {(arm, budget): budget_spec(arm_spec(base, arm), budget) for arm in arms for budget in labels}
    for chosen in plans.values():
        make_methods(chosen.methods or ())
    found = Comparison("")
    correct: dict[tuple[str, str, int], np.ndarray] = {}
    for (arm, budget), chosen in plans.items():
        for offset in range(seeds):
            cell, rows_right = _fit(found, chosen, arm, budget, base.training.seed + offset, listen)
            found.cells.append(cell)
            correct[arm, budget, cell.seed] = rows_right
            listen("cell", {"cell": cell, "metric": found.metric, "done": len(found.cells), "of": len(plans) * seeds})
    _summarise(found, arms, list(labels))
    _effects(found, arms, list(labels), correct, same_rows=base.data.test is not None)
    if out is not None:
        found.write(out)
    return found


def _fit(
    found: Comparison, chosen: Spec, arm: str, budget: str, seed: int, listen: Listener
) -> tuple[Cell, np.ndarray]:
    started = time.monotonic()
    chosen = Spec.make(chosen.to_json(), training__seed=seed)
    run = prepare(chosen)
    if arm == "scratch" and chosen.training.epochs is None:
        epochs = SCRATCH_EPOCHS * choose_epochs(chosen.training, len(run.data.train))
        run = prepare(Spec.make(chosen.to_json(), training__epochs=epochs))
    made = execute(run, None)
    report = made.report.to_json() if made.report is not None else {}
    metric = run.task.metric
    found.metric = metric
    if run.test is None or run.test.targets is None:
        raise SpecError("there are no test rows to compare on")
    inputs = run.data.test.inputs() if run.data.test is not None else []
    scores = made.scores([inputs[i] for i in range(len(inputs))])
    kept = next(stage for stage in report["stages"] if stage["kept"])
    cell = Cell(
        arm, budget, seed, len(run.data.train), float(report["metrics"]["test"][metric]["value"]),
        time.monotonic() - started, report["parameters"]["trainable"], report["parameters"]["total"], kept["name"],
    )  # fmt: skip
    return cell, _right(run.task, scores, run.test.targets.numpy())


def _right(task: Task, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """How right each row is, (rows,): 1 or 0, the share of its labels, or minus its error."""
    if task.name == "regression":
        return np.asarray(-task.wrongness(scores, targets)[1])
    if targets.ndim == 1:
        return np.asarray(scores.argmax(1) == targets, dtype=np.float64)
    return np.asarray(np.equal(scores > 0.5, targets > 0.5).mean(1))


def _summarise(found: Comparison, arms: list[str], budgets: list[str]) -> None:
    for budget in budgets:
        for arm in arms:
            cells = [c for c in found.cells if c.arm == arm and c.budget == budget]
            values = np.array([c.value for c in cells])
            found.summary.append(
                {
                    "arm": arm,
                    "budget": budget,
                    "rows": cells[0].rows,
                    "seeds": len(cells),
                    "mean": float(values.mean()),
                    "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                    "seconds": float(np.mean([c.seconds for c in cells])),
                    "trainable": cells[0].trainable,
                    "total": cells[0].total,
                }
            )


def _effects(
    found: Comparison,
    arms: list[str],
    budgets: list[str],
    correct: Mapping[tuple[str, str, int], np.ndarray],
    *,
    same_rows: bool,
) -> None:
    """The recipe against every other arm, paired row by row within each seed; rows seen by all seeds count once."""

    def rows_right(arm: str, budget: str) -> np.ndarray:
        seeds = sorted({c.seed for c in found.cells if c.budget == budget})
        each = [correct[arm, budget, seed] for seed in seeds]
        return np.mean(each, axis=0) if same_rows else np.concatenate(each)

    for budget in budgets:
        for arm in arms[1:]:
            effect = paired_difference(rows_right(RECIPE, budget), rows_right(arm, budget))
            found.transfer.append({"against": arm, "budget": budget, **effect})


def lines(found: Comparison) -> list[str]:
    """The comparison as a table for the terminal."""
    table = [f"{'arm':12s} {'labels':>8s} {'rows':>8s} {found.metric:>20s} {'seconds':>9s} {'learns':>12s}"]
    for row in found.summary:
        value = f"{row['mean']:.4f}" + (f" +- {row['sd']:.4f}" if row["sd"] is not None else "")
        table.append(
            f"{row['arm']:12s} {row['budget']:>8s} {row['rows']:>8,d} {value:>20s} "
            f"{row['seconds']:>9.1f} {row['trainable']:>12,d}"
        )
    for effect in found.transfer:
        table.append(
            f"recipe against {effect['against']} at {effect['budget']}: {effect['value']:+.4f} "
            f"[{effect['low']:+.4f}, {effect['high']:+.4f}] on the same test rows"
        )
    return table
