"""How fast a served bundle answers: one client and many, with shared batches and without.

    python benchmarks/serve/load.py runs/tickets src/headstart/examples/support_tickets/test.csv --out serve.json

Starts `headstart serve` for each setting in turn and asks it over connections that stay open, one text a request, each
client sending its next request when it has its answer. Times are those of the client, from the first byte sent to the
last byte received. The settings are run in turn, `--rounds` times, so that what else the machine does hits them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

SETTINGS = {"alone": ("--batch", "1", "--delay", "0"), "batches": ()}
CLIENTS = (1, 8, 32)


async def client(port: int, path: str, texts: list[str], stop: float, found: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    place = 0
    while time.perf_counter() < stop:
        body = json.dumps([texts[place % len(texts)]]).encode()
        place += 1
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        start = time.perf_counter()
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        (line,) = [line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(int(line.split(b":")[1]))
        found.append(time.perf_counter() - start)
    writer.close()


async def load(port: int, path: str, texts: list[str], clients: int, seconds: float) -> list[float]:
    found: list[float] = []
    stop = time.perf_counter() + seconds
    shares = [texts[start:] + texts[:start] for start in range(clients)]
    await asyncio.gather(*(client(port, path, share, stop, found) for share in shares))
    return found


def measure(bundle: str, texts: list[str], seconds: float, options: tuple[str, ...]) -> dict[int, dict[str, float]]:
    command = [sys.executable, "-m", "headstart", "serve", bundle, "--name", "model", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().rsplit(":", 1)[1])
        asyncio.run(load(port, "/predict/model", texts, 4, 1.0))  # the first answers are slow
        figures = {}
        for clients in CLIENTS:
            times = sorted(asyncio.run(load(port, "/predict/model", texts, clients, seconds)))
            figures[clients] = {
                "rate": len(times) / seconds,
                "p50": 1000 * median(times),
                "p99": 1000 * times[int(0.99 * (len(times) - 1))],
            }
        return figures
    finally:
        server.terminate()
        server.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("rows", type=Path, help="csv with a column 'text'")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load, for each number of clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with asked.rows.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    rounds: dict[str, list[dict[int, dict[str, float]]]] = {name: [] for name in SETTINGS}
    for _ in range(asked.rounds):
        for name, options in SETTINGS.items():
            rounds[name].append(measure(asked.bundle, texts, asked.seconds, options))
    print("| clients | batches | requests/s | p50 ms | p99 ms |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for clients in CLIENTS:
        for name, runs in rounds.items():
            middle = {key: median(run[clients][key] for run in runs) for key in ("rate", "p50", "p99")}
            print(f"| {clients} | {name} | {middle['rate']:.0f} | {middle['p50']:.1f} | {middle['p99']:.1f} |")
    if asked.out is not None:
        asked.out.write_text(json.dumps(rounds, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
