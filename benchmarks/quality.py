"""How good the default recipe is: accuracy on real sets, beside the frozen probe and random weights.

Each fit appends one JSON line to the suite's file; a run that was cut off goes on where it stopped.

    python benchmarks/quality.py banking77 --seeds 3
    python benchmarks/quality.py banking77-10 --seeds 3
    python benchmarks/quality.py few-shot --seeds 10
    python benchmarks/quality.py hymenoptera --seeds 3
    python benchmarks/quality.py --table            # rewrites the tables from the lines
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "few_shot"))

FEW_SHOT = ("tweeteval_emotion", "sst5", "ag_news")
TEST_ROWS = {"ag_news": 2000}
SUITES = {
    "banking77": {"arms": ("recipe", "probe"), "set": "banking77", "out": "banking77/full.jsonl"},
    "banking77-scratch": {"arms": ("scratch",), "set": "banking77", "out": "banking77/full.jsonl"},
    "banking77-10": {"arms": ("recipe", "probe"), "set": "banking77", "out": "banking77/ten.jsonl", "per_class": 10},
    "few-shot": {"arms": ("recipe", "probe"), "set": FEW_SHOT, "out": "few_shot/headstart.jsonl", "per_class": 8},
    "hymenoptera": {"arms": ("recipe", "probe", "scratch"), "set": "hymenoptera", "out": "images/hymenoptera.jsonl"},
}
BUDGETS = {"hymenoptera": ("5", "20", "100%")}


def head(path: Path, rows: int | None, folder: Path) -> Path:
    """The first rows of a csv, as the peer's script reads them."""
    if rows is None:
        return path
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))[: rows + 1]
    cut = folder / path.name
    with cut.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    return cut


def fit(root: Path, name: str, arm: str, seed: int, per_class: int | None, budget: str, folder: Path) -> dict[str, Any]:
    """One fit, measured on the official test rows."""
    from headstart import comparison
    from headstart.adapt import execute, make_spec, prepare

    source = root / name
    if (source / "train.csv").exists():
        train, test = source / "train.csv", head(source / "test.csv", TEST_ROWS.get(name), folder)
        validation = None if per_class else source / "validation.csv"
    else:
        train, validation, test = source / "train", None, source / "validation"
    if per_class:
        import pandas as pd
        from draws import draw

        drawn = draw(pd.read_csv(train), per_class, seed)
        train = folder / "train.csv"
        drawn.to_csv(train, index=False)
    asked = make_spec(
        str(train),
        data__test=str(test),
        data__validation=None if validation is None else str(validation),
        training__seed=seed,
    )
    asked = comparison.budget_spec(comparison.arm_spec(asked, arm), budget)
    started = time.perf_counter()
    cpu = time.process_time()
    run = prepare(asked)
    made = execute(run, None)
    seconds = time.perf_counter() - started
    report = made.report.to_json()
    line = {
        "suite_set": name,
        "arm": arm,
        "budget": budget if not per_class else str(per_class),
        "seed": seed,
        "rows": len(run.data.train),
        "test_rows": len(run.data.test),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_memory_mb": round(report["cost"]["peak_memory_bytes"] / 2**20),
        "kept": next(stage["name"] for stage in report["stages"] if stage["kept"]),
        "stages": {s["name"]: s["score"] for s in report["stages"]},
        "temperature": round(report["calibration"]["temperature"], 3),
    }
    for key in ("accuracy", "macro_f1", "ece", "log_loss"):
        if key in report["metrics"]["test"]:
            line[key] = round(report["metrics"]["test"][key]["value"], 5)
    return line


def run_suite(suite: str, root: Path, seeds: int, arms: tuple[str, ...] | None) -> None:
    """Every fit of a suite that its file does not hold yet."""
    plan = SUITES[suite]
    out = HERE / str(plan["out"])
    out.parent.mkdir(exist_ok=True)
    lines = [json.loads(text) for text in out.read_text().splitlines()] if out.exists() else []
    done = {(x["suite_set"], x["arm"], x["budget"], x["seed"]) for x in lines}
    sets = plan["set"] if isinstance(plan["set"], tuple) else (plan["set"],)
    per_class = plan.get("per_class")
    for seed in range(seeds):
        for name in sets:
            for arm in arms or plan["arms"]:
                for budget in BUDGETS.get(suite, ("100%",)):
                    if (name, arm, str(per_class) if per_class else budget, seed) in done:
                        continue
                    with tempfile.TemporaryDirectory() as folder:
                        line = fit(root, name, arm, seed, per_class, budget, Path(folder))
                    with out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps(line), flush=True)


def table(paths: list[Path]) -> str:
    """Mean and sd per set, arm and budget, as Markdown."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for path in paths:
        for text in path.read_text().splitlines():
            line = json.loads(text)
            key = (
                line.get("suite_set") or line["set"],
                str(line.get("budget") or line["per_class"]),
                line.get("arm") or line["method"],
            )
            groups[key].append(line)
    rows = [
        "| set | labels | arm | runs | accuracy % | macro-F1 % | ECE | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, budget, arm), lines in sorted(groups.items()):
        cells = [_spread([100 * x[key] for x in lines if key in x]) for key in ("accuracy", "macro_f1")]
        ece = [x["ece"] for x in lines if "ece" in x]
        seconds = mean(x.get("seconds") or x["fit_seconds"] + x["predict_seconds"] for x in lines)
        calibrated = f"{mean(ece):.3f}" if ece else "-"
        rows.append(
            f"| {name} | {budget} | {arm} | {len(lines)} | {cells[0]} | {cells[1]} | {calibrated} | {seconds:.0f} |"
        )
    return "\n".join(rows) + "\n"


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    """Parse the arguments and run a suite, or rewrite the tables."""
    parser = argparse.ArgumentParser(description="quality of the default recipe on real sets")
    parser.add_argument("suite", nargs="?", choices=list(SUITES))
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    if options.suite:
        run_suite(options.suite, options.data_root, options.seeds, tuple(options.arms) if options.arms else None)
    if options.table:
        print(table(sorted(HERE.glob("*/*.jsonl"))))


if __name__ == "__main__":
    main()
