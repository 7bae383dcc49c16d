"""The model card: `README.md` in the format of the Hugging Face hub, YAML front matter and Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.evaluation import wording
from headstart.evaluation.page import _title

HUB_METRICS = {"macro_f1": "f1", "micro_f1": "f1", "r2": "r_squared", "spearman": "spearmanr"}
"""Metric types of the hub where they differ from our names."""

PIPELINES = {
    ("classification", "text"): "text-classification",
    ("multilabel", "text"): "text-classification",
    ("regression", "text"): "text-classification",
    ("classification", "image"): "image-classification",
    ("multilabel", "image"): "image-classification",
    ("classification", "audio"): "audio-classification",
    ("multilabel", "audio"): "audio-classification",
}


def render_card(record: Mapping[str, Any]) -> str:
    """`README.md` from a report's dictionary."""
    split = next((name for name in ("test", "validation") if record["metrics"].get(name)), None)
    parts = [
        _front_matter(record, split),
        f"# {_md(_title(record))}",
        _opening(record),
        "## Intended use\n\n" + _use(record),
        "## How to use\n\n" + _how(record),
        "## Data\n\n" + _data(record),
        "## Results\n\n" + _results(record, split),
        "## Limitations\n\n" + _limitations(record, split),
        "## Training\n\n" + _training(record),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(record: Mapping[str, Any], split: str | None) -> str:
    """YAML; every scalar is written as JSON, which is YAML too, so that no name can break it."""
    text = json.dumps
    source = record["backbone"]["source"] or {}
    lines = ["---", "library_name: headstart", f"license: {text(str(source.get('license') or 'unknown'))}"]
    if source.get("language"):
        lines.append(f"language: {text(source['language'])}")
    base = base_model(record["backbone"]["ref"])
    if base:
        lines.append(f"base_model: {text(base)}")
    pipeline = PIPELINES.get((record["task"], record["modality"]))
    if pipeline:
        lines.append(f"pipeline_tag: {pipeline}")
    lines += ["tags:", "- headstart", "- transfer-learning", f"- {text(record['task'])}"]
    data = _data_name(record)
    lines += ["datasets:", f"- {text(data)}"]
    metrics = record["metrics"].get(split) or {} if split else {}
    if metrics:
        types = dict.fromkeys(HUB_METRICS.get(name, name) for name in metrics)
        lines += ["metrics:", *(f"- {text(name)}" for name in types), "model-index:", f"- name: {text(_title(record))}"]
        lines += ["  results:", "  - task:", f"      type: {text(pipeline or record['task'])}", "    dataset:"]
        lines += [
            f"      name: {text(data)}",
            f"      type: {text(data)}",
            f"      split: {text(split)}",
            "    metrics:",
        ]
        for name, entry in metrics.items():
            lines += [f"    - type: {text(HUB_METRICS.get(name, name))}"]
            lines += [f"      name: {text(wording.metric_name(name))}", f"      value: {text(entry['value'])}"]
    return "\n".join([*lines, "---"])


def base_model(ref: str | None) -> str | None:
    """The hub's name of a backbone: `hf:a/b` is a/b, `timm:x` is timm/x; other sources keep their last part."""
    if not ref:
        return None
    source, colon, name = ref.partition(":")
    if not colon:
        return ref
    if source == "timm":
        return f"timm/{name}"
    return name if source == "hf" and "/" in name and not name.startswith((".", "/")) else Path(name).name


def _data_name(record: Mapping[str, Any]) -> str:
    given = [record["spec"].get("data", {}), *(own["data"] for own in record["spec"].get("tasks", {}).values())]
    sources = [str(data.get("train") or "").replace("\\", "/").rstrip("/") for data in given]
    return ", ".join(source.rpartition("/")[2] for source in sources if source) or "in memory"


def _md(value: object) -> str:
    """Text that Markdown and HTML take literally, on one line."""
    flat = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", flat).replace("&", "&amp;")


def _code(value: object) -> str:
    """Text as a code span, which has no way to hold a backtick."""
    return f"`{' '.join(str(value).split()).replace('`', chr(39))}`"


def _opening(record: Mapping[str, Any]) -> str:
    kind = {"text": "texts", "image": "pictures", "audio": "sounds"}.get(record["modality"], "rows")
    ref = _code(record["backbone"]["ref"] or "a pretrained backbone")
    labels = record["labels"]
    if record["tasks"]:
        what = f"does {len(record['tasks'])} tasks on {kind}: {_enumerate(list(record['tasks']))}"
    elif record["task"] == "regression":
        what = f"predicts {_enumerate(labels)} from {kind}"
    else:
        what = f"gives {kind} {'any' if record['task'] == 'multilabel' else 'one'} of {len(labels)} labels"
    return (
        f"This model {what}. It was adapted from {ref} with Headstart; `report.html` beside this file has all figures."
    )


def _enumerate(labels: list[str], most: int = 12) -> str:
    shown = ", ".join(_md(label) for label in labels[:most])
    return shown + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _use(record: Mapping[str, Any]) -> str:
    if record["tasks"]:
        return "\n".join(
            f"* {_md(name)}: {task['task']} for rows like its training rows; {_enumerate(task['labels'], 100)}."
            for name, task in record["tasks"].items()
        )
    if record["task"] == "regression":
        return f"Predicting {_enumerate(record['labels'])} for rows like the training rows described below."
    return (
        f"Labelling rows like the training rows described below. The labels: {_enumerate(record['labels'], 100)}.\n\n"
        "Every row gets an answer from these labels, also one that belongs to none of them: "
        "watch the probabilities where such rows can occur."
    )


def _how(record: Mapping[str, Any]) -> str:
    example = {"image": '"a picture.jpg"', "audio": '"a sound.wav"'}.get(record["modality"], '"a text"')
    return (
        "```python\nimport headstart as hs\n\n"
        'model = hs.load(".")  # this folder\n'
        f"model.predict([{example}]){'  # an answer for each task' if record['tasks'] else ''}\n```\n\n"
        "```\nheadstart predict . new.csv --out predictions.csv\n```"
    )


def _data(record: Mapping[str, Any]) -> str:
    rows = record["rows"]
    dropped = "; ".join(f"{wording.amount(number)} {_md(reason)}" for reason, number in rows["dropped"].items())
    count = {key: wording.amount(rows[key]) for key in ("read", "trained", "validated", "tested", "unlabelled")}
    counted = (
        f"{count['read']} rows were read from {_md(_data_name(record))}: {count['trained']} to train, "
        f"{count['validated']} to validate, {count['tested']} to test"
        f"{', ' + count['unlabelled'] + ' without labels' if rows['unlabelled'] else ''}"
        f"{'; left out: ' + dropped if dropped else '; none was left out'}."
    )
    fingerprint = record["data"]["fingerprint"]
    return counted + (f" Fingerprint of the data: {_code(fingerprint)}." if fingerprint else "")


def _results(record: Mapping[str, Any], split: str | None) -> str:
    if split is None:
        return "Nothing was measured: there were no rows to measure on."
    rows = record["splits"].get(split, {}).get("rows")
    lines = [f"On {wording.amount(rows)} {split} rows, with 95 % bootstrap intervals.", ""]
    if split == "validation":
        lines[:1] = [f"{lines[0]} These rows also chose the model, so the figures flatter it; there were no test rows."]
    lines += ["| metric | value | 95 % interval |", "| --- | ---: | --- |"]
    for name, entry in record["metrics"][split].items():
        ends = "" if entry["low"] is None else f"{wording.figure(entry['low'])} to {wording.figure(entry['high'])}"
        lines.append(f"| {_md(wording.metric_name(name))} | {wording.figure(entry['value'])} | {ends} |")
    effects = [
        f"* {t['value']:+.3f} against {_md(t['against'])} with {_md(t['budget'])} of the labels"
        + (f" (95 % interval {t['low']:+.3f} to {t['high']:+.3f})" if t.get("low") is not None else "")
        for t in record["transfer"]
    ]
    return "\n".join([*lines, *(["", "What transfer gained:", "", *effects] if effects else [])])


def _limitations(record: Mapping[str, Any], split: str | None) -> str:
    """What the checks and the measurements found; nothing is said that was not found."""
    details = record["splits"].get(split, {}) if split else {}
    found = [_md(f["message"]) for f in record["findings"] if f["level"] != "note"]
    weak = [c for c in details.get("per_class") or [] if c["f1"] is not None and c["f1"] < 0.7 and c["support"]]
    if weak:
        weak.sort(key=lambda c: c["f1"])
        shown = ", ".join(f"{_md(c['label'])} (F1 {c['f1']:.2f}, {c['support']} rows)" for c in weak[:8])
        found.append(f"It is weak at: {shown}.")
    unseen = [c["label"] for c in details.get("per_class") or [] if not c["support"]]
    if unseen:
        found.append(f"No {split} row has the label {_enumerate(unseen)}: nothing is known of how it does there.")
    for column, records in (details.get("slices") or {}).items():
        worse = [s for s in records if s["worse"] and not s["small"]]
        if worse:
            shown = ", ".join(f"{_md(s['value'])} ({wording.figure(s['score'])})" for s in worse)
            found.append(f"By {_md(column)} it does worse than on the whole at: {shown}.")
    error = (details.get("calibration") or {}).get("ece")
    if error is not None and error > 0.05:
        found.append(f"Its probabilities are off by {error:.2f} on average: do not read them as chances.")
    if split != "test":
        found.append("It was not measured on rows kept apart for a test.")
    if not found:
        found = [
            "The checks of the data and the measurements found none worth naming; the intervals above still apply."
        ]
    return "\n".join(f"* {sentence}" for sentence in found)


def _training(record: Mapping[str, Any]) -> str:
    parameters, cost = record["parameters"], record["cost"]
    stages = [
        f"* {_code(stage['name'])}{' (kept)' if stage.get('kept') else ''}: "
        f"{_md(wording.metric_name(record['metric']))} {wording.figure(stage.get('score'))} on validation, "
        f"{wording.duration(stage.get('seconds'))}"
        for stage in record["stages"]
    ]
    versions = ", ".join(f"{_md(name)} {_md(v)}" for name, v in (record["environment"]["packages"] or {}).items())
    lines = [
        f"{wording.amount(parameters['trainable'])} of {wording.amount(parameters['total'])} parameters learned, in "
        f"{wording.duration(cost['seconds'])} with a peak of {wording.memory(cost['peak_memory_bytes'])}.",
        *(["", *stages] if stages else []),
        *(["", f"Made with {versions}."] if versions else []),
    ]
    return "\n".join(lines)
