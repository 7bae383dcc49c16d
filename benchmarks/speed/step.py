"""How fast fine-tuning of every parameter goes, in rows a second, beside the Trainer of transformers.

1,000 training texts of Banking77, one epoch of MiniLM-L6 with a linear head for 77 intents (for the Trainer as
`BertForSequenceClassification`; the same pooling and tanh layer for the loop of Headstart), fp32, one thread. Rows are
tokenised before the clock starts, nothing is validated or saved, and each run starts from the same weights.

headstart   batches of 32 of like length, AdamW, clipped at 1; whether to pack rows is measured before the clock starts,
            as in a run (about as long as eight steps)
default     the Trainer as it comes: batches of 8 in random order, fused AdamW, rate 5e-5, clipped at 1
best        the Trainer with batches of 32 grouped by length and rate 1e-4

With `--bf16`, for processors that have units for it, the sides are headstart_bf16 (autocast, as bf16=True is),
headstart_bf16_weights (bf16 weights beside float32 ones, which `training.precision=auto` tries too) and best_bf16.

Each line holds what a core's matrix products reach in between (2,048 numbers each way), so that the table can say which
share of it the steps are: 6 operations for each number of the blocks and each token, padding not counted.

The three run turn about in one process; peaks of memory are VmHWM of child processes that run one alone. Each round is
one JSON line.

    python benchmarks/speed/step.py --rounds 5
    python benchmarks/speed/step.py --rounds 5 --bf16
    python benchmarks/speed/step.py --table
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "step.jsonl"
ROWS = 1000
RATE = 1e-4
"""For batches of 32 on both sides; the Trainer's default is 5e-5 for batches of 8. Speed does not depend on it."""

BEST = {"per_device_train_batch_size": 32, "train_sampling_strategy": "group_by_length", "learning_rate": RATE}
SIDES = ("headstart", "default", "best")
HALVES = ("headstart_bf16", "headstart_bf16_weights", "best_bf16")


def rows(root: Path) -> tuple[list[str], list[str]]:
    """Every ninth training text, so that all intents are there, with its label."""
    from predict import texts

    inputs, labels = texts(root, "train")
    return inputs[::9][:ROWS], labels[::9][:ROWS]


def ours(root: Path, start: Path, precision: str) -> Callable[[], Any]:
    """One epoch of Headstart's loop, ready to go."""
    import torch

    from headstart import backbones, tasks
    from headstart.encoded import Encoded
    from headstart.hooks import Hooks
    from headstart.loop import Loop
    from headstart.modalities.text import TextModality
    from headstart.model import Model
    from headstart.spec import BackboneSpec, TrainingSpec
    from headstart.steps.precision import Precision
    from headstart.steps.ways import Settled

    inputs, labels = rows(root)
    backbone = backbones.load(BackboneSpec(ref=f"file:{start}"), "text")
    task, modality = tasks.fit("classification", labels), TextModality()
    training = TrainingSpec(batch_size=32, learning_rate=RATE)
    encoded = Encoded.of(modality, backbone, inputs, task, labels)
    model = Model(backbone, torch.nn.Linear(backbone.width, task.outputs))
    trial = copy.deepcopy(model).requires_grad_(True)
    ways = Settled.of(trial, encoded, training, Precision(precision), epochs=5).ways  # a run of one tries nothing
    loop = Loop(
        model, Hooks({}, task, modality, seed=0), encoded, None, training, epochs=1, learning_rate=RATE,
        device=torch.device("cpu"), ways=ways,
    )  # fmt: skip
    return loop.train


def theirs(root: Path, start: Path, **settings: Any) -> Callable[[], Any]:
    """One epoch of the Trainer, ready to go."""
    from transformers import (
        AutoTokenizer,
        BertForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )  # fmt: skip

    logging.getLogger("transformers").setLevel(logging.ERROR)
    inputs, labels = rows(root)
    names = {name: number for number, name in enumerate(sorted(set(labels)))}
    tokenizer = AutoTokenizer.from_pretrained(start)
    encoded = tokenizer(inputs, truncation=True, max_length=256)
    dataset = [
        {"input_ids": ids, "attention_mask": mask, "labels": names[label]}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
    ]
    model = BertForSequenceClassification.from_pretrained(start, num_labels=len(names))
    asked = TrainingArguments(
        output_dir=tempfile.mkdtemp(), num_train_epochs=1, save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, logging_strategy="no", **settings,
    )  # fmt: skip
    trainer = Trainer(model=model, args=asked, train_dataset=dataset, data_collator=DataCollatorWithPadding(tokenizer))
    return trainer.train


