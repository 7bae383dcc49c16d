"""How near the plan's estimates of time and memory come: a dozen different real fits, each a process of its own.

Texts are the first rows of Banking77's training file with a stride (MiniLM-L6), pictures those of hymenoptera
(EfficientNet-lite0, 224 pixels). Both figures are the report's own: the plan's seconds of all stages against their
seconds, and the peak that the plan expects of the process against the peak that it had. The machine was too busy for
the clock on the wall, so the process takes its own CPU time for the time, in the plan and in the report; with one
thread that is what a free machine would show. Each fit is one JSON line.

    python benchmarks/speed/plan.py --label before
    python benchmarks/speed/plan.py --table
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "plan.jsonl"
CPU = "import time; time.perf_counter = time.monotonic = time.process_time; from headstart.cli import main; main()"
"""`headstart` on the clock of its own processor time."""

KEEP = ["--set", "training.running_stats=keep"]
FITS: dict[str, tuple[int | None, list[str]]] = {
    "text, probe": (1800, ["--method", "freeze:probe"]),
    "text, everything": (450, ["--spec", "SPEC", "--epochs", "2"]),
    "text, freeze:top=2": (450, ["--method", "freeze:top=2", "--epochs", "3"]),
    "text, freeze:bitfit": (450, ["--method", "freeze:bitfit", "--epochs", "2"]),
    "text, lora": (450, ["--method", "lora:r=8", "--epochs", "2"]),
    "text, fgm": (300, ["--method", "fgm", "--epochs", "1"]),
    "text, few: contrast and probe": (150, []),
    "text, recipe: probe and finetune": (450, ["--epochs", "2"]),
    "image, probe": (None, ["--method", "freeze:probe"]),
    "image, everything": (None, ["--spec", "SPEC", "--epochs", "2", *KEEP]),
    "image, freeze:top=2": (None, ["--method", "freeze:top=2", "--epochs", "3"]),
    "image, lora": (None, ["--method", "lora:r=8", "--epochs", "1"]),
    "image, augment and mixup": (None, ["--method", "augment", "--method", "mixup", "--epochs", "1", *KEEP]),
}
"""Training rows (None: all), and what is asked for."""


def fit(root: Path, rows: int | None, more: list[str]) -> dict[str, float]:
    """Estimate and actual of one fit, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        train, spec = root / "hymenoptera" / "train", Path(scratch) / "spec.toml"
        spec.write_text("methods = []\n", encoding="utf-8")
        if rows is not None:
            with (root / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
                head, *every = csv.reader(file)
            train = Path(scratch) / "train.csv"
            with train.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([head, *every[:: len(every) // rows][:rows]])
        command = [
            sys.executable, "-c", CPU, "fit", str(train), "--out", f"{scratch}/out", "--track", "none",
            "--json", *(str(spec) if word == "SPEC" else word for word in more),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    plan = report["plan"]
    stages = zip(plan["stages"], report["stages"], strict=True)
    return {
        "seconds": round(plan["actual_seconds"], 2), "planned_seconds": round(plan["estimated_seconds"], 2),
        "peak_mb": report["cost"]["peak_memory_bytes"] >> 20,
        "planned_mb": plan["estimated_memory_bytes"] >> 20,
        "stages": [[one["name"], round(one["seconds"], 2), round(other["seconds"], 2)] for one, other in stages],
    }  # fmt: skip


def table(label: str) -> None:
    """The table of the lines."""
    from timing import summary

    lines: list[dict[str, Any]] = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["label"] == label]
    print("| fit | seconds, planned / actual | | peak MB, planned / actual | |\n| --- | --- | --- | --- | --- |")
    ratios: dict[str, list[float]] = {"seconds": [], "mb": []}
    for line in lines:
        time, memory = line["planned_seconds"] / line["seconds"], line["planned_mb"] / line["peak_mb"]
        ratios["seconds"].append(time)
        ratios["mb"].append(memory)
        spent = f"{line['planned_seconds']:.1f} / {line['seconds']:.1f} | {time:.2f}"
        print(f"| {line['fit']} | {spent} | {line['planned_mb']:,} / {line['peak_mb']:,} | {memory:.2f} |")
    for name, found in ratios.items():
        if found:
            print(f"\n{label}, {name}, planned / actual: {summary(found)} over {len(found)} fits")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--label", default="now", help="a name for this state of the planner")
    parser.add_argument("--only", nargs="+", choices=list(FITS))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        return table(asked.label)
    lines = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()] if OUT.exists() else []
    done = {line["fit"] for line in lines if line["label"] == asked.label}
    for name in asked.only or FITS:
        if name in done:
            continue
        load = os.getloadavg()[0]
        rows, more = FITS[name]
        line = {"label": asked.label, "fit": name, "load": round(load, 1), **fit(asked.data_root, rows, more)}
        with OUT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    return None


if __name__ == "__main__":
    main()
