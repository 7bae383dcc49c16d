"""The report and the comparison as self-contained pages: one file each, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.evaluation import plots, wording

if TYPE_CHECKING:
    from jinja2 import Environment

CLASSES_SHOWN = 24
"""Labels in the open table; with more, the weakest `CLASSES_FOLDED` are shown and the others fold away."""

CLASSES_FOLDED = 12


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("figure", "amount", "duration", "memory", "listed", "metric_name", "metric_meaning"):
        made.filters[name] = getattr(wording, name)
    return made


def _version() -> str:
    from headstart import __version__

    return __version__


def render_report(record: Mapping[str, Any]) -> str:
    """`report.html` from a report's dictionary."""
    splits = [name for name in ("test", "validation", *record["metrics"]) if record["metrics"].get(name)]
    splits = list(dict.fromkeys(splits))
    main = _main_split(record, splits[0]) if splits else None
    memories = [stage.get("memory_bytes") or 0 for stage in record["plan"].get("stages", [])]
    bands = record["task"] not in ("regression", "multitask")
    tasks = [_task(name, task) for name, task in record["tasks"].items()]
    return _environment().get_template("report.html").render(
        r=record,
        version=_version(),
        title=_title(record),
        main=main,
        splits=[{"name": name, "rows": record["splits"].get(name, {}).get("rows")} for name in splits],
        bands=bands,
        metric_rows=_metric_rows(record, splits, [record["metric"], *(f"{t['name']}.{t['metric']}" for t in tasks)]),
        kept=next((stage["name"] for stage in record["stages"] if stage.get("kept")), None),
        alerts=_alerts(record, splits),
        sections=_sections(record, main),
        tasks=tasks,
        robust=_robust(record["robustness"]),
        effects=_effects(record["transfer"]),
        corrected=False,
        curves=_curves(record["stages"], record["metric"]),
        planned_memory=record["plan"].get("estimated_memory_bytes") or max(memories, default=0) or None,
        spec=json.dumps(record["spec"], indent=2, ensure_ascii=False),
    )  # fmt: skip


def _title(record: Mapping[str, Any]) -> str:
    """What the model was taught, from the name of its training file."""
    source = str(record["spec"].get("data", {}).get("train") or "").replace("\\", "/").rstrip("/")
    stem = source.rpartition("/")[2]
    parent = source.rpartition("/")[0].rpartition("/")[2]
    name = Path(stem).stem if "." in stem else stem
    if name.lower() in ("train", "training", "data") and parent not in ("", ".", ".."):
        name = parent
    several = " and ".join(record["tasks"]).replace("_", " ")
    return name.replace("_", " ") or several or f"{record['task'].capitalize()} model"


