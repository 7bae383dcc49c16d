"""What batches as a service gets them cost in fp32 and keep: 1 to 8 texts of Banking77 at a time, MiniLM-L6.

Each way is a process of its own: torch's own product, oneDNN for each number of tokens as it comes, and oneDNN for
numbers filled up (`products.EVEN`). CPU seconds of all batches and by how many MB the process grew over them, one
line of JSON each.

    python benchmarks/speed/asked.py --batches 1000
    python benchmarks/speed/asked.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "asked.jsonl"
WAYS = ("torch", "as they come", "filled up")


def alone(root: Path, way: str, batches: int) -> dict[str, Any]:
    """One way in this process."""
    import torch
    from ways import setting

    from headstart import products
    from headstart.steps.memory import resident

    if way == "torch":
        products.faster = lambda threads: False
    elif way == "as they come":
        products.EVEN = 1
    torch.set_num_threads(1)
    model, rows, _ = setting(root, "text")
    model.eval()
    draws = random.Random(0)
    with torch.inference_mode():
        model(rows.batch([0, 1]))
        before, started = resident() or 0, time.process_time()
        for _ in range(batches):
            model(rows.batch(draws.sample(range(len(rows)), draws.choice([1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8]))))
    spent = round(time.process_time() - started, 1)
    return {"way": way, "batches": batches, "cpu": spent, "grown_mb": ((resident() or 0) - before) >> 20}


def main() -> None:
    """Read the command line."""
    from timing import record, recorded

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--alone", choices=WAYS)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.alone:
        print(json.dumps(alone(asked.data_root, asked.alone, asked.batches)))
        return
    if not asked.table:
        for way in WAYS:
            command = [sys.executable, __file__, "--alone", way, "--batches", str(asked.batches)]
            command += ["--data-root", str(asked.data_root)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            record(OUT, json.loads(said))
            print(said, flush=True)
    print("| way | batches | CPU seconds | grown by, MB |\n| --- | --- | --- | --- |")
    for line in recorded(OUT):
        print(f"| {line['way']} | {line['batches']:,} | {line['cpu']} | {line['grown_mb']} |")


if __name__ == "__main__":
    main()
