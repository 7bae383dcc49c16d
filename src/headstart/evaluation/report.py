"""The evidence of a run: one dictionary with stable keys, its page and its model card.

`KEYS` is the contract: what each key holds. `docs/report.md` says the same for people, and a test compares them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.errors import BundleError

FORMAT = 1

KEYS: dict[str, str] = {
    "format": "the version of these keys, 1",
    "task": "classification, multilabel or regression; multitask for several",
    "modality": "text, image or audio",
    "labels": "class names, or the names of the regression targets",
    "metric": "the name of the metric that chose the model",
    "metrics": "split -> metric -> value, low, high (95 % bootstrap interval; null where the rows cannot say)",
    "splits": "split -> rows, per_class, confusion, calibration, scatter, slices, mistakes",
    "tasks": "of several tasks, name -> task, labels, metric, metrics, splits, rows, temperature, columns of its own",
    "robustness": "of attacked and spoiled rows, where that was asked for: split, metric, rows, norm, steps, clean, "
    "attacks, corruptions",
    "rows": "read = trained + validated + tested + unlabelled + all of dropped, a reason -> count",
    "parameters": "trainable, in the kept stage, and total",
    "cost": "seconds, peak_memory_bytes, rows_trained, rows_per_second",
    "plan": "what was planned, with estimated_seconds and actual_seconds",
    "stages": "one record a stage: name, score, seconds, rows_trained, trainable, stopped, history, notes, details, "
    "kept",
    "transfer": "one record a comparison: against, budget, metric, value, low, high, p",
    "label_errors": "with data.check_labels, training rows whose label looks wrong: row, given, suggested, "
    "probability, quality, the first with their text or picture",
    "findings": "one record a finding in the data: level, code, message, rows",
    "calibration": "temperature, what outputs are divided by before probabilities are made; of several by name",
    "backbone": "ref, source, digest",
    "data": "fingerprint, columns, said (what was inferred)",
    "environment": "python, platform, cpu_count, threads, device, packages",
    "spec": "the whole request; running it again repeats the run",
    "notes": "sentences that the run wants read",
}

_NEUTRAL: dict[str, Any] = {
    "task": "",
    "modality": "",
    "labels": [],
    "metric": "",
    "metrics": {},
    "splits": {},
    "tasks": {},
    "robustness": {},
    "rows": {"read": None, "trained": None, "validated": None, "tested": None, "unlabelled": 0, "dropped": {}},
    "parameters": {"trainable": None, "total": None},
    "cost": {"seconds": None, "peak_memory_bytes": None, "rows_trained": None, "rows_per_second": None},
    "plan": {"estimated_seconds": None, "actual_seconds": None, "estimated_memory_bytes": None},
    "stages": [],
    "transfer": [],
    "label_errors": [],
    "findings": [],
    "calibration": {"temperature": 1.0},
    "backbone": {"ref": None, "source": {}, "digest": None},
    "data": {"fingerprint": None, "columns": {}, "said": []},
    "environment": {
        "python": None,
        "platform": None,
        "cpu_count": None,
        "threads": None,
        "device": None,
        "packages": {},
    },
    "spec": {},
    "notes": [],
}


class Report(Mapping[str, Any]):
    """A report's dictionary, read like one: `report["metrics"]["test"]["accuracy"]["value"]`.

    Every key of `KEYS` is there; what a run did not say is null or empty. Raises ValueError for an unknown key.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        """Keep plain JSON: tuples become lists, numpy values Python's, and nan null."""
        unknown = sorted(set(record) - set(KEYS))
        if unknown:
            raise ValueError(f"a report has no key {unknown}; its keys are {sorted(KEYS)}")
        self._record: dict[str, Any] = {"format": FORMAT}
        for key, neutral in _NEUTRAL.items():
            value = record.get(key, neutral)
            if isinstance(neutral, dict) and isinstance(value, Mapping):
                value = {**neutral, **value}
            self._record[key] = plain(value)

    def __getitem__(self, key: str) -> Any:
        """A top-level value."""
        return self._record[key]

    def __iter__(self) -> Any:
        """The top-level keys."""
        return iter(self._record)

    def __len__(self) -> int:
        """How many top-level keys there are."""
        return len(self._record)

    @property
    def split(self) -> str | None:
        """The split that the report is about: test, else validation, else None when nothing was measured."""
        return next((name for name in ("test", "validation", *self["metrics"]) if self["metrics"].get(name)), None)

    def value(self, metric: str | None = None, split: str | None = None) -> float:
        """A metric's value: the run's own metric on the main split when left out. Raises KeyError when not measured."""
        measured = self["metrics"][split or self.split]
        return float(measured[metric or self["metric"]]["value"])

    def to_json(self) -> dict[str, Any]:
        """A copy of the whole dictionary."""
        copied: dict[str, Any] = json.loads(json.dumps(self._record))
        return copied

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """From `report.json`, or the folder that holds it. Raises BundleError when it cannot be read."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
                raise ValueError("its format is another")
            return cls(record)
        except OSError as error:
            raise BundleError(f"cannot read the report '{path}': {error}") from None
        except ValueError as error:
            raise BundleError(f"'{path}' was cut short or is not a report of format {FORMAT}: {error}") from None

    def write(self, folder: str | Path) -> Path:
        """Write `report.json`, `report.html` and the model card `README.md`; returns the page's path."""
        from headstart.evaluation.card import render_card
        from headstart.evaluation.page import render_report

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        for name, content in (
            ("report.json", text),
            ("report.html", render_report(self._record)),
            ("README.md", render_card(self._record)),
        ):
            _replace(folder / name, content)
        return folder / "report.html"

    def __str__(self) -> str:
        """A few lines for the terminal."""
        return "\n".join(summary(self._record))

    def __repr__(self) -> str:
        """The same few lines."""
        return str(self)

    def _repr_html_(self) -> str:
        """The page, for notebooks."""
        from markupsafe import escape

        from headstart.evaluation.page import render_report

        page = escape(render_report(self._record))
        return f'<iframe srcdoc="{page}" width="100%" height="700" sandbox style="border:0"></iframe>'

    def show(self) -> None:
        """Open the page in the browser; where there is none, print the summary and where the page was written."""
        import tempfile
        import webbrowser

        page = self.write(Path(tempfile.mkdtemp(prefix="headstart-report-")))
        print(self)
        if not webbrowser.open(page.as_uri()):
            print(f"the page is at {page}")


