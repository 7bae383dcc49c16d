"""What the scripts that load a server share: a server in a process of its own, clients that ask it, what it took.

Clients hold one open connection each and send the next request when they have the answer to the last (a closed loop),
so the load never grows beyond what is answered. Times are the client's, from the first byte sent to the last received.
"""

from __future__ import annotations

import asyncio
import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

Asked = tuple[str, bytes]
"""A path and a body of JSON."""


class Running:
    """A server in a process of its own, or several that are meant as one; the first is asked."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def memory(self) -> dict[str, float]:
        """Megabytes in memory now, and at most so far."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = dict(line.split(":", 1) for line in text.splitlines())
        return {key: int(found[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")}

    def processes(self) -> list[int]:
        """The process and all that it started."""
        found, new = [], [self.process.pid]
        while new:
            found += new
            listed = [Path(f"/proc/{pid}/task/{pid}/children") for pid in new]
            new = [int(pid) for path in listed for pid in path.read_text(encoding="ascii").split()]
        return found

    def proportional(self) -> float:
        """Megabytes of the process and all that it started; pages that n processes share count 1/n in each (PSS)."""
        kilobytes = 0
        for pid in self.processes():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            kilobytes += int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
        return kilobytes / 1024

    def cpu(self) -> float:
        """CPU seconds so far, of the process and all that it started."""
        ticks = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(command: Sequence[str], cores: set[int] | None = None, ready: str = " at http") -> Iterator[Running]:
    """A server that prints one line with `ready` and, at its end, its port. cores: those that it may use."""
    before = os.sched_getaffinity(0)
    if cores is not None:
        os.sched_setaffinity(0, cores)  # inherited
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    finally:
        os.sched_setaffinity(0, before)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if ready in line), "")
        if not line:
            raise SystemExit(f"did not start: {' '.join(command)}")
        yield Running(process, int(line.rsplit(":", 1)[1]))
    finally:
        helpers = [] if process.poll() is not None else Running(process, 0).processes()[1:]
        process.terminate()
        process.wait(60)
        for pid in helpers:  # some servers leave theirs behind
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def headstart(*arguments: str, cores: set[int] | None = None) -> Iterator[Running]:
    """`headstart serve` with these arguments on a free port."""
    with started([sys.executable, "-m", "headstart", "serve", *arguments, "--port", "0"], cores) as running:
        yield running


async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of one answer. Raises OSError or EOFError where the connection breaks."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    (line,) = [line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(answer[9:12]), await reader.readexactly(int(line.split(b":")[1]))


async def client(port: int, asked: Iterator[Asked], go_on: Callable[[], bool], found: list[float]) -> None:
    """Ask until `go_on` says no. Raises AssertionError for a status other than 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while go_on():
        path, body = next(asked)
        start = time.perf_counter()
        status, answer = await send(reader, writer, path, body)
        found.append(time.perf_counter() - start)
        assert status == 200, answer
    writer.close()


def load(port: int | Sequence[int], asked: Iterator[Asked], clients: int, seconds: float) -> list[float]:
    """Seconds of each request of this many clients, which share what is asked; of several ports each has one."""
    ports = [port] if isinstance(port, int) else port

    async def all_of_them() -> list[float]:
        found: list[float] = []
        stop = time.perf_counter() + seconds
        await asyncio.gather(
            *(client(ports[n % len(ports)], asked, lambda: time.perf_counter() < stop, found) for n in range(clients))
        )
        return found

    return asyncio.run(all_of_them())


def measured(running: Running, asked: Iterator[Asked], clients: int, seconds: float) -> dict[str, float]:
    """Rows a second, CPU milliseconds of the server a row, and the client's p50 and p99, one row a request."""
    return measured_all([running], asked, clients, seconds)


def measured_all(servers: Sequence[Running], asked: Iterator[Asked], clients: int, seconds: float) -> dict[str, float]:
    """As `measured`, of several servers together, among which the clients are shared out."""
    cpu, start = sum(each.cpu() for each in servers), time.perf_counter()
    times = sorted(load([each.port for each in servers], asked, clients, seconds))
    spent = time.perf_counter() - start
    return {
        "rows_per_second": round(len(times) / spent, 2),
        "cpu_ms": round(1000 * (sum(each.cpu() for each in servers) - cpu) / len(times), 3),
        "p50_ms": round(1000 * median(times), 3),
        "p99_ms": round(1000 * times[int(0.99 * (len(times) - 1))], 3),
    }


def requests(names: Sequence[str], texts: Sequence[str], seed: int, path: str = "/predict/{}") -> Iterator[Asked]:
    """Endless requests of one text each, to models drawn from `names`, in an order that the seed fixes."""
    whom, which = random.Random(seed), random.Random(seed)
    while True:
        yield path.format(whom.choice(names)), json.dumps([texts[which.randrange(len(texts))]]).encode()


def column(path: Path, *names: str) -> list[tuple[str, ...]]:
    """Columns of a csv file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [tuple(row[name] for name in names) for row in csv.DictReader(file)]


def ratio(pairs: Sequence[tuple[float, float]]) -> str:
    """The geometric mean of first / second, with the 95 % interval of a bootstrap over the pairs."""
    logs = [math.log(first / second) for first, second in pairs]
    draws = random.Random(0)
    means = sorted(sum(draws.choices(logs, k=len(logs))) / len(logs) for _ in range(2000))
    mean = math.exp(sum(logs) / len(logs))
    return f"{mean:.2f} ({math.exp(means[50]):.2f} to {math.exp(means[1949]):.2f})"
