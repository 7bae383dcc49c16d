"""How long `headstart --help` takes, and how long `headstart fit` takes to its first batch, in fresh processes.

The fit is that of the demo (support tickets, texts): the clock stops when the first stage is announced, after imports,
reading, checks, loading the backbone, tokenising and the plan, and the process is ended there. CPU seconds beside wall
seconds, one thread; the files are in the page cache after the first run, which is dropped.

    python benchmarks/speed/startup.py --runs 5
    python benchmarks/speed/startup.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "startup.jsonl"
DEMO = HERE.parents[1] / "src" / "headstart" / "examples" / "support_tickets"


def spent(arguments: list[str], until: str | None = None) -> dict[str, float]:
    """Wall and CPU seconds of a fresh process, to its end or to the line of its that begins with `until`."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "headstart", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    for line in child.stderr:
        if until is not None and line.startswith(until):
            break
    else:
        if until is not None:
            raise SystemExit(f"the process ended without saying '{until}'")
    wall = time.perf_counter() - began
    if until is not None:
        child.kill()
    _, _, used = os.wait4(child.pid, 0)
    return {"seconds": round(time.perf_counter() - began if until is None else wall, 2),
            "cpu": round(used.ru_utime + used.ru_stime, 2)}  # fmt: skip


def compare(runs: int) -> None:
    """Both, turn about; the first of each is dropped."""
    for number in range(-1, runs):
        with tempfile.TemporaryDirectory() as scratch:
            fit = ["fit", str(DEMO / "train.csv"), "--test", str(DEMO / "test.csv"), "--out", f"{scratch}/out"]
            line = {
                "load": round(os.getloadavg()[0], 1), "help": spent(["--help"]), "first batch": spent(fit, "stage 1"),
            }  # fmt: skip
        print(json.dumps(line), flush=True)
        if number >= 0:
            with OUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def table() -> None:
    """The table of the lines."""
    from timing import summary

    lines = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()]
    print("| | runs | seconds (wall) | CPU seconds |\n| --- | --- | --- | --- |")
    for name in ("help", "first batch"):
        row = " | ".join(summary([line[name][key] for line in lines]) for key in ("seconds", "cpu"))
        print(f"| {name} | {len(lines)} | {row} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    table() if asked.table else compare(asked.runs)


if __name__ == "__main__":
    main()
