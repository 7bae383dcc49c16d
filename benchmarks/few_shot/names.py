"""The recipe on the few-shot draws with and without its texts made of class names, beside SetFit, a line each.

The contrast stage, which sees no names, is run once; the probe is solved on its features with and without name rows.
SetFit's lines are those of `setfit_peer.py`; at its defaults it reads no names, so `without` is the like-for-like arm.

    python benchmarks/few_shot/names.py --data-root DATA --draws 10
    python benchmarks/few_shot/names.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
OUT, PEER = HERE / "names.jsonl", HERE / "setfit.jsonl"
SETS = ("tweeteval_emotion", "sst5", "ag_news")
TEST_ROWS = {"ag_news": 2000}


def run(root: Path, name: str, per_class: int, seed: int) -> dict[str, Any]:
    """Both arms on one draw, measured on the official test rows."""
    import numpy as np
    import pandas as pd
    import torch
    from draws import draw
    from quality import head

    from headstart import inference
    from headstart.adapt import make_spec, prepare
    from headstart.encoded import Encoded
    from headstart.heads import probe, starts

    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder) / "train.csv"
        draw(pd.read_csv(root / name / "train.csv"), per_class, seed).to_csv(train, index=False)
        test = head(root / name / "test.csv", TEST_ROWS.get(name), Path(folder))
        made = prepare(make_spec(str(train), data__test=str(test), training__seed=seed))
        stages, (contrast, solve) = made.stages, made.spec.stages
        stages.run(contrast, checkpoint=None, identity="", resume=False, deadline=None)
        training, backbone = stages.training(solve), stages.model.backbone
        rows, targets, task = training.name_rows, stages.train_rows.targets, made.task
        texts = starts.sentences(task.labels, training.name_template, "training.name_rows")
        named = np.tile(inference.pooled(backbone, Encoded.of(made.modality, backbone, texts)), (rows, 1))
        extra = (named, torch.arange(task.outputs).repeat(rows))
        features, asked = inference.pooled(backbone, stages.train_rows), inference.pooled(backbone, made.test)
    line: dict[str, Any] = {
        "set": name,
        "per_class": per_class,
        "draw": seed,
        "test_rows": len(asked),
        "name_rows": rows,
    }
    for arm, more in (("without", None), ("with", extra)):
        found = probe.fit(features, targets, task, None, more, seed=seed)
        outputs = torch.from_numpy(asked) @ found.weight.T + found.bias
        measured = task.measure(task.scores(outputs).numpy(), made.test.targets.numpy())
        line[arm] = {key: round(measured[key], 5) for key in ("accuracy", "macro_f1", "log_loss")}
        line[arm]["c"] = found.c
    return {**line, "cpu_seconds": round(time.process_time() - began, 1)}


def table(per_class: int) -> str:
    """Means over the draws that both have, and the differences draw by draw."""
    lines = [json.loads(text) for text in OUT.read_text().splitlines()]
    peer = [json.loads(text) for text in PEER.read_text().splitlines()]
    theirs = {(x["set"], x["per_class"], x["draw"]): 100 * x["accuracy"] for x in peer}
    rows = ["| set | draws | with names | without | SetFit | with - SetFit | without - SetFit | with - without |"]
    rows.append("| --- " * 8 + "|")
    for name in SETS:
        own = {x["draw"]: x for x in lines if x["set"] == name and x["per_class"] == per_class}
        draws = sorted(d for d in own if (name, per_class, d) in theirs)
        if not draws:
            continue
        with_, without = ([100 * own[d][arm]["accuracy"] for d in draws] for arm in ("with", "without"))
        setfit = [theirs[name, per_class, d] for d in draws]
        pairs = ((with_, setfit), (without, setfit), (with_, without))
        cells = [_spread(values) for values in (with_, without, setfit)]
        cells += [_spread([a - b for a, b in zip(x, y, strict=True)], sign=True) for x, y in pairs]
        rows.append(f"| {name} | {len(draws)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _spread(values: list[float], *, sign: bool = False) -> str:
    middle = f"{mean(values):+.2f}" if sign else f"{mean(values):.2f}"
    return middle + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    """Run the draws that the file does not hold yet, or print the table."""
    parser = argparse.ArgumentParser(description="the few-label recipe with and without class names, beside SetFit")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(options.per_class))
        return
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    done = {(x["set"], x["per_class"], x["draw"]) for x in lines}
    for seed in range(options.draws):
        for name in SETS:
            if (name, options.per_class, seed) not in done:
                line = run(options.data_root, name, options.per_class, seed)
                with OUT.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
