"""Why answers take longer while explanations are made: the interpreter's lock, the caches, or the processor's time?

    python benchmarks/explain/why.py EMOTION --data-root DATA      # appends to why.jsonl
    python benchmarks/explain/why.py EMOTION --data-root DATA --niceness 10 19 --busy 2
    python benchmarks/explain/why.py --table

One client asks `/predict`, as in `faithful.py beside`, in phases that take turns: with nothing else; while two clients
ask `/explain`; while another process, at the niceness of the thread of explanations, makes the same explanations,
which shares the machine with the server but not the interpreter's lock; and while such a process counts in Python,
which hardly touches memory either. Beside the times of the client stand two of the thread that runs the network, a
request: what it computed, and what it waited, ready to run, for a core (Linux, /proc/PID/task/TID/schedstat).
`--niceness`: another one for the thread of explanations, a server each; both are beyond this process's own. `--busy`:
so many processes that do nothing but count, all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import faithful
from faithful import asking

OUT = Path(__file__).resolve().parent / "why.jsonl"
SERVER = "from headstart.serve import explainer; from headstart.cli import main; explainer.WAY = {}; main()"
ASIDE = {
    "another process, explanations": """
import json, headstart as hs
from headstart.explanation import attribution
bundle, rows = hs.load({folder!r}), [json.loads(each)[0] for each in {rows!r}]
attribution.explain(bundle, rows[0])
print(flush=True)
while True:
    for row in rows:
        attribution.explain(bundle, row)
""",
    "another process, counting": "print(flush=True)\nwhile True: pass",
}


def aside(code: str, niceness: int) -> subprocess.Popen[str]:
    """A process that does nothing before it is let go on."""
    code = f"import os; os.nice({niceness})\n{code}"
    process = subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    return process


def threads(pid: int) -> dict[str, tuple[float, float]]:
    """Of each thread, the milliseconds that it computed and waited for a core so far."""
    found = {
        path.name: (path / "schedstat").read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").iterdir()
    }
    return {name: (int(text.split()[0]) / 1e6, int(text.split()[1]) / 1e6) for name, text in found.items()}


async def phase(
    running: asking.Running, rows: list[bytes], seconds: float, name: str, explaining: bool, processes: Any = ()
) -> Any:
    """The client's seconds, what the network's thread did meanwhile, and how many explanations were made.

    processes: let go on for this long.
    """
    over, took, made = asyncio.Event(), [], 0

    async def explain(seed: int) -> None:
        nonlocal made
        draws, line = random.Random(seed), await asyncio.open_connection("127.0.0.1", running.port)
        while not over.is_set():
            made += (await asking.send(*line, f"/explain/{name}", draws.choice(rows)))[0] == 200
        line[1].close()

    others = [asyncio.create_task(explain(seed)) for seed in range(2 if explaining else 0)]
    for process in processes:
        process.send_signal(signal.SIGCONT)
    await asyncio.sleep(0.3)
    draws, line = random.Random(9), await asyncio.open_connection("127.0.0.1", running.port)
    before, stop = threads(running.process.pid), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        status, answer = await asking.send(*line, f"/predict/{name}", draws.choice(rows))
        took.append(time.perf_counter() - start)
        assert status == 200, answer
    after, during = threads(running.process.pid), made
    spent = [tuple(b - a for a, b in zip(before[name], after[name], strict=True)) for name in before.keys() & after]
    line[1].close()
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    over.set()
    await asyncio.gather(*others)
    return took, [each / len(took) for each in max(spent)], during  # the network's thread computes most


def measure(folder: Path, data: Path, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for each pair of phases: nothing else, and one arm."""
    name, rows = folder.resolve().name, faithful.bodies(folder, data)
    with ExitStack() as stack:
        arms: list[tuple[str, asking.Running, Any]] = []
        for way in asked.niceness:
            command = [sys.executable, "-c", SERVER.format(os.nice(0) + way), "serve", str(folder), "--port", "0"]
            running = stack.enter_context(asking.started(command))
            asyncio.run(phase(running, rows, asked.seconds, name, True))
            arms.append((f"explanations, niceness {way}", running, None))
        for what, code in ASIDE.items() if len(asked.niceness) == 1 else ():
            process = aside(code.format(folder=str(folder), rows=rows), asked.niceness[0])
            stack.callback(process.kill)
            arms.append((what, arms[0][1], process))
        busy = [aside(ASIDE["another process, counting"], 0) for _ in range(asked.busy)]
        for process in busy:
            stack.callback(process.kill)
        for pair in range(asked.pairs):
            for what, running, process in arms if pair % 2 else reversed(arms):
                told: dict[str, Any] = {"bundle": name, "arm": what, "busy": asked.busy, "pair": pair}
                for beside in (False, True) if pair % 2 else (True, False):
                    processes = [*busy, process] if beside and process else busy
                    work = phase(running, rows, asked.seconds, name, beside and process is None, processes)
                    took, (ran, waited), made = asyncio.run(work)
                    told["beside" if beside else "alone"] = {
                        "p50_ms": round(1000 * median(took), 2), "most_ms": round(1000 * max(took), 1),
                        "ran_ms": round(ran, 2), "waited_ms": round(waited, 2), "explained": made,
                    }  # fmt: skip
                yield told


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    yield "| busy processes | beside the client | p50 ms alone, beside | ratio | computed ms | waited ms | longest ms |"
    yield "| ---: | --- | --- | --- | --- | --- | ---: |"
    for busy, arm in dict.fromkeys((line["busy"], line["arm"]) for line in lines):
        found = [line for line in lines if (line["busy"], line["arm"]) == (busy, arm)]

        def both(key: str, found: list[dict[str, Any]] = found) -> str:
            return ", ".join(f"{median(line[when][key] for line in found):.1f}" for when in ("alone", "beside"))

        ratio = asking.ratio([(line["beside"]["p50_ms"], line["alone"]["p50_ms"]) for line in found])
        most = max(line["beside"]["most_ms"] for line in found)
        yield f"| {busy} | {arm} | {both('p50_ms')} | {ratio} | {both('ran_ms')} | {both('waited_ms')} | {most:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--niceness", nargs="+", type=int, default=[10])
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.bundle is not None:
        with asked.out.open("a", encoding="utf-8") as file:
            for line in measure(asked.bundle, asked.data_root, asked):
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(line, flush=True)
    if asked.table:
        print("\n".join(table([json.loads(line) for line in asked.out.read_text(encoding="utf-8").splitlines()])))


if __name__ == "__main__":
    main()
