"""The verbs that take files: plan a run, predict a file, evaluate a bundle on labelled rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headstart import data, robustness, scoring
from headstart.adapt import make_spec, prepare
from headstart.bundle import Bundle, load
from headstart.encoded import Encoded
from headstart.errors import BadInput, DataError, did_you_mean
from headstart.planning import Plan

CHUNK = 8192
"""Rows answered at a time: long enough to sort by length, short enough to keep memory flat."""


def plan(train: Any = None, **asked: Any) -> Plan:
    """What `fit` with the same arguments would do; nothing is trained or written."""
    return prepare(make_spec(train, **asked)).plan()


def predict(
    bundle: Bundle | str | Path,
    path: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    tta: int = 1,
    seed: int = 0,
    precision: str = "auto",
    resume: bool = False,
    engine: str = "local",
    tell: Callable[[str], None] = lambda sentence: None,
) -> int:
    """Answer every row of a file: its columns, `prediction` and the score columns go to `out`; returns the row count.

    Of several tasks each gives `prediction_<task>` and score columns with its name; with `task` only that one answers,
    under the names that a model of one task uses. `out` ends in .csv, .tsv, .jsonl or .parquet and is written whole or
    not at all. tta: views of each row that are averaged, drawn from `seed`. precision: auto, fp32 or bf16, as for
    `Bundle.outputs`. Raises DataError for a missing column or a row that cannot be read.

    For a folder of such files and a folder as `out`, each file is answered into one of the same name
    (`scoring.answer_folder`): resume goes on with a run that was cut off, engine 'ray' answers several files at a time,
    and tell receives a line a file.
    """
    out = Path(out)
    how = {"tta": tta, "seed": seed, "precision": precision}
    if out.suffix.lower() not in data.FORMATS and scoring.is_folder_of_tables(path):
        return _predict_folder(bundle, Path(path), out, task, how, resume=resume, engine=engine, tell=tell)
    if resume or engine != "local":
        raise DataError(
            f"resume and engine are for a folder of files and a folder of answers; '{path}' to '{out}' is not"
        )
    return _predict_file(_model(bundle, task), path, out, how)


def _predict_folder(
    bundle: Bundle | str | Path, source: Path, out: Path, task: str | None, how: Mapping[str, Any], **run: Any
) -> int:
    model = _model(bundle, task)
    digest = hashlib.sha256(json.dumps(model.record, sort_keys=True, default=str).encode()).hexdigest()
    job = {"model": digest, "task": task, **how}
    if run["engine"] == "local":
        make: Callable[[], scoring.Answer] = partial(_answerer, model, None, how)
    elif isinstance(bundle, Bundle):
        raise DataError("another engine than local loads the bundle in its own processes: pass the bundle's folder")
    else:
        make = partial(_answerer, Path(bundle).resolve(), task, how)
    return scoring.answer_folder(source, out, make, job, **run).rows


def _answerer(bundle: Bundle | Path, task: str | None, how: Mapping[str, Any]) -> scoring.Answer:
    model = _model(bundle, task)
    return lambda path, out: _predict_file(model, path, out, how)


def _predict_file(model: Bundle, path: str | Path, out: Path, how: Mapping[str, Any]) -> int:
    data.check_output(out)
    rows = _unlabelled(model, path)
    names = [f"prediction_{name}" for name in model.tasks] or ["prediction"]
    for name in rows.table.column_names:
        if name in names:
            raise DataError(f"'{path}' already has a column '{name}'; rename it, so that nothing is lost")
    return data.write_table(_answers(model, rows, how), out)


def _model(bundle: Bundle | str | Path, task: str | None) -> Bundle:
    """The bundle, or one task of it."""
    model = bundle if isinstance(bundle, Bundle) else load(bundle, report=False)
    return model if task is None else model.only(task)


def _unlabelled(model: Bundle, path: str | Path) -> data.Part:
    """The rows of a file, by the model's input column; tasks may differ in it, and the first there is counts."""
    each = [_columns(model.only(name)) for name in model.tasks] or [_columns(model)]
    spellings = list({columns.input: columns for columns in each}.values())
    for columns in spellings[:-1]:
        try:
            return data.load_unlabelled(path, columns, encoding=_encoding(model))
        except DataError:
            continue
    return data.load_unlabelled(path, spellings[-1], encoding=_encoding(model))


def _answers(model: Bundle, rows: data.Part, how: Mapping[str, Any]) -> Iterator[pa.Table]:
    inputs = rows.inputs()
    for start in range(0, max(1, len(rows)), CHUNK):
        part = rows.table.slice(start, CHUNK)
        decoded = model.decode(inputs[start : start + CHUNK], **how)
        for name in model.tasks:
            part = part.append_column(f"prediction_{name}", pa.array([answer[name] for answer in decoded.prediction]))
        if not model.tasks:
            part = part.append_column("prediction", pa.array(decoded.prediction))
        for name, values in decoded.scores.items():
            part = part.append_column(name, pa.array(np.asarray(values)))
        yield part


