"""Gather what the scripts of this folder measured into one row a method, set and budget, paired by seed.

    python benchmarks/methods/collect.py            # writes src/headstart/methods/benchmarks.json
    python benchmarks/methods/collect.py --table    # prints the rows as Markdown

`headstart methods NAME` shows the rows of a method.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE.parent.parent / "src" / "headstart" / "methods" / "benchmarks.json"

Line = Mapping[str, Any]


def _accuracy(line: Line) -> dict[str, float]:
    return {"accuracy %": 100 * line["accuracy"]}


def _skewed(line: Line) -> dict[str, float]:
    return _accuracy(line) if line["case"] == "noise" else {"macro-F1 %": 100 * line["macro_f1"]}


def _skew(line: Line) -> tuple[str, str]:
    case = {"noise": "noisy labels", "tail": "rare classes"}[line["case"]]
    return line["set"], f"about {round(line['rows'], -1)} rows, {case}"


def _robust(line: Line) -> dict[str, float]:
    attacked = {f"accuracy % attacked within {radius}": 100 * value for radius, value in line["robust"].items()}
    return {"accuracy %": 100 * line["clean"], **attacked}


def _each(line: Line) -> str:
    return f"{line['per_class']} rows a class"


STUDENTS = {"banking77": ("half the blocks", "all labels"), "hymenoptera": ("the same size", "10 labels a class")}
"""What the students of `distil.py` are, and what they know with the larger budget."""


def _student(line: Line) -> str:
    kind, labels = STUDENTS[line["set"]]
    return f"a student of {kind}, {f'{few} labels a class' if (few := line.get('per_class')) else labels}"


TASKS = {"fewer": ("texts", 8), "few": ("texts", 20), "fewer pictures": ("pictures", 5), "pictures": ("pictures", 15)}
"""What the regimes of `multitask.py` are."""

SOURCES: dict[str, tuple[str, Callable[[Line], tuple[str, str]], Callable[[Line], dict[str, float]]]] = {
    "prune": ("plain", lambda x: (x["set"], "all rows" if x["per_class"] is None else _each(x)), _accuracy),
    "skewed": ("plain", _skew, _skewed),
    "augment": ("plain", lambda x: (x["set"], _each(x)), _accuracy),
    "adversarial": ("plain", lambda x: (x["set"], _each(x)), _robust),
    "distil": ("plain", lambda x: (x["set"], _student(x)), _accuracy),
    "few": ("finetune", lambda x: (x["set"], _each(x)), _accuracy),
    "multitask": (
        "single",
        lambda x: (f"{len(x['accuracy'])} sets of {TASKS[x['regime']][0]}", f"{TASKS[x['regime']][1]} rows a class"),
        lambda x: {"accuracy %": 100 * x["mean"]},
    ),
}
"""File -> the arm to compare with, (set, labels) of a line, its figures by name."""


def rows_of_lines(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(method, row) for each arm of a file of lines, against the file's baseline on the same seeds."""
    path = HERE / f"{name}.jsonl"
    if not path.exists():
        return
    baseline, place, figures = SOURCES[name]
    found: dict[tuple[str, str], dict[str, dict[int, dict[str, float]]]] = defaultdict(lambda: defaultdict(dict))
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "accuracy" in line or "clean" in line or "mean" in line:
            found[place(line)][line["arm"]][line["seed"]] = figures(line)
    for (where, labels), arms in found.items():
        plain = arms.get(baseline, {})
        for arm, seeds in arms.items():
            shared = sorted(set(seeds) & set(plain))
            if arm == baseline or not shared:
                continue
            for metric in seeds[shared[0]]:
                ours, theirs = [seeds[s][metric] for s in shared], [plain[s][metric] for s in shared]
                yield arm, _row(where, labels, metric, ours, theirs, baseline, f"benchmarks/methods/{name}.py")


def rows_of_comparison(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(method, row) for each arm of a comparison, against its baseline."""
    record = json.loads(path.read_text(encoding="utf-8"))
    _, name, per_class = path.stem.split("-")
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for cell in record["cells"]:
        values[cell["arm"]][cell["seed"]] = 100 * cell["value"]
    baseline = record["cells"][0]["arm"]
    for arm, seeds in values.items():
        if arm != baseline:
            shared = sorted(set(seeds) & set(values[baseline]))
            ours, theirs = [seeds[s] for s in shared], [values[baseline][s] for s in shared]
            labels, script = f"{per_class} rows a class", "benchmarks/methods/themes.py"
            yield arm, _row(name, labels, f"{record['metric']} %", ours, theirs, baseline, script)


def _row(
    where: str, labels: str, metric: str, ours: list[float], theirs: list[float], baseline: str, script: str
) -> dict[str, Any]:
    change = [a - b for a, b in zip(ours, theirs, strict=True)]
    return {
        "set": where,
        "labels": labels,
        "metric": metric,
        "value": round(mean(ours), 2),
        "plain": round(mean(theirs), 2),
        "against": {"finetune": "plain fine-tuning", "plain": "plain fine-tuning", "single": "a run a task"}[baseline],
        "difference": round(mean(change), 2),
        "sd": round(stdev(change), 2) if len(change) > 1 else None,
        "seeds": len(change),
        "script": script,
    }


def collect() -> dict[str, list[dict[str, Any]]]:
    """Every row by the method that its arm is about; a row of an arm with options names them."""
    methods = {path.stem for path in OUT.parent.glob("*.py") if not path.stem.startswith("_")}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    every = [pair for name in SOURCES for pair in rows_of_lines(name)]
    every += [pair for path in sorted((HERE / "themes").glob("*.json")) for pair in rows_of_comparison(path)]
    for arm, row in every:
        named = [part.partition(":")[0] for part in arm.split("+")]
        for method in [name for name in named if name in methods] or ["freeze" if arm == "probe" else ""]:
            if method:
                found[method].append({"arm": arm, **row})
    return {name: found[name] for name in sorted(found)}


def table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| method | set | labels | metric | plain | with it | difference | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rows in found.values():
        for row in rows:
            spread = f" ± {row['sd']:.1f}" if row["sd"] is not None else ""
            lines.append(
                f"| `{row['arm']}` | {row['set']} | {row['labels']} | {row['metric']} | {row['plain']:.1f} | "
                f"{row['value']:.1f} | {row['difference']:+.1f}{spread} | {row['seeds']} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    rows = collect()
    if parser.parse_args().table:
        print(table(rows))
    else:
        OUT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
