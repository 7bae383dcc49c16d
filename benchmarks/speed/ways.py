"""What the other ways of computing a step cost or bring on this machine: each beside the plain step, turn about.

text     MiniLM-L6, every parameter, batches of 32 training texts of Banking77: as the loop makes them (rows of like
         length) and in pairs of one class (`batches=pairs`, much padding)
image    EfficientNet-lite0, every parameter, batches of 16 photos of hymenoptera at 128 pixels

plain       float32, everything kept for the backward pass
recompute   gradient checkpointing (`training.gradient_checkpointing=on`)
bf16, bf16_weights   the other precisions
packed      rows without their padding (`training.packing=on`), texts only
compiled    blocks made by torch.compile (`training.compile=on`); its first steps, which compile, are `warm_seconds`

Each line is one way in one suite: steps of the same batches (short, usual, long) in pairs with the plain one, forward
and backward, without an update. bytes: what the longest batch keeps for its backward pass. `compiled` needs g++.

    python benchmarks/speed/ways.py text text-pairs image --pairs 5
    python benchmarks/speed/ways.py text image --only compiled --pairs 5
    python benchmarks/speed/ways.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "ways.jsonl"
SUITES = ("text", "text-pairs", "image")
ARMS = ("recompute", "bf16", "bf16_weights", "packed", "compiled")


def setting(root: Path, suite: str) -> tuple[Any, Any, Any]:
    """The model in the modes of training, its rows, and the training section."""
    import torch
    from predict import texts

    from headstart import backbones, data, tasks
    from headstart.encoded import Encoded
    from headstart.modalities.image import ImageModality
    from headstart.modalities.text import TextModality
    from headstart.model import Model
    from headstart.running import set_modes
    from headstart.spec import BackboneSpec, Spec, TrainingSpec

    modality: Any
    if suite == "image":
        found = data.load_rows(Spec.make(data__train=str(root / "hymenoptera" / "train")), None).train
        inputs, labels = list(found.inputs()), list(found.labels())
        backbone, modality = backbones.load(BackboneSpec(image_size=128), "image"), ImageModality()
        training = TrainingSpec(batch_size=16)
    else:
        inputs, labels = texts(root, "train")
        inputs, labels = inputs[::9], labels[::9]
        backbone, modality = backbones.load(BackboneSpec(), "text"), TextModality()
        training = TrainingSpec(batch_size=32, batches="pairs" if suite == "text-pairs" else "length")
    task = tasks.fit("classification", labels)
    rows = Encoded.of(modality, backbone, inputs, task, labels)
    model = Model(backbone, torch.nn.Linear(backbone.width, task.outputs))
    if suite == "image":
        model = model.to(memory_format=torch.channels_last)
    model.requires_grad_(True)
    set_modes(model)
    return model, rows, training


def step(model: Any, batch: Any, ways: Any) -> dict[str, float]:
    """Wall and CPU seconds of a forward and a backward pass."""
    from timing import measured

    def work() -> None:
        with ways.step(model):
            with ways.pass_(model):
                loss = model(batch)[1].float().square().mean()
            loss.backward()

    spent = measured(work)[1]
    model.zero_grad(set_to_none=True)
    return spent


def compare(root: Path, suite: str, arms: list[str], pairs: int) -> None:
    """Each way beside the plain one."""
    import numpy as np
    import torch

    from headstart.steps import compiling, recompute
    from headstart.steps.ways import Ways

    torch.set_num_threads(1)
    model, rows, training = setting(root, suite)
    plan = sorted(rows.plan(training, 0), key=lambda index: int(rows.prepared.lengths[index].sum()))
    batches = [rows.batch(plan[place * (len(plan) - 1) // 2].tolist()) for place in range(3)]
    lengths = rows.prepared.lengths.astype(np.int64)
    padding = 1 - lengths.sum() / sum(len(index) * int(lengths[index].max()) for index in plan)
    for name in arms:
        ways = {
            "recompute": Ways(recompute=True), "bf16": Ways("bf16"), "bf16_weights": Ways("bf16_weights"),
            "packed": Ways(pack=True), "compiled": Ways(compiled=compiling.all_of(model.backbone.blocks)),
        }[name]  # fmt: skip
        line: dict[str, Any] = {"suite": suite, "way": name, "padding": round(float(padding), 3), "pairs": []}
        started = time.perf_counter()
        for batch in batches:
            step(model, batch, Ways())
            step(model, batch, ways)
        line["warm_seconds"] = round(time.perf_counter() - started, 1)
        for number in range(pairs):
            each: dict[str, dict[str, float]] = {}
            for arm, way in ((("plain", Ways()), (name, ways)), ((name, ways), ("plain", Ways())))[number % 2]:
                spent = [step(model, batch, way) for batch in batches]
                each[arm] = {what: round(sum(one[what] for one in spent), 3) for what in ("seconds", "cpu")}
            line["pairs"].append(each)
        if name == "recompute":
            line["bytes"] = recompute.kept_bytes(model, batches[-1])
        if name == "compiled" and ways.compiled is not None and ways.compiled.failed:
            raise SystemExit(f"the compiler failed: {ways.compiled.failed}")
        with OUT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def table() -> None:
    """The table of the lines."""
    from timing import ratio

    print("| suite | way | plain / way, CPU s | plain / way, wall | besides |\n| --- | --- | --- | --- | --- |")
    for text in OUT.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        name, pairs = line["way"], line["pairs"]
        besides = ""
        if name == "recompute":
            whole, less = (size / 2**20 for size in line["bytes"])
            besides = f"keeps {less:,.0f} of {whole:,.0f} MiB"
        elif name == "packed":
            besides = f"{line['padding']:.0%} is padding"
        elif name == "compiled":
            besides = f"compiled in {line['warm_seconds']:.0f} s"
        found = [ratio(pairs, "plain", name, what) for what in ("cpu", "seconds")]
        print(f"| {line['suite']} | {name} | {found[0]} | {found[1]} | {besides} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE")
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=ARMS, action="append")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        return table()
    for suite in asked.suites:
        arms = asked.only or [name for name in ARMS if name != "compiled"]
        compare(asked.data_root, suite, [name for name in arms if name != "packed" or suite != "image"], asked.pairs)
    return None


if __name__ == "__main__":
    main()
