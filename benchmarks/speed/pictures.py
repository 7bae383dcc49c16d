"""How many pictures at a time a processor likes: the same pictures through a network in batches of several sizes.

EfficientNet-lite0 with its channels last, one thread, random pictures of 224 and 128 pixels: answers, and passes
forward and backward over every parameter with the statistics of BatchNorm kept. Sizes take turns; each line is one
kind of work at one size of picture. `training.parts` and the batches of answers (`inference.ROWS`) rest on it.

    python benchmarks/speed/pictures.py --rounds 5
    python benchmarks/speed/pictures.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "pictures.jsonl"
AT_A_TIME = (64, 32, 16, 8)
ROWS = 64


def compare(pixels: int, work: str, rounds: int) -> dict[str, Any]:
    """CPU seconds of each size of batch, turn about; the first round is dropped."""
    import torch
    from timing import measured

    from headstart import backbones
    from headstart.spec import BackboneSpec

    torch.set_num_threads(1)
    network = backbones.load(BackboneSpec(image_size=pixels), "image").network.eval()
    network = network.to(memory_format=torch.channels_last).requires_grad_(work == "training")
    rows = torch.rand(ROWS, 3, pixels, pixels).contiguous(memory_format=torch.channels_last)

    def run(size: int) -> None:
        for part in rows.split(size):
            if work == "training":
                network(part).square().mean().backward()
            else:
                with torch.inference_mode():
                    network(part)

    line: dict[str, Any] = {"pixels": pixels, "work": work, "load": round(os.getloadavg()[0], 1), "rounds": []}
    for number in range(rounds + 1):
        order = AT_A_TIME if number % 2 else AT_A_TIME[::-1]
        spent = {size: measured(lambda size=size: run(size))[1] for size in order}
        line["rounds"] += [{str(size): spent[size] for size in AT_A_TIME}] if number else []
    return line


def table() -> None:
    """The table of the lines."""
    from timing import ratio

    sizes = " | ".join(f"{size}, times as fast" for size in AT_A_TIME[1:])
    print(f"| work | pixels | {AT_A_TIME[0]} at a time, rows a CPU second | {sizes} |")
    print("| --- " * (len(AT_A_TIME) + 2) + "|")
    for text in OUT.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        rate = ROWS / median(each["64"]["cpu"] for each in line["rounds"])
        gains = [ratio(line["rounds"], "64", str(size), "cpu") for size in AT_A_TIME[1:]]
        print(f"| {line['work']} | {line['pixels']} | {rate:.1f} | {' | '.join(gains)} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        return table()
    for work in ("answers", "training"):
        for pixels in (224, 128):
            line = compare(pixels, work, asked.rounds)
            with OUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    return None


if __name__ == "__main__":
    main()
