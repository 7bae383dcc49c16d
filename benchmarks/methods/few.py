"""Few labels, many rows without: starts of the head, contrast, pseudo-labels, FixMatch, the recipe, paired by seed.

K rows of each class are drawn with their labels (`few_shot/draws.py`), the other training rows are given without;
measured on the first test rows. From 16 rows a class on a tenth of the labelled rows validates, as usual.
Each fit appends one JSON line to `few.jsonl` beside this file; a run that was cut off goes on.

    python benchmarks/methods/few.py --sets tweeteval_emotion cifar10_subset --data-root DATA --seeds 3
    python benchmarks/methods/few.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "few_shot"))
OUT = HERE / "few.jsonl"
TEST_ROWS = 400
"""Rows measured on: the first of the test file, or the first of each class. Time on a processor."""

ARMS: dict[str, tuple[list[str] | None, dict[str, Any]]] = {
    "finetune": ([], {}),
    "finetune, random head": ([], {"head": "random"}),
    "finetune, prototypes": ([], {"head": "prototypes"}),
    "finetune, names": ([], {"head": "names"}),
    "probe": (["freeze:probe"], {"epochs": None}),
    "prototypes alone": ([], {"head": "prototypes", "epochs": 0}),
    "names alone": ([], {"head": "names", "epochs": 0}),
    "contrast": (["contrast"], {"batches": "pairs", "task_weight": 0.7}),
    "pseudo": (["pseudo:threshold=0.8"], {}),
    "fixmatch": (["fixmatch:threshold=0.8,mu=1"], {}),
    "recipe": (None, {"epochs": None}),
    "recipe without names": (None, {"epochs": None, "name_rows": 0}),
}
"""Methods and training options. The threshold is lower than the papers' 0.95, which few epochs hardly reach."""

SETS: dict[str, dict[str, Any]] = {
    "tweeteval_emotion": {}, "sst5": {}, "ag_news": {}, "cifar10_subset": {"backbone": {"image_size": 64}}
}  # fmt: skip
SIZES = (4, 8, 25)
STEPS, BATCH = 60, 16


def rows_of(root: Path, name: str) -> tuple[Any, Any]:
    """Training and test rows as frames of an input column and `label`."""
    import pandas as pd

    if (root / name / "train.csv").exists():
        return pd.read_csv(root / name / "train.csv"), pd.read_csv(root / name / "test.csv").head(TEST_ROWS)
    frames = []
    for part, most in (("train", None), ("test", TEST_ROWS)):
        folders = sorted(path for path in (root / name / part).iterdir() if path.is_dir())
        each = None if most is None else most // len(folders)
        found = [(str(p.resolve()), f.name) for f in folders for p in sorted(f.iterdir())[:each]]
        frames.append(pd.DataFrame(found, columns=["image", "label"]))
    return frames[0], frames[1]


def fit(root: Path, name: str, arm: str, per_class: int, seed: int) -> dict[str, Any]:
    """One fit, measured on the test rows."""
    from draws import draw

    import headstart as hs

    methods, training = ARMS[arm]
    train, test = rows_of(root, name)
    train["place"] = range(len(train))
    drawn = draw(train, per_class, seed)
    columns = {"image": "image"} if "image" in train else {"text": "text"}
    rest = train[~train["place"].isin(drawn["place"])]
    steps_an_epoch = -(-len(drawn) // BATCH)
    plain = {"epochs": max(1, STEPS // steps_an_epoch), "batch_size": BATCH, "learning_rate": 1e-4}
    settings = {} if methods is None else plain
    settings = {key: value for key, value in {**settings, **training, "seed": seed}.items() if value is not None}
    if arm == "probe":
        settings = {"seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for part, frame in (("train", drawn), ("test", test), ("unlabelled", rest.drop(columns="label"))):
            paths[part] = Path(folder) / f"{part}.csv"
            frame.drop(columns="place", errors="ignore").to_csv(paths[part], index=False)
        more = {"unlabelled": paths["unlabelled"]} if arm in ("pseudo", "fixmatch") else {}
        began = time.process_time()
        made = hs.fit(
            paths["train"], test=paths["test"], methods=methods, label="label", task="classification", **columns,
            spec={"training": settings, **SETS[name]}, **more,
        )  # fmt: skip
    report = made.report.to_json()
    measured = report["metrics"]["test"]
    line = {"set": name, "per_class": per_class, "seed": seed, "arm": arm, "rows": report["rows"]["trained"]}
    line |= {key: round(measured[key]["value"], 5) for key in ("accuracy", "macro_f1", "log_loss")}
    return {**line, "cpu_seconds": round(time.process_time() - began, 1), "notes": report["notes"]}


def table() -> str:
    """Mean accuracy by set, labels a class and arm, and the difference from plain fine-tuning, seed by seed."""
    lines = [json.loads(text) for text in OUT.read_text().splitlines()]
    found: dict[tuple[str, int, str], dict[int, float]] = defaultdict(dict)
    for line in lines:
        found[line["set"], line["per_class"], line["arm"]][line["seed"]] = 100 * line["accuracy"]
    rows = ["| set | labels a class | arm | seeds | accuracy % | over `finetune` | CPU seconds |", "| --- " * 7 + "|"]
    for (name, size, arm), own in found.items():
        plain = found.get((name, size, "finetune"), {})
        pairs = [own[seed] - plain[seed] for seed in own if seed in plain]
        cpu = mean(x["cpu_seconds"] for x in lines if (x["set"], x["per_class"], x["arm"]) == (name, size, arm))
        cells = (_spread(list(own.values())), _spread(pairs, sign="+") if arm != "finetune" else "")
        rows.append(f"| {name} | {size} | {arm} | {len(own)} | {cells[0]} | {cells[1]} | {cpu:.0f} |")
    return "\n".join(rows)


def _spread(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Run the fits that the file does not hold yet, or print the table."""
    parser = argparse.ArgumentParser(description="few labels, and rows without")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {(x["set"], x["per_class"], x["arm"], x["seed"]) for x in lines}
    for seed in range(options.seeds):
        for size in options.sizes:
            for name in options.sets:
                for arm in options.arms:
                    if ("names" in arm and name == "cifar10_subset") or (name, size, arm, seed) in done:
                        continue
                    line = fit(options.data_root, name, arm, size, seed)
                    with OUT.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
