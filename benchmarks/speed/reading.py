"""What the tokenizer's threads bring, and taking batches in the background.

tokenising   the 9,003 training texts of Banking77, made ready whole, without and with the tokenizer's threads
text         MiniLM-L6, every parameter, steps on batches of 32 of them
decoding     EfficientNet-lite0, every parameter, steps on batches of 16 photos of hymenoptera at 128 pixels, of which
             none was decoded before, as in a first epoch
image        the same with all of them decoded, as in later ones

The three last take their batches in turn with the steps or in the background (`training.prefetch`), turn about, the
same batches in the order of one epoch. Wall seconds are what counts here, so the machine has to be quiet; each line
says how busy it was. threads: of a step; what is taken in the background has one of its own.

    python benchmarks/speed/reading.py tokenising text decoding image --pairs 5 --threads 1 2
    python benchmarks/speed/reading.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "reading.jsonl"
SUITES = ("tokenising", "text", "decoding", "image")
STEPS = 12
"""Batches of an arm in a pair."""


def tokenising(root: Path) -> Callable[[bool], Callable[[], None]]:
    """What makes the texts ready."""
    from predict import texts

    from headstart import backbones
    from headstart.modalities.text import TextModality
    from headstart.spec import BackboneSpec

    inputs, backbone = texts(root, "train")[0], backbones.load(BackboneSpec(), "text")

    def arm(threads: bool) -> Callable[[], None]:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads else "false"
        return lambda: len(TextModality().prepare(inputs, backbone)) and None

    return arm


def steps(root: Path, suite: str) -> Callable[[bool], Callable[[], None]]:
    """What takes batches and makes steps of them."""
    from ways import setting

    from headstart.ahead import Ahead
    from headstart.steps.ways import Ways

    model, rows, training = setting(root, "text" if suite == "text" else "image")
    plan, ways = rows.plan(training, 0)[:STEPS], Ways()
    if suite == "image":
        for index in plan:
            rows.batch(index.tolist())

    def arm(behind: bool) -> Callable[[], None]:
        seen = setting(root, "image")[1] if suite == "decoding" else rows

        def run() -> None:
            for batch in Ahead("on" if behind else "off").over(lambda index: seen.batch(index.tolist()), plan):
                with ways.step(model):
                    with ways.pass_(model):
                        loss = model(batch)[1].float().square().mean()
                    loss.backward()
                model.zero_grad(set_to_none=True)

        return run

    return arm


def compare(root: Path, suite: str, pairs: int, threads: int) -> None:
    """Both ways, turn about; the first pair is dropped."""
    import torch
    from timing import measured

    torch.set_num_threads(threads)
    arm = tokenising(root) if suite == "tokenising" else steps(root, suite)
    line: dict[str, Any] = {"suite": suite, "threads": threads, "load": round(os.getloadavg()[0], 1), "pairs": []}
    for number in range(pairs + 1):
        each: dict[str, dict[str, float]] = {}
        for other in (False, True) if number % 2 else (True, False):
            each["other" if other else "plain"] = measured(arm(other))[1]
        line["pairs"] += [each] if number else []
    with OUT.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def table() -> None:
    """The table of the lines."""
    from timing import ratio, summary

    print("| what | threads | plain, s | plain / other, wall | plain / other, CPU s | load |\n" + "| --- " * 6 + "|")
    for text in OUT.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        plain = summary([pair["plain"]["seconds"] for pair in line["pairs"]])
        wall, cpu = (ratio(line["pairs"], "plain", "other", what) for what in ("seconds", "cpu"))
        print(f"| {line['suite']} | {line['threads']} | {plain} | {wall} | {cpu} | {line['load']} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        return table()
    for suite in asked.suites:
        for threads in asked.threads[:1] if suite == "tokenising" else asked.threads:
            compare(asked.data_root, suite, asked.pairs, threads)
    return None


if __name__ == "__main__":
    main()