def summary(record: Mapping[str, Any]) -> list[str]:
    """The report in a few lines: what was made, how good it is, what it cost, what to look at."""
    from headstart.evaluation.wording import amount, duration, memory, metric_name

    kind = f"{record['task']} on {record['modality']}" if record["modality"] else record["task"]
    lines = [f"{kind}, {len(record['labels'])} outputs, backbone {record['backbone']['ref']}"]
    for split, metrics in record["metrics"].items():
        own = [f"{name}.{task['metric']}" for name, task in record["tasks"].items()]
        first = [record["metric"], *(name for name in own or metrics if name != record["metric"])]
        shown = [
            f"{metric_name(n)} {_measured(metrics[n])}" for n in first[: len(own) + 1 if own else 3] if n in metrics
        ]
        rows = record["splits"].get(split, {}).get("rows")
        lines.append(f"{split} ({amount(rows)} rows): {'; '.join(shown)}")
    if not record["metrics"]:
        lines.append("nothing was measured: there were no rows to measure on")
    lines += _robust(record["robustness"])
    cost, parameters = record["cost"], record["parameters"]
    kept = next((stage["name"] for stage in record["stages"] if stage.get("kept")), None)
    lines.append(
        f"{amount(parameters['trainable'])} of {amount(parameters['total'])} parameters learned"
        + (f" in the kept stage '{kept}'" if kept else "")
        + f"; {duration(cost['seconds'])}, peak {memory(cost['peak_memory_bytes'])}"
    )
    if record["label_errors"]:
        lines.append(
            f"{amount(len(record['label_errors']))} training rows have labels that look wrong: see report.html"
        )
    serious = [f["message"] for f in record["findings"] if f["level"] != "note"]
    return [*lines, *(f"finding: {message}" for message in serious[:5])]


def _robust(record: Mapping[str, Any]) -> list[str]:
    """One line on attacked rows: the metric at each radius beside the clean one."""
    from headstart.evaluation.wording import metric_name, radius_name

    if not record:
        return []
    attacks = (f"{_measured(a)} within {radius_name(a['radius'], record['norm'])}" for a in record["attacks"])
    shown = "; ".join([f"{_measured(record['clean'])} clean", *attacks])
    return [f"attacked ({record['rows']} {record['split']} rows): {metric_name(record['metric'])} {shown}"]


def _measured(entry: Mapping[str, float | None]) -> str:
    if entry.get("low") is None:
        return f"{entry['value']:.4g}"
    return f"{entry['value']:.4g} [{entry['low']:.4g}, {entry['high']:.4g}]"


def plain(value: Any) -> Any:
    """Plain JSON: what `json.dumps(..., allow_nan=False)` takes. Raises TypeError for what JSON has no form for."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a report holds plain JSON, received {type(value).__name__}")


def _replace(path: Path, content: str) -> None:
    """Write whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(content, encoding="utf-8")
    fresh.replace(path)
