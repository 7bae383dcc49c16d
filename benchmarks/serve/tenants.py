"""One tenant and a hundred on one backbone: the server's memory, and how many rows it answers.

    python benchmarks/serve/tenants.py make tenants src/headstart/examples/support_tickets/train.csv
    python benchmarks/serve/tenants.py measure tenants src/headstart/examples/support_tickets/test.csv \
        --out benchmarks/serve/tenants.json
    python benchmarks/serve/tenants.py table benchmarks/serve/tenants.json

`make` fits one bundle (MiniLM-L6, LoRA of rank 8 on all linear layers, a head) on a few rows and makes the others by
moving its factors and head at random, from fixed seeds; each is written and proven by `Bundle.save`, light, so that a
tenant takes its factors on disk. `measure` starts one server with the first tenant and one with all, each a process of
its own. Memory is VmRSS and VmHWM of the process. Rows are asked over connections that stay open, one text a request,
from the one tenant in one server and from a tenant drawn for each request in the other, with the same texts in the same
order; the servers take turns. CPU seconds are those of the server's process.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

CLIENTS = 32


def make(folder: Path, rows: Path, count: int) -> None:
    import torch

    import headstart as hs
    from headstart import bundle as bundles

    texts, labels = zip(*read(rows, "text", "intent")[:120], strict=True)
    first = hs.fit(list(texts), list(labels), methods=["lora:r=8,merge=false"], epochs=1)
    first.save(folder / "whole")
    hs.lighten(folder / "whole", folder / "tenant-000")
    model = hs.load(folder / "tenant-000")
    own = {name: v for name, v in model.model.named_parameters() if ".lora_" in name or name.startswith("head.")}
    start = {name: value.detach().clone() for name, value in own.items()}
    lineage = model.record["lineage"]["id"]
    for number in range(1, count):
        draws = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, value in own.items():
                spread = max(0.02, float(start[name].std()))
                value.copy_(start[name] + spread * torch.randn(value.shape, generator=draws))
        model.probe_outputs = model.outputs(model.probe_inputs)
        model.record["lineage"] = bundles.lineage(lineage, f"tenant-{number:03d}")
        model.save(folder / f"tenant-{number:03d}")


def read(path: Path, *columns: str) -> list[tuple[str, ...]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [tuple(row[name] for name in columns) for row in csv.DictReader(file)]


class Running:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], port: int, names: list[str]) -> None:
        self.process, self.port, self.names = process, port, names

    def memory(self) -> dict[str, float]:
        """Megabytes in memory now, and at most so far."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = dict(line.split(":", 1) for line in text.splitlines())
        return {key: int(found[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")}

    def cpu(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(folders: list[Path]) -> Iterator[Running]:
    command = [sys.executable, "-m", "headstart", "serve", *map(str, folders), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Running(process, int(line.rsplit(":", 1)[1]), [folder.name for folder in folders])
    finally:
        process.terminate()
        process.wait(60)


async def client(port: int, asked: Iterator[tuple[str, str]], stop: float, found: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < stop:
        name, text = next(asked)
        body = json.dumps([text]).encode()
        head = f"POST /predict/{name} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        start = time.perf_counter()
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        (line,) = [line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(int(line.split(b":")[1]))
        found.append(time.perf_counter() - start)
    writer.close()


def ask(running: Running, texts: list[str], seconds: float, seed: int) -> dict[str, float]:
    """Rows a second and CPU seconds for 1,000 rows, of `CLIENTS` clients; each request draws its tenant."""
    draws = random.Random(seed)
    order = random.Random(seed)

    def requests() -> Iterator[tuple[str, str]]:
        while True:
            yield draws.choice(running.names), texts[order.randrange(len(texts))]

    async def load() -> list[float]:
        asked, found = requests(), []
        stop = time.perf_counter() + seconds
        await asyncio.gather(*(client(running.port, asked, stop, found) for _ in range(CLIENTS)))
        return found

    cpu, start = running.cpu(), time.perf_counter()
    times = asyncio.run(load())
    return {
        "rows_per_second": len(times) / (time.perf_counter() - start),
        "cpu_seconds_per_1000": 1000 * (running.cpu() - cpu) / len(times),
        "p50_ms": 1000 * median(times),
    }


def measure(folder: Path, rows: Path, seconds: float, rounds: int) -> dict[str, Any]:
    texts = [text for (text,) in read(rows, "text")]
    folders = sorted(folder.glob("tenant-*"))
    found: dict[str, Any] = {
        "tenants": len(folders),
        "clients": CLIENTS,
        "seconds": seconds,
        "memory": {},
        "rounds": [],
    }
    with server(folders[:1]) as one, server(folders) as many:
        for name, running in (("one", one), ("many", many)):
            found["memory"][name] = {"loaded": running.memory()}
            ask(running, texts, seconds, 0)  # the first answers are slow, and fill what is filled once
            found["memory"][name]["asked"] = running.memory()
        for number in range(rounds):
            pair = {}
            order = (("one", one), ("many", many))
            for name, running in order if number % 2 else reversed(order):
                pair[name] = ask(running, texts, seconds, number)
            found["rounds"].append(pair)
            print(json.dumps(pair), flush=True)
        for name, running in (("one", one), ("many", many)):
            found["memory"][name]["end"] = running.memory()
    return found


def table(found: dict[str, Any]) -> None:
    rounds, memory = found["rounds"], found["memory"]
    print("| tenants | RSS MB loaded | RSS MB after the load | rows/s | CPU s for 1,000 rows | p50 ms |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, count in (("one", 1), ("many", found["tenants"])):
        middle = {key: median(each[name][key] for each in rounds) for key in rounds[0][name]}
        print(
            f"| {count} | {memory[name]['loaded']['VmRSS']:.0f} | {memory[name]['end']['VmRSS']:.0f} "
            f"| {middle['rows_per_second']:.1f} | {middle['cpu_seconds_per_1000']:.2f} | {middle['p50_ms']:.0f} |"
        )
    print()
    for key, what in (("rows_per_second", "rows/s"), ("cpu_seconds_per_1000", "CPU seconds a row")):
        logs = [math.log(each["many"][key] / each["one"][key]) for each in rounds]
        low, high = interval(logs)
        mean = math.exp(sum(logs) / len(logs))
        print(
            f"{what}, many over one: {mean:.2f} ({math.exp(low):.2f} to {math.exp(high):.2f}) over {len(logs)} rounds"
        )
    for when in ("loaded", "end"):
        ratio = memory["many"][when]["VmRSS"] / memory["one"][when]["VmRSS"]
        print(f"RSS {when}, many over one: {ratio:.2f}")


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean."""
    draws = random.Random(0)
    means = sorted(sum(draws.choices(values, k=len(values))) / len(values) for _ in range(2000))
    return means[50], means[1949]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("make", "measure"):
        asked = verbs.add_parser(verb)
        asked.add_argument("folder", type=Path)
        asked.add_argument("rows", type=Path, help="csv with the columns 'text' and 'intent'")
        asked.add_argument("--count", type=int, default=100)
        asked.add_argument("--seconds", type=float, default=8.0, help="of load, for each server and round")
        asked.add_argument("--rounds", type=int, default=10)
        asked.add_argument("--out", type=Path)
    verbs.add_parser("table").add_argument("file", type=Path)
    given = parser.parse_args()
    if given.verb == "make":
        make(given.folder, given.rows, given.count)
    elif given.verb == "measure":
        found = measure(given.folder, given.rows, given.seconds, given.rounds)
        if given.out is not None:
            given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        table(found)
    else:
        table(json.loads(given.file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