def _sections(record: Mapping[str, Any], main: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Anchors and names of the sections that the page has."""
    has = main or {}
    each = [(f"task-{name}", name, True) for name in record["tasks"]]
    found = [
        ("quality", "Quality", main),
        *each,
        ("transfer", "Transfer", record["transfer"]),
        ("stages", "Stages", record["stages"]),
        ("labels", "Errors" if has.get("scatter") else "Labels", has.get("per_class") or has.get("scatter")),
        ("calibration", "Calibration", has.get("calibration")),
        ("robustness", "Robustness", record["robustness"]),
        ("slices", "Slices", has.get("slices")),
        ("mistakes", "Mistakes", has.get("mistakes")),
        ("doubts", "Doubtful labels", record["label_errors"]),
        ("data", "Data", True),
        ("cost", "Cost", True),
        ("repeat", "Repeat", True),
    ]
    return [(anchor, name) for anchor, name, there in found if there]


def _alerts(record: Mapping[str, Any], splits: Sequence[str]) -> list[dict[str, str]]:
    """What must be read before the figures: notes of the run, serious findings, and what the figures rest on."""
    found = []
    if not splits:
        found.append({"level": "warning", "text": "Nothing was measured: there were no labelled rows to measure on."})
    elif "test" not in splits:
        text = "There were no test rows. These figures are of the validation rows, which also chose the model: "
        text += "they flatter it."
        found.append({"level": "warning", "text": text})
    found += [{"level": f["level"], "text": f["message"]} for f in record["findings"] if f["level"] != "note"]
    return found + [{"level": "note", "text": note} for note in record["notes"]]


def _task(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """One task of several: its own main split, with plots, and its metrics."""
    splits = [split for split in ("test", "validation") if record["metrics"].get(split)]
    return {
        "name": name,
        "task": record["task"],
        "metric": record["metric"],
        "labels": len(record["labels"]),
        "trained": record["rows"]["trained"],
        "temperature": record["temperature"],
        "main": _main_split(record, splits[0]) if splits else None,
        "splits": [{"name": split, "rows": record["splits"][split]["rows"]} for split in splits],
        "metric_rows": _metric_rows(record, splits),
    }


def _metric_rows(record: Mapping[str, Any], splits: Sequence[str], several: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Metrics down, splits across; the run's own metric first. several: what is shown of a run of several tasks."""
    known = [name for split in splits for name in record["metrics"][split]]
    if len(several) > 1:
        known = [name for name in several if name in known]
    names = sorted(dict.fromkeys(known), key=lambda name: name != record["metric"])
    rows = []
    for name in names:
        cells = [record["metrics"][split].get(name) for split in splits]
        rows.append({"name": name, "cells": cells, "bar": _band(cells[0]) if name != "log_loss" else ""})
    return rows


def _band(cell: Mapping[str, Any] | None, span: tuple[float, float] = (0, 1)) -> Any:
    return plots.interval_bar(cell["value"], cell["low"], cell["high"], span) if cell else ""


def _main_split(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The split that the page is about, with its plots drawn."""
    details, metrics = record["splits"].get(name, {}), record["metrics"][name]
    head = metrics.get(record["metric"]) or {"value": None, "low": None, "high": None}
    shown = {key: wording.headline(record["metric"], head[key]) for key in ("value", "low", "high")}
    per_class = sorted(
        details.get("per_class") or [], key=lambda c: (c["f1"] if c["f1"] is not None else -1, c["label"])
    )
    many = len(per_class) > CLASSES_SHOWN
    confusion, calibration = details.get("confusion"), details.get("calibration")
    mistakes = details.get("mistakes") or []
    return {
        "name": name,
        "rows": details.get("rows"),
        "overall": head["value"],
        "head_value": shown["value"],
        "head_range": None if head["low"] is None else f"{shown['low']} to {shown['high']}",
        "per_class": per_class,
        "classes_shown": CLASSES_FOLDED if many else CLASSES_SHOWN,
        "confusion": confusion
        and {"top": confusion["top"], "plot": plots.heat_map(confusion["counts"], record["labels"])},
        "calibration": calibration
        and {"ece": calibration["ece"], "plot": plots.reliability_diagram(calibration["bins"])},
        "scatter": [
            {"title": label, "plot": plots.scatter(pairs, f"{label}: prediction against truth")}
            for label, pairs in (details.get("scatter") or {}).items()
        ],
        "slices": _slices(details.get("slices") or {}, head["value"] or 0.0),
        "mistakes": mistakes,
        "pictures": any(mistake.get("thumbnail") for mistake in mistakes),
    }


def _slices(columns: Mapping[str, Sequence[Mapping[str, Any]]], overall: float) -> list[dict[str, Any]]:
    """Each column's records with their bars, which share an axis and mark the figure of the whole."""
    found = []
    for name, records in columns.items():
        ends = [r[key] for r in records for key in ("score", "low", "high") if r[key] is not None]
        span = (min([*ends, overall]), max([*ends, overall]))
        drawn = []
        for record in records:
            figures = record["score"], record["low"], record["high"]
            bar = "" if record["score"] is None else plots.interval_bar(*figures, span, overall)
            drawn.append({**record, "bar": bar})
        found.append({"name": name, "records": drawn})
    return found


def _robust(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Clean, attacked and spoiled rows with their bars, which share an axis and mark the clean figure."""
    if not record:
        return []
    norm, clean = record["norm"], record["clean"]
    named = [("As they are", clean)]
    named += [(f"Attacked within {wording.radius_name(a['radius'], norm)}", a) for a in record["attacks"]]
    named += [(wording.SPOILED.get(c["name"], c["name"]), c) for c in record["corruptions"]]
    ends = [m[key] for _, m in named for key in ("value", "low", "high") if m[key] is not None]
    span = (min(0.0, *ends), max(1.0, *ends))
    return [
        {"name": name, "measured": m, "bar": plots.interval_bar(m["value"], m["low"], m["high"], span, clean["value"])}
        for name, m in named
    ]


def _effects(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Comparisons with their difference, interval and bar, all on one scale."""
    ends = [abs(r[key]) for r in records for key in ("value", "low", "high") if r.get(key) is not None]
    reach = max(ends, default=1.0) * 1.05
    found = []
    for record in records:
        low, high = record.get("low"), record.get("high")
        found.append(
            {
                "against": record["against"],
                "budget": record.get("budget", ""),
                "low": low,
                "high": high,
                "p": record.get("p"),
                **{key: record.get(key) for key in ("p_holm", "wins", "seeds")},
                "shown": f"{record['value']:+.3f}",
                "range": wording.UNKNOWN if low is None or high is None else f"{low:+.3f} to {high:+.3f}",
                "bar": plots.effect_bar(record["value"], low, high, reach),
            }
        )
    return found


def _curves(stages: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """One plot for each stage and figure (the metric, the loss) that was recorded at least twice."""
    found = []
    for stage in stages:
        history = stage.get("history") or []
        figures = [
            key for key in (metric, "loss", "validation_loss") if any(entry.get(key) is not None for entry in history)
        ]
        for key in figures:
            points = [
                (float(entry.get("epoch", k + 1)), float(entry[key]))
                for k, entry in enumerate(history)
                if entry.get(key) is not None
            ]
            if len(points) < 2:
                continue
            name = wording.metric_name(key)
            plot = plots.line_chart(
                [plots.Series(name, points)], title=f"{stage['name']}: {name} by epoch", x_label="epoch", y_label=name
            )
            found.append({"title": f"{stage['name']}: {name}{' on validation' if key == metric else ''}", "plot": plot})
    return found


def render_comparison(record: Mapping[str, Any]) -> str:
    """`compare.html` from `Comparison.to_json()`: `metric`, `cells`, `summary` and `transfer`.

    Where no summary record has `low` and `high`, the whiskers are standard deviations over seeds.
    """
    summary, metric = record["summary"], record["metric"]
    arms = list(dict.fromkeys(s["arm"] for s in summary))
    budgets = list(dict.fromkeys(s["budget"] for s in summary))
    by_place = {(s["arm"], s["budget"]): s for s in summary}
    widest = {b: max(s["rows"] for s in summary if s["budget"] == b) for b in budgets}
    with_intervals = any(s.get("low") is not None for s in summary)
    seeds = max((s["seeds"] for s in summary), default=0)
    whiskers = "whiskers are 95 % intervals." if with_intervals else "whiskers are one standard deviation over seeds."
    return _environment().get_template("compare.html").render(
        version=_version(),
        metric=metric,
        arms=arms,
        ours=arms[0] if arms else "",
        budgets=[{"name": b, "rows": widest[b]} for b in budgets],
        seeds=seeds,
        whiskers=whiskers if with_intervals or seeds > 1 else "with one seed there is no spread to show.",
        curve=plots.line_chart(
            [_series(arm, [by_place[arm, b] for b in budgets if (arm, b) in by_place]) for arm in arms],
            title=f"{wording.metric_name(metric)} by training rows",
            x_label="training rows",
            y_label=wording.metric_name(metric),
            log=len(budgets) > 1,
            width=640,
            height=340,
        ),
        grid=[
            {"arm": arm, "cells": [_cell(by_place.get((arm, b)), b, summary, metric) for b in budgets]} for arm in arms
        ],
        effects=_effects(record["transfer"]),
        corrected=any("p_holm" in effect for effect in record["transfer"]),
        summary=summary,
        cells=record["cells"],
        folded=any(cell["fold"] for cell in record["cells"]),
    )  # fmt: skip


def _series(arm: str, records: Sequence[Mapping[str, Any]]) -> plots.Series:
    ordered = sorted(records, key=lambda s: s["rows"])
    ends: list[tuple[float, float] | None] = []
    for s in ordered:
        if s.get("low") is not None and s.get("high") is not None:
            ends.append((s["low"], s["high"]))
        else:
            ends.append(None if s.get("sd") is None else (s["mean"] - s["sd"], s["mean"] + s["sd"]))
    return plots.Series(arm, [(float(s["rows"]), s["mean"]) for s in ordered], ends)


def _cell(
    found: Mapping[str, Any] | None, budget: str, summary: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, Any] | None:
    """A cell of the table, marked when it is the best of its budget."""
    if found is None:
        return None
    from headstart.tasks import lower_is_better

    rivals = [s["mean"] for s in summary if s["budget"] == budget]
    best = min(rivals) if lower_is_better(metric) else max(rivals)
    keys = ("mean", "sd", "low", "high")
    return {**{key: found.get(key) for key in keys}, "best": len(rivals) > 1 and found["mean"] == best}
