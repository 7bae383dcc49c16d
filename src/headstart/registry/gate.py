"""Whether a challenger may take a champion's place: both answer the same rows, and the figures decide.

The rule is about what was measured: on the same rows, the challenger's main metric may be below the champion's by the
gate at most, 0 when none is given. It does not ask whether a loss could be chance. On few rows nearly every loss could,
and a chain of such losses, each within chance, is a real one; the paired interval is reported beside the figures, and
whoever accepts a loss says how much by the gate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.bundle import Bundle
from headstart.errors import DataError, RegistryError
from headstart.evaluation.intervals import measured_draws, paired
from headstart.evaluation.measure import SMALL, measure_split
from headstart.registry.rows import Learned, TestRows, load

CHUNK = 2048
TIMED_ROWS = 50
"""Rows that are answered one by one to measure latency."""


@dataclass(frozen=True)
class Measured:
    """Two models on the same rows.

    task: of several, whose rows they are. greater: whether more of the metric is better. champion and challenger: the
    main metric; loss: by how much the challenger is worse, points of a metric between 0 and 1, else a share of the
    champion's. difference, low, high, p: challenger minus champion, paired row by row. slices: of every column its
    values, each with rows, champion, challenger and whether it has rows enough to be judged.
    """

    task: str
    metric: str
    greater: bool
    source: str
    rows: int
    left_out: int
    champion: float
    challenger: float
    loss: float
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    slices: dict[str, list[dict[str, Any]]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """What was measured and what speaks against the challenger; nothing where it passes.

    latency_ms: p50 of one row on this machine, of the champion (None without one) and the challenger; None where it was
    not asked for. budget_ms: what was allowed.
    """

    measured: tuple[Measured, ...]
    gate: float
    latency_ms: tuple[float | None, float] | None
    budget_ms: float | None
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; figures that the rows leave undefined are None."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def judge(
    champion: Bundle | None,
    challenger: Bundle,
    *,
    test: str | Path | None = None,
    gate: float = 0.0,
    slices: Sequence[str] = (),
    latency_ms: float | None = None,
) -> Judgement:
    """Measure both models on the champion's test rows, or those in `test`; time single rows where a budget is given.

    Raises RegistryError for models that cannot be compared or rows that are not there, DataError for rows that do not
    fit.
    """
    measured = []
    inputs: Sequence[Any] = challenger.probe_inputs
    if champion is not None:
        _comparable(champion, challenger, test)
        old, new = Learned(champion, "the champion"), Learned(challenger, "the challenger")
        for task in champion.tasks or ("",):
            rows = load(old, new, task, test, list(slices))
            pair = (champion, challenger) if not task else (champion.only(task), challenger.only(task))
            measured.append(_measure(*pair, rows))
            inputs = rows.inputs
    times = None if latency_ms is None else _latency(champion, challenger, inputs)
    reasons = [reason for each in measured for reason in _against(each, gate)]
    if times is not None and latency_ms is not None and not times[1] <= latency_ms:
        reasons.append(f"one row takes {times[1]:.1f} ms, and {latency_ms:g} ms are allowed")
    return Judgement(tuple(measured), gate, times, latency_ms, tuple(reasons))


def _comparable(champion: Bundle, challenger: Bundle, test: str | Path | None) -> None:
    kinds = [(model.modality.name, model.task.name, model.tasks) for model in (champion, challenger)]
    if kinds[0] != kinds[1]:
        what = [" ".join((modality, task, *tasks)) for modality, task, tasks in kinds]
        raise RegistryError(f"expected a challenger of the champion's kind ({what[0]}), received {what[1]}")
    if champion.tasks and test is not None:
        raise RegistryError(
            f"the champion has several tasks ({', '.join(champion.tasks)}), which are measured on the test rows that "
            f"it was made with: leave --test out"
        )


def _measure(champion: Bundle, challenger: Bundle, rows: TestRows) -> Measured:
    task, metric = champion.task, champion.task.metric
    if task.name != challenger.task.name:
        raise RegistryError(f"expected a challenger for {task.name}, as the champion, received {challenger.task.name}")
    if task.name == "regression" and champion.labels != challenger.labels:
        expected, received = (", ".join(model.labels) for model in (champion, challenger))
        raise RegistryError(f"expected a challenger for the champion's targets, {expected}, received {received}")
    figures, draws, details = [], [], []
    for model in (champion, challenger):
        scores = np.concatenate(
            [model.scores(rows.inputs[at : at + CHUNK]) for at in range(0, len(rows.inputs), CHUNK)]
        )
        targets = _targets(model, rows)
        try:
            value, drawn = measured_draws(model.task, scores, targets, metric=metric)
        except StopIteration:
            raise RegistryError(f"the challenger has no metric '{metric}', by which the champion is measured") from None
        figures.append(value)
        draws.append(drawn)
        details.append(measure_split(model.task, scores, targets, slices=rows.slices)["slices"])
    common = min(map(len, draws))
    change = paired(figures[1] - figures[0], draws[1][:common] - draws[0][:common])
    return Measured(
        rows.task, metric, task.greater_is_better, rows.source, len(rows.inputs), rows.left_out, figures[0], figures[1],
        _loss(task.greater_is_better, *figures), change["value"], change["low"], change["high"], change["p"],
        {name: _slices(details[0][name], details[1][name]) for name in rows.slices}, rows.notes,
    )  # fmt: skip


def _targets(model: Bundle, rows: TestRows) -> np.ndarray:
    try:
        found: np.ndarray = model.task.encode(rows.labels).numpy()
    except DataError as error:
        raise RegistryError(f"the challenger cannot answer what the champion is measured on: {error}") from None
    return found


def _loss(greater_is_better: bool, champion: float, challenger: float) -> float:
    """By how much the challenger is worse; nan where a figure is."""
    worse = champion - challenger if greater_is_better else challenger - champion
    return worse if greater_is_better and 0 <= champion <= 1 else worse / max(abs(champion), 1e-12)


def _within(loss: float, gate: float) -> bool:
    """Whether a loss is at most the gate, but for what floats round; nan never is."""
    return loss <= gate + 1e-9


def _slices(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both models on each value of a column. A few rows say nothing about a slice, so those are not judged."""
    return [
        {
            "value": a["value"],
            "rows": a["rows"],
            "champion": a["score"],
            "challenger": b["score"],
            "judged": not a["small"] and a["score"] is not None and b["score"] is not None,
        }
        for a, b in zip(old, new, strict=True)
    ]


