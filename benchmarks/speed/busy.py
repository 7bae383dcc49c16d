"""What `headstart fit` takes where another program holds one of the cores, by how long threads look before they sleep.

The demo's support tickets (MiniLM-L6), one epoch after the probe, a fresh process each, as many threads as cores. The
other program is a loop that never waits: started from the same terminal (`busy`), or in a session of its own as another
user's is (`apart`), to which Linux may give a share of its own. `free` has none. Wall seconds; CPU seconds would not
show waiting.

as it comes   GOMP_SPINCOUNT=300000, GNU's own number where nobody says another
headstart     as the command line sets it (`headstart.heap.wait_briefly`)

    python benchmarks/speed/busy.py --rounds 1
    python benchmarks/speed/busy.py --table
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

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "busy.jsonl"
DEMO = HERE.parents[1] / "src" / "headstart" / "examples" / "support_tickets"
SIDES = {"headstart": {}, "as it comes": {"GOMP_SPINCOUNT": "300000"}}

PLACES = ("free", "busy", "apart")


def seconds(more: dict[str, str]) -> float:
    """Wall seconds of one fit."""
    told = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    clean = {name: value for name, value in os.environ.items() if name not in told}
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable, "-m", "headstart", "fit", str(DEMO / "train.csv"), "--test", str(DEMO / "test.csv"),
            "--out", f"{scratch}/out", "--epochs", "1", "--track", "none", "--seed", "1",
        ]  # fmt: skip
        began = time.perf_counter()
        subprocess.run(
            command, env={**clean, "TOKENIZERS_PARALLELISM": "false", **more}, check=True, capture_output=True
        )
        return time.perf_counter() - began


def measure(rounds: int) -> None:
    """Both sides with the other program and without, turn about."""
    for number in range(rounds):
        line: dict[str, object] = {"round": number, "cores": len(os.sched_getaffinity(0))}
        for where in PLACES:
            loop = [sys.executable, "-c", "while True: pass"]
            other = None if where == "free" else subprocess.Popen(loop, start_new_session=where == "apart")
            try:
                for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
                    line[f"{where}, {side}"] = round(seconds(SIDES[side]), 1)
            finally:
                if other is not None:
                    other.kill()
                    other.wait()
        with OUT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def table() -> None:
    """Seconds by round."""
    lines = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()]
    print("| cores | threads wait | seconds, by round |\n| --- | --- | --- |")
    for where in PLACES:
        for side in SIDES:
            print(f"| {where} | {side} | {', '.join(str(line[f'{where}, {side}']) for line in lines)} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        return table()
    return measure(asked.rounds)


if __name__ == "__main__":
    main()
