"""How fast fine-tuning of every parameter goes on a GPU, in tokens a second, beside the Trainer of transformers.

The 9,000 training texts of Banking77, MiniLM-L6 with a linear head for 77 intents (for the Trainer as
`BertForSequenceClassification`; the same pooling and tanh layer for the loop of Headstart), bf16 by autocast on both
sides unless said otherwise. Rows are tokenised before the clock starts and nothing is validated or saved; recording and
compiling are inside. Tokens are those of the texts, padding not counted.

auto        Headstart as it chooses: precision, packing and CUDA graphs as measured (the choice is inside the clock)
plain       Headstart in bf16 without any other way
graphs      ... with passes as CUDA graphs
packed      ... with rows without their padding
compiled    ... with blocks made by torch.compile; both: compiled, as CUDA graphs
trainer     the Trainer with bf16, rows grouped by length, padded to multiples of 8, fused AdamW, TF32 for what is fp32
tcompiled   ... with `torch_compile=True`

The sides run turn about in one process, after an epoch of each that is not counted: what first uses a card sets it up.
A line is one side in one round: tokens a second of the whole run, of its last epoch, and the share of the card's bf16
matrix peak (measured here, 8192 x 8192 x 8192) that 6 operations a token and parameter outside the embeddings make of
the last epoch.

    python benchmarks/speed/gpu.py --batch 32 --epochs 3 --rounds 3
    python benchmarks/speed/gpu.py --batch 256 --epochs 10 --rounds 3 --sides auto graphs packed trainer
    python benchmarks/speed/gpu.py --recipe --rounds 3
    python benchmarks/speed/gpu.py --table

`--recipe` runs the command line on the same files instead, the default recipe with CUDA graphs as measured and without.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "gpu.jsonl"
RATE = 1e-4
OURS = ("auto", "plain", "graphs", "packed", "compiled", "both")
SIDES = (*OURS, "trainer", "tcompiled")


def peak() -> float:
    """Operations a second of a large bf16 matrix product on random numbers."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - started)


def ours(side: str, inputs: list[str], labels: list[str], start: Path, batch: int, epochs: int) -> Callable[[], Any]:
    """A run of Headstart's loop: seconds at the end of each epoch, and what was chosen."""
    import torch

    from headstart import backbones, tasks
    from headstart.encoded import Encoded
    from headstart.hooks import Hooks
    from headstart.loop import Loop
    from headstart.modalities.text import TextModality
    from headstart.model import Model
    from headstart.spec import BackboneSpec, TrainingSpec
    from headstart.steps import precision
    from headstart.steps.graphing import Graphed
    from headstart.steps.ways import Settled, Ways

    backbone = backbones.load(BackboneSpec(ref=f"file:{start}"), "text").to("cuda")
    task, modality = tasks.fit("classification", labels), TextModality()
    training = TrainingSpec(batch_size=batch, learning_rate=RATE)
    encoded = Encoded.of(modality, backbone, inputs, task, labels)
    model = Model(backbone, torch.nn.Linear(backbone.width, task.outputs)).to("cuda").requires_grad_(True)

    def work() -> tuple[list[float], str]:
        started, marks = time.perf_counter(), []
        if side == "auto":
            chosen = precision.choose(model, encoded, training)
            settled = Settled.of(model, encoded, training, chosen, epochs=epochs)
            ways, said = settled.ways, "; ".join((f"{chosen.name} ({chosen.why})", *settled.said()))
        else:
            compiled = "on" if side in ("compiled", "both") else "off"
            graphed = Graphed() if side in ("graphs", "both") else None
            ways, said = Ways("bf16", pack=side == "packed", compile=compiled, graphed=graphed), ""

        def listen(event: str, figures: Any) -> None:
            if event == "epoch":
                marks.append(time.perf_counter() - started)

        loop = Loop(
            model, Hooks({}, task, modality, seed=0), encoded, None, training, epochs=epochs, learning_rate=RATE,
            device=torch.device("cuda"), ways=ways, listen=listen,
        )  # fmt: skip
        notes = loop.train().notes
        return marks, "; ".join([said, *notes]).strip("; ")

    return work


def theirs(side: str, inputs: list[str], labels: list[str], start: Path, batch: int, epochs: int) -> Callable[[], Any]:
    """A run of the Trainer: seconds at the end of each epoch."""
    import torch
    from transformers import (
        AutoTokenizer,
        BertForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )  # fmt: skip

    logging.getLogger("transformers").setLevel(logging.ERROR)
    names = {name: number for number, name in enumerate(sorted(set(labels)))}
    tokenizer = AutoTokenizer.from_pretrained(start)
    encoded = tokenizer(inputs, truncation=True, max_length=256)
    dataset = [
        {"input_ids": ids, "attention_mask": mask, "labels": names[label]}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
    ]
    model = BertForSequenceClassification.from_pretrained(start, num_labels=len(names))
    asked = TrainingArguments(
        output_dir=tempfile.mkdtemp(), num_train_epochs=epochs, save_strategy="no", report_to="none",
        disable_tqdm=True, logging_strategy="no", per_device_train_batch_size=batch, learning_rate=RATE, bf16=True,
        tf32=True, train_sampling_strategy="group_by_length", torch_compile=side == "tcompiled",
    )  # fmt: skip

    def work() -> tuple[list[float], str]:
        started, marks = time.perf_counter(), []

        class Marks(TrainerCallback):  # type: ignore[misc]
            """Notes when epochs end."""

            def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                torch.cuda.synchronize()
                marks.append(time.perf_counter() - started)

        Trainer(
            model=model, args=asked, train_dataset=dataset, callbacks=[Marks()],
            data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
        ).train()  # fmt: skip
        return marks, ""

    return work