def _against(measured: Measured, gate: float) -> list[str]:
    """What speaks against the challenger, a sentence each."""
    greater = measured.greater
    of = f"{measured.task}: " if measured.task else ""
    reasons = []
    if not _within(measured.loss, gate):
        reasons.append(
            f"{of}{measured.metric} {measured.challenger:.4f} against {measured.champion:.4f}, "
            f"{_share(measured, measured.loss)} worse on {measured.rows} rows of {measured.source}, and the gate is "
            f"{_share(measured, gate)}"
        )
    for column, values in measured.slices.items():
        judged = [each for each in values if each["judged"]]
        if not judged:
            raise DataError(
                f"no value of '{column}' has {SMALL} rows in {measured.source}: slices as small say nothing"
            )
        worst = min if greater else max
        old = worst(judged, key=lambda each: each["champion"])
        new = worst(judged, key=lambda each: each["challenger"])
        if not _within(_loss(greater, old["champion"], new["challenger"]), gate):
            reasons.append(
                f"{of}{measured.metric} on the worst slice by {column} is {new['challenger']:.4f} ({new['value']}) "
                f"against {old['champion']:.4f} ({old['value']})"
            )
    return reasons


def _share(measured: Measured, loss: float) -> str:
    """A loss as it is counted for this metric."""
    points = measured.greater and 0 <= measured.champion <= 1
    return f"{100 * loss:.2f} {'points' if points else '%'}"


def _latency(champion: Bundle | None, challenger: Bundle, inputs: Sequence[Any]) -> tuple[float | None, float]:
    """Milliseconds of the median row answered alone, of both in turn, so that a busy moment meets both."""
    models = [model for model in (champion, challenger) if model is not None]
    times: list[list[float]] = [[] for _ in models]
    rows = list(inputs)[:TIMED_ROWS]
    for turn, row in enumerate([rows[0], *rows]):
        for place, model in enumerate(models):
            started = time.perf_counter()
            model.outputs([row])
            if turn:  # the first row pays for what later ones find done
                times[place].append(time.perf_counter() - started)
    found = [1000 * float(np.median(each)) for each in times]
    return (found[0] if champion is not None else None, found[-1])


def lines(found: Judgement) -> list[str]:
    """The figures for a terminal."""
    said = []
    for each in found.measured:
        of = f"{each.task}: " if each.task else ""
        interval = (
            "" if each.low is None or each.high is None else f" [{each.low:+.4f}, {each.high:+.4f}], p {each.p:.2g}"
        )
        said.append(
            f"{of}{each.metric} on {each.rows} rows of {each.source}: champion {each.champion:.4f}, challenger "
            f"{each.challenger:.4f}, difference {each.difference:+.4f}{interval}"
        )
        said += [f"note: {note}" for note in each.notes]
        for column, values in each.slices.items():
            said.append(f"by {column}:")
            said += [f"  {_slice_line(value)}" for value in values]
    if found.latency_ms is not None:
        old, new = found.latency_ms
        before = "" if old is None else f"champion {old:.1f} ms, "
        said.append(f"one row, p50: {before}challenger {new:.1f} ms, {found.budget_ms:g} ms allowed")
    return said


def _slice_line(value: dict[str, Any]) -> str:
    if value["champion"] is None or value["challenger"] is None:
        return f"{value['value']}: {value['rows']} rows, not measurable"
    remark = "" if value["judged"] else ", too few to judge"
    both = f"champion {value['champion']:.4f}, challenger {value['challenger']:.4f}"
    return f"{value['value']}: {both} on {value['rows']} rows{remark}"