def _columns(model: Bundle) -> data.Columns:
    return data.Columns.from_json(model.record["columns"])


def _encoding(model: Bundle) -> str:
    """The encoding of the training file: rows of the same source mostly share it."""
    spec = model.record["spec"]
    return str(spec["tasks"][model.tasks[0]]["data"]["encoding"] if model.tasks else spec["data"]["encoding"])


def evaluate(
    bundle: Bundle | str | Path,
    path: str | Path,
    *,
    task: str | None = None,
    slices: Sequence[str] = (),
    on_bad_row: str = "error",
    robust: bool = False,
    robust_rows: int = 300,
    radii: Sequence[float] | None = None,
    tta: int = 1,
    seed: int = 0,
    precision: str = "auto",
) -> dict[str, Any]:
    """Measure a bundle on labelled rows: metrics with intervals, per class, calibration, slices, worst mistakes.

    task: of several, the one whose labels these are. slices: columns of the file; every value of each is measured by
    itself. robust: attacked and spoiled rows too, at most `robust_rows` of them, attacked within `radii`
    (`robustness.measure`). tta: views of each row that are averaged. seed: of the views, the attacks and the intervals.
    precision: auto, fp32 or bf16, as for `Bundle.outputs`.
    Raises DataError for a missing column or for labels that the model does not know.
    """
    from headstart.evaluation import measure_split

    if radii is not None and (not radii or min(radii) < 0):
        raise DataError(f"expected radii of at least 0, received {list(radii)}; leave them out for the usual ones")
    model = _model(bundle, task)
    if model.tasks:
        raise BadInput(f"this model has several tasks ({', '.join(model.tasks)}): say whose labels '{path}' holds, "
                       f"as --task {model.tasks[0]}")  # fmt: skip
    rows = data.load_labelled(
        path, _columns(model), labels=model.labels, encoding=_encoding(model), on_bad_row=on_bad_row
    )
    values: dict[str, list[Any]] = {}
    for name in slices:
        if name not in rows.table.column_names:
            raise DataError(
                f"there is no column '{name}' to slice by in '{path}': {did_you_mean(name, rows.table.column_names)}"
            )
        values[name] = rows.column(name)
    if len(rows) == 0:
        raise BadInput(f"'{path}' has no rows to evaluate on")
    inputs = rows.inputs()
    targets = model.task.encode(rows.labels())
    scores = np.concatenate([
        model.scores(inputs[at : at + CHUNK], tta=tta, seed=seed, precision=precision)
        for at in range(0, len(rows), CHUNK)
    ])  # fmt: skip
    measured = measure_split(
        model.task, scores, targets.numpy(), inputs=inputs, row_ids=rows.source_rows.tolist(), slices=values, seed=seed
    )
    if robust:
        encoded = Encoded.of(model.modality, model.model.backbone, inputs, model.task, rows.labels())
        measured["robustness"] = robustness.measure(
            model.model, model.task, model.modality, encoded, inputs=inputs, radii=radii, most=robust_rows,
            temperature=model.temperature, seed=seed,
        )  # fmt: skip
    return {"task": model.task.name, "labels": list(model.labels), "rows": len(rows), **measured}


def robust_lines(found: Mapping[str, Any]) -> list[str]:
    """One line for clean rows and each attack and corruption, for the terminal."""
    from headstart.evaluation.wording import radius_name

    named = [("clean", found["clean"])]
    named += [(f"attacked within {radius_name(a['radius'], found['norm'])}", a) for a in found["attacks"]]
    named += [(c["name"], c) for c in found["corruptions"]]
    return [f"{name}: {summary_table({found['metric']: entry})[0][1]}" for name, entry in named]


def summary_table(metrics: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    """Metric names with value and interval, for the terminal."""
    found = []
    for name, entry in metrics.items():
        text = f"{entry['value']:.4f}"
        if entry.get("low") is not None:
            text += f"  [{entry['low']:.4f}, {entry['high']:.4f}]"
        found.append((name, text))
    return found


def slice_lines(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a value of a slice column, for the terminal."""
    found = []
    for entry in values:
        if entry["score"] is None:
            found.append(f"{entry['value']}: {entry['rows']} rows, not measurable")
            continue
        interval = "" if entry["low"] is None else f" [{entry['low']:.4f}, {entry['high']:.4f}]"
        remark = " worse than the whole" if entry["worse"] else " few rows" if entry["small"] else ""
        found.append(
            f"{entry['value']}: {entry['metric']} {entry['score']:.4f}{interval} on {entry['rows']} rows{remark}"
        )
    return found
