"""Ways to a smaller model on two sets: pruned, fewer blocks, 8 bits, and in sequence, by `headstart compress`.

The start is a short fine-tuning (Banking77: the first 1,500 training rows; hymenoptera: the default recipe). Models are
chosen on Banking77's validation rows and reported on every third test row; hymenoptera has no third part, so its 153
official rows choose and report.
Each model of the table is one JSON line of `plan.jsonl`. A run that was cut off goes on where it stopped.

    python benchmarks/compress/plan.py --data-root DATA            # appends to plan.jsonl
    python benchmarks/compress/plan.py --table
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
OUT = Path(__file__).resolve().parent / "plan.jsonl"
SETS: dict[str, dict[str, Any]] = {
    "banking77": {
        "first": 1500,
        "test_every": 3,
        "fit": {"epochs": 3},
        "plans": ["int8", "prune:0.4 int8", "prune:0.4,gate=off distil:layers=3 int8"],
    },
    "hymenoptera": {
        "fit": {},
        "plans": ["int8", "openvino-int8", "prune:0.4,heal=0 int8"],
    },
}
"""Per set: which rows of the files are used, how the start is fitted, and the alternatives."""


def some(path: Path, rows: slice, out: Path) -> Path:
    """A csv with some rows of another."""
    with path.open(encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    with out.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *lines[rows]])
    return out


def start(root: Path, name: str, models: Path) -> tuple[Path, Path | None]:
    """The bundle to begin with, and the rows to judge on where the bundle does not know them."""
    suite, source, folder = SETS[name], root / name, models / f"{name}-start"
    train, files, judged = source / "train", {}, source / "validation"
    if (source / "train.csv").exists():
        train = some(source / "train.csv", slice(suite["first"]), models / f"{name}-train.csv")
        test = some(source / "test.csv", slice(None, None, suite["test_every"]), models / f"{name}-test.csv")
        files, judged = {"validation": source / "validation.csv", "test": test}, None
    if not (folder / "bundle.json").exists():
        import headstart as hs

        begun = (folder / "run.json").exists()
        hs.fit(train, out=folder, resume=begun, listen=say, **files, **suite["fit"])
    return folder, judged


def measure(root: Path, name: str, gate: str, models: Path) -> None:
    """One set's table, appended to the record."""
    import torch

    import headstart as hs

    models.mkdir(parents=True, exist_ok=True)
    started, busy = time.perf_counter(), time.process_time()
    folder, rows = start(root, name, models)
    found = hs.compress(folder, models / f"{name}-steps", SETS[name]["plans"], gate=gate, rows=rows, listen=say)
    seconds = {"seconds": round(time.perf_counter() - started), "cpu_seconds": round(time.process_time() - busy)}
    facts = {"set": name, "gate": found.gate, "rows": found.rows, "threads": torch.get_num_threads(), **seconds}
    with OUT.open("a", encoding="utf-8") as file:
        for row in found.to_json()["table"]:
            row.pop("folder")
            file.write(json.dumps({**row, **facts}) + "\n")


def say(event: str, figures: Any) -> None:
    """What goes on, for a log."""
    if event in ("stage", "note", "epoch"):
        print(event, json.dumps(dict(figures), default=str), flush=True)


def table() -> str:
    """The lines as Markdown."""
    rows = ["| set | model | chosen on % | lost, points | test % | MB | one row | many rows |", "| --- " * 8 + "|"]
    for text in OUT.read_text(encoding="utf-8").splitlines():
        x = json.loads(text)
        if x["latency_ms"] is None:
            rows.append(f"| {x['set']} | {x['name']} | {x['state']} | | | | | |")
            continue
        test = "" if x["test"] is None else f"{100 * x['test']:.2f}"
        mark = " **best**" if x["best"] else " stopped by the gate" if x["state"] == "stopped" else ""
        rows.append(
            f"| {x['set']} | `{x['name']}`{mark} | {100 * x['value']:.2f} | {100 * x['loss']:.2f} | {test} | "
            f"{x['bytes'] / 1e6:.1f} | {x['once']:.2f}x | {x['many']:.2f}x |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure a set, or print the table."""
    parser = argparse.ArgumentParser(description="ways to a smaller model")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--gate", default="1%")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "headstart-compress")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        for name in options.sets:
            measure(options.data_root, name, options.gate, options.models)
    print(table())


if __name__ == "__main__":
    main()
