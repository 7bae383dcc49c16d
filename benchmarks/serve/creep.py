"""Where a server's memory goes after spoiled requests: the same in every round, and what the heap holds after each.

    python benchmarks/serve/creep.py BUNDLES --rounds 15 --requests 2000 --out benchmarks/serve/creep.json

The requests are those of `fuzz.py` that are made by spoiling valid ones and, with `--described N`, N that schemathesis
makes of the server's own description; every round sends the same. What a leak leaves grows by the same amount each
round. Three servers, one after another: as it is; with one arena of malloc
(MALLOC_ARENA_MAX=1); and with tracemalloc and a collection of cycles before each look, which says how much Python
itself holds. After each round: the resident memory; by glibc's mallinfo2 what malloc has given out and what it keeps
free, over all arenas; at the end the resident memory after malloc_trim, which gives back what is free.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import asking
import fuzz

SERVER = """
import ctypes, gc, json, os, signal, sys, tracemalloc
from pathlib import Path

libc, traced = ctypes.CDLL(None), os.environ.get("CREEP_TRACED") == "1"
names = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]

libc.mallinfo2.restype = Info
if traced:
    tracemalloc.start()

def tell(number, frame):
    if number == signal.SIGUSR2:
        libc.malloc_trim(0)
    if traced:
        gc.collect()
    info, status = libc.mallinfo2(), Path("/proc/self/status").read_text()
    found = {
        "rss_mb": int(status.split("VmRSS:")[1].split()[0]) / 1024,
        "given_mb": (info.uordblks + info.hblkhd) / 2**20, "free_mb": info.fordblks / 2**20,
    }
    if traced:
        found |= {"python_mb": tracemalloc.get_traced_memory()[0] / 2**20, "objects": len(gc.get_objects())}
    print(json.dumps(found), flush=True)

for each in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(each, tell)
from headstart.cli import main
sys.argv[0] = "headstart"
main()
"""

ARMS = {"as it is": {}, "one arena": {"MALLOC_ARENA_MAX": "1"}, "traced": {"CREEP_TRACED": "1"}}
TEXTS = ["where is my parcel", "I want my money back", "naïve 日本語 🙂", "a" * 400]


def look(running: asking.Running, number: signal.Signals = signal.SIGUSR1) -> dict[str, float]:
    """What the server says of its memory."""
    os.kill(running.process.pid, number)
    assert running.process.stdout is not None
    return {key: round(value, 2) for key, value in json.loads(running.process.stdout.readline()).items()}


def measure(bundles: list[str], settings: dict[str, str], asked: argparse.Namespace) -> dict[str, Any]:
    import requests

    os.environ.update(settings)
    with asking.started([sys.executable, "-c", SERVER, "serve", *bundles, "--port", "0"]) as running:
        for name in settings:
            del os.environ[name]
        url = f"http://127.0.0.1:{running.port}"
        told = requests.get(f"{url}/models").json()["models"]
        models = [(each["name"], each["modality"]) for each in told]
        looks = [look(running)]
        for _ in range(asked.rounds):
            statuses, failed = asyncio.run(fuzz.mutations(running.port, models, TEXTS, asked.requests, asked.seed))
            if asked.described:
                more, said = fuzz.described(url, asked.described, asked.seed)
                statuses, failed = statuses + more, [*failed, *said]
            assert not failed, failed[:1]
            looks.append(look(running))
            print(looks[-1], flush=True)
        return {"rounds": looks, "trimmed": look(running, signal.SIGUSR2), "statuses": dict(statuses)}


def table(found: dict[str, Any]) -> None:
    last = len(next(iter(found["arms"].values()))["rounds"]) - 1
    print(f"| server | MB | start | after round 1 | {last // 3} | {2 * last // 3} | {last} | after malloc_trim |")
    print("| --- " * 2 + "| ---: " * 6 + "|")
    for arm, told in found["arms"].items():
        for key in told["trimmed"]:
            picked = [told["rounds"][n][key] for n in (0, 1, last // 3, 2 * last // 3, last)] + [told["trimmed"][key]]
            print(f"| {arm} | {key} | " + " | ".join(f"{value:,.1f}" for value in picked) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", help="one of them of texts")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=2000, help="of each round")
    parser.add_argument("--described", type=int, default=0, help="of each round, by schemathesis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {"requests": asked.requests, "described": asked.described, "arms": {}}
    for arm in asked.arms:
        found["arms"][arm] = measure(asked.bundles, ARMS[arm], asked)
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table(found)


if __name__ == "__main__":
    main()
