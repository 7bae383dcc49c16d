"""Spoken digits of speakers that training has not heard: probe, default recipe, fine-tuning with and without augment.

The Free Spoken Digit Dataset: `recordings/DIGIT_SPEAKER_TAKE.wav`, 8 kHz, six speakers. Two are held out for the test;
training rows are drawn from the others, `--rows` a class. Each fit appends one JSON line to `fsdd.jsonl` beside this
file; fits that it holds already are passed over.

    python benchmarks/audio/fsdd.py --backbone file:FOLDER_OF_WHISPER_TINY_EN --rows 5 20 --seeds 3
    python benchmarks/audio/fsdd.py --backbone file:FOLDER_OF_WHISPER_TINY_EN --rows 0 --arms probe default
    python benchmarks/audio/fsdd.py --table
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

OUT = Path(__file__).resolve().parent / "fsdd.jsonl"
HELD = ("lucas", "theo")
FINETUNE = ["freeze:decay=0.85,bottom=0"]
ARMS: dict[str, list[str] | None] = {
    "probe": ["freeze:probe"],
    "default": None,
    "finetune": FINETUNE,
    "finetune+augment": [*FINETUNE, "augment"],
}
TRAINING = {"learning_rate": 1e-4, "batch_size": 16, "patience": None}
"""Of both fine-tuning arms, which start from the probe's head; the other two arms choose for themselves."""


def tables(root: Path, takes: int, held: list[str], without: list[str], folder: Path) -> tuple[Path, Path]:
    """Tables of training rows (all takes of the other speakers) and of test rows (the first takes of those held)."""
    rows: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for path in sorted((root / "fsdd" / "recordings").glob("*.wav")):
        digit, speaker, take = path.stem.split("_")
        if speaker not in (*held, *without):
            rows["train"].append((str(path), digit, speaker))
        elif speaker in held and int(take) < takes:
            rows["test"].append((str(path), digit, speaker))
    for name, found in rows.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("audio", "digit", "speaker"), *found])
    return folder / "train.csv", folder / "test.csv"


def fit(options: argparse.Namespace, arm: str, rows: int, seed: int, files: tuple[Path, Path]) -> dict[str, Any]:
    """One fit, measured on the held-out speakers."""
    from headstart.adapt import execute, make_spec, prepare

    methods = ARMS.get(arm, arm.split("+"))
    spec: dict[str, Any] = {"task": {"name": "classification"}}
    if methods and methods != ARMS["probe"]:
        probe = {"name": "probe", "methods": ARMS["probe"], "training": {"optimizer": "lbfgs"}}
        training = {**TRAINING, "epochs": options.epochs}
        spec |= {"stages": [probe, {"name": "finetune", "methods": methods, "training": training}], "keep": "last"}
    elif methods:
        spec["methods"] = [{"name": "freeze", "options": {"probe": True}}]
    flat: dict[str, Any] = {"data__test": str(files[1]), "data__label": "digit", "backbone__ref": options.backbone}
    flat |= {"data__per_class": rows or None, "training__seed": seed}
    started, cpu = time.perf_counter(), time.process_time()
    run = prepare(make_spec(str(files[0]), spec=spec, **flat))
    report = execute(run, None).report.to_json()
    return {
        "held": options.held,
        "rows": rows,
        "arm": arm,
        "seed": seed,
        "trained": run.data.rows.trained,
        "test_rows": len(run.data.test),
        "accuracy": round(report["metrics"]["test"]["accuracy"]["value"], 5),
        "stages": [stage["name"] for stage in report["stages"]],
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def table(out: Path) -> None:
    """Mean and standard deviation over seeds."""
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    for rows, arm in dict.fromkeys((line["rows"], line["arm"]) for line in lines):
        found = [line for line in lines if (line["rows"], line["arm"]) == (rows, arm)]
        values = [100 * line["accuracy"] for line in found]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        seconds = mean(line["cpu_seconds"] for line in found)
        print(f"| {rows or 'all'} | {arm} | {len(values)} | {mean(values):.1f}{spread} | {seconds:.0f} |")


def main() -> None:
    """Every fit that the record does not hold yet."""
    parser = argparse.ArgumentParser(description="spoken digits of unseen speakers")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--backbone", default="hf:openai/whisper-tiny.en")
    parser.add_argument("--rows", type=int, nargs="+", default=[5, 20], help="rows a class, 0 for all")
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--takes", type=int, default=25, help="test recordings of each digit and speaker")
    parser.add_argument("--held", nargs="+", default=list(HELD))
    parser.add_argument("--without", nargs="*", default=[], help="speakers that are left out altogether")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table(options.out)
        return
    lines = [json.loads(text) for text in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(line["rows"], line["arm"], line["seed"]) for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        files = tables(options.data_root, options.takes, options.held, options.without, Path(folder))
        for rows in options.rows:
            for seed in range(options.seeds):
                for arm in options.arms:
                    if (rows, arm, seed) in done:
                        continue
                    line = json.dumps(fit(options, arm, rows, seed, files))
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")
                    print(line, flush=True)


if __name__ == "__main__":
    main()