def ready(name: str, root: Path, start: Path) -> Callable[[], Any]:
    """A side that can be timed."""
    side, _, kind = name.partition("_")
    if side == "headstart":
        return ours(root, start, kind or "fp32")
    return theirs(root, start, bf16=kind == "bf16", **(BEST if side == "best" else {}))


def products(kind: str) -> float:
    """GFLOP/s of a product of matrices of 2,048 x 2,048 numbers, the best of five by torch's own and by oneDNN."""
    import time

    import torch

    from headstart.products import linear

    side = 2048
    left, right = (torch.randn(side, side).to(getattr(torch, kind)) for _ in range(2))
    spent = []
    for multiply in [torch.nn.functional.linear, linear] * 6:
        started = time.process_time()
        multiply(left, right)
        spent.append(time.process_time() - started)
    return 2 * side**3 / min(spent) / 1e9


def size(root: Path, start: Path) -> tuple[int, int]:
    """Numbers in the blocks of the network, and real tokens of the rows."""
    from headstart import backbones
    from headstart.modalities.text import TextModality
    from headstart.spec import BackboneSpec

    backbone = backbones.load(BackboneSpec(ref=f"file:{start}"), "text")
    prepared = TextModality().prepare(rows(root)[0], backbone)
    return sum(p.numel() for block in backbone.blocks for p in block.parameters()), int(prepared.lengths.sum())


def compare(root: Path, start: Path, rounds: int, sides: tuple[str, ...]) -> None:
    """Time all sides, turn about."""
    import torch
    from timing import halves, measured

    torch.set_num_threads(1)
    peaks = {name: child(root, name) for name in sides}
    numbers, tokens = size(root, start)
    kind = "bfloat16" if sides is HALVES else "float32"
    for number in range(rounds):
        line: dict[str, Any] = {"round": number, "rows": ROWS, "bf16_units": halves()}
        line |= {"work": 6 * numbers * tokens, "products": round(products(kind), 1)}
        turn = number % len(sides)
        for name in sides[turn:] + sides[:turn]:
            _, spent = measured(ready(name, root, start))
            line[name] = {**spent, "peak_mb": peaks[name]}
        with OUT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def child(root: Path, name: str) -> int:
    """Peak memory in MB of a process that trains with one side."""
    command = [sys.executable, __file__, "--data-root", str(root), "--alone", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def table() -> None:
    """The tables of the lines, in fp32 and in bf16, of processors with and without units for it."""
    lines = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()]
    for sides, halves in itertools.product((SIDES, HALVES), (False, True)):
        chosen = [line for line in lines if sides[0] in line and line.get("bf16_units", False) is halves]
        if chosen:
            print(f"\nprocessor {'with' if halves else 'without'} units for bf16\n")
            _table(chosen, sides)


def _table(lines: list[dict[str, Any]], sides: tuple[str, ...]) -> None:
    from timing import ratio, summary

    print(
        "| | rows a second (wall) | CPU seconds | peak memory, MB | of the matrix products, % |\n" + "| --- " * 5 + "|"
    )
    for name in sides:
        each = [line[name] for line in lines]
        rate = summary([ROWS / one["seconds"] for one in each])
        shares = [100 * line["work"] / line[name]["cpu"] / 1e9 / line["products"] for line in lines if "work" in line]
        share = summary(shares) if shares else ""
        print(f"| {name} | {rate} | {summary([one['cpu'] for one in each])} | {each[0]['peak_mb']} | {share} |")
    ours = [name for name in sides if name.startswith("headstart")]
    both = itertools.product((name for name in sides if name not in ours), ours)
    for (peer, own), (what, said) in itertools.product(both, (("cpu", "CPU seconds"), ("seconds", "wall"))):
        print(f"\n{peer} / {own}, {said}: {ratio(lines, peer, own, what)} over {len(lines)} rounds")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true", help="both sides in bf16")
    parser.add_argument("--alone", choices=SIDES + HALVES, help="train with one side and print the peak of memory")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        return table()
    from predict import backbone_folder

    with tempfile.TemporaryDirectory() as scratch:
        start = backbone_folder(Path(scratch) / "start")
        if asked.alone:
            from timing import peak

            ready(asked.alone, asked.data_root, start)()
            print(peak())
            return None
        return compare(asked.data_root, start, asked.rounds, HALVES if asked.bf16 else SIDES)


if __name__ == "__main__":
    main()