def compare(root: Path, start: Path, sides: list[str], batch: int, epochs: int, rounds: int, out: Path) -> None:
    """Time the sides, turn about."""
    import torch
    from predict import texts
    from transformers import AutoTokenizer, BertConfig

    inputs, labels = texts(root, "train")
    tokens = sum(map(len, AutoTokenizer.from_pretrained(start)(inputs, truncation=True, max_length=256)["input_ids"]))
    config = BertConfig.from_pretrained(start)
    width, inner = config.hidden_size, config.intermediate_size
    parameters = config.num_hidden_layers * (4 * width * width + 2 * width * inner)
    most = peak()
    for side in sides:
        (ours if side in OURS else theirs)(side, inputs, labels, start, batch, 1)()
    for number in range(rounds):
        turn = number % len(sides)
        for side in sides[turn:] + sides[:turn]:
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            run = (ours if side in OURS else theirs)(side, inputs, labels, start, batch, epochs)
            marks, said = run()
            last = marks[-1] - (marks[-2] if epochs > 1 else 0.0)
            line = {
                "side": side, "round": number, "batch": batch, "epochs": epochs, "rows": len(inputs), "tokens": tokens,
                "device": torch.cuda.get_device_name(), "torch": torch.__version__,
                "seconds": round(marks[-1], 3), "last": round(last, 4),
                "tokens_a_second": round(tokens * epochs / marks[-1]), "last_tokens_a_second": round(tokens / last),
                "peak_tflops": round(most / 1e12, 1), "share_of_peak": round(6 * parameters * tokens / last / most, 4),
                "peak_mb": torch.cuda.max_memory_allocated() // 2**20, "said": said,
            }  # fmt: skip
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def recipes(root: Path, rounds: int, out: Path) -> None:
    """Time the command line, with graphs and without, turn about."""
    train, validation, test = (str(root / "banking77" / f"{part}.csv") for part in ("train", "validation", "test"))
    for number in range(rounds):
        for graphs in ("auto", "off") if number % 2 else ("off", "auto"):
            with tempfile.TemporaryDirectory() as folder:
                made = Path(folder) / "made"
                command = [sys.executable, "-m", "headstart", "fit", train, "--validation", validation, "--test", test]
                command += ["--out", str(made), "--set", f"training.cuda_graphs={graphs}"]
                started = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                seconds = time.perf_counter() - started
                report = json.loads((made / "report.json").read_text(encoding="utf-8"))
            stages = {stage["name"]: round(stage["seconds"], 2) for stage in report["stages"]}
            line = {
                "side": "recipe", "graphs": graphs, "round": number, "seconds": round(seconds, 2), "stages": stages,
                "accuracy": report["metrics"]["test"]["accuracy"]["value"],
                "said": report["stages"][-1]["details"].get("cuda_graphs"),
            }  # fmt: skip
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def table() -> None:
    """The table of the lines."""
    from timing import ratio, summary

    every = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in every if line["side"] != "recipe"]
    for graphs in ("auto", "off"):
        own = [line for line in every if line["side"] == "recipe" and line["graphs"] == graphs]
        if own:
            learnt = summary([list(line["stages"].values())[-1] for line in own])
            scores = summary([100 * line["accuracy"] for line in own])
            whole = summary([line["seconds"] for line in own])
            print(f"recipe, graphs {graphs}: {len(own)} runs, {whole} s, of which {learnt} fine-tuning; {scores} %")
    for batch in sorted({line["batch"] for line in lines}):
        own = [line for line in lines if line["batch"] == batch]
        print(f"\nbatches of {batch}, {own[0]['epochs']} epochs, {own[0]['device']}, torch {own[0]['torch']}\n")
        print("| | n | tokens a second | over the Trainer | in the last epoch | over the Trainer's | of the peak, % |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        peers = {line["round"]: line for line in own if line["side"] == "trainer"}
        for side in SIDES:
            each = [line for line in own if line["side"] == side]
            if not each:
                continue
            pairs = [{"own": line, "peer": peers[line["round"]]} for line in each if line["round"] in peers]
            cells = []
            for key, what in (("tokens_a_second", "seconds"), ("last_tokens_a_second", "last")):
                cells.append(summary([line[key] for line in each]))
                cells.append(ratio(pairs, "peer", "own", what) if pairs else "")
            cells.append(summary([100 * line["share_of_peak"] for line in each]))
            print(f"| {side} | {len(each)} | " + " | ".join(cells) + " |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--start", type=Path, help="a folder with the network, as `predict.backbone_folder` makes it")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--recipe", action="store_true", help="the command line instead")
    asked = parser.parse_args()
    if asked.table:
        return table()
    if asked.recipe:
        return recipes(asked.data_root, asked.rounds, asked.out)
    from predict import backbone_folder

    with tempfile.TemporaryDirectory() as scratch:
        start = asked.start or backbone_folder(Path(scratch) / "start")
        compare(asked.data_root, start, asked.sides, asked.batch, asked.epochs, asked.rounds, asked.out)
        return None


if __name__ == "__main__":
    main()
