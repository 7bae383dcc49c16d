"""Minutes of load while a model is swapped again and again, and a server that is killed meanwhile.

    python benchmarks/serve/soak.py swaps FIRST SECOND --data-root DATA --out benchmarks/serve/soak.json
    python benchmarks/serve/soak.py kills FIRST SECOND --data-root DATA --out benchmarks/serve/kills.json
    python benchmarks/serve/soak.py steady FIRST FIRST --data-root DATA --out benchmarks/serve/steady.json

FIRST and SECOND are bundles of Banking77. The server is given a link that leads to one of them; to swap, the link
is turned and the model loaded again by `/v2/repository/models/model/load`. Eight clients ask meanwhile, one text a
request. An answer says which version gave it: its label must be the one that this version gave to this text before.

`swaps`: load alone, then with swaps, then alone again; what failed, the server's memory, p99 with swaps and without.
`kills`: SIGKILL at a random moment of load and swaps, then a new start, which must serve what the link leads to; 20
times. `steady`: load alone, for longer; does memory go on growing?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import asking

CLIENTS = 8
TEXTS = 100
LOAD = "/v2/repository/models/model/load"


@dataclass
class Seen:
    """What the clients saw. right: (version, text) -> label. broken: connections that ended without an answer."""

    right: dict[tuple[str, str], str] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    wrong: int = 0
    broken: int = 0

    def note(self, status: int, answer: bytes, text: str) -> None:
        """One answer."""
        self.statuses[status] += 1
        if status != 200:
            return
        found = json.loads(answer)
        version, label = found["version"], found["predictions"][0]["prediction"]
        self.versions[version] += 1
        self.wrong += self.right.setdefault((version, text), label) != label


class Link:
    """The folder that the server was given: a link to one of two bundles."""

    def __init__(self, place: Path, bundles: list[Path]) -> None:
        self.path, self.bundles, self.now = place / "bundle", bundles, 0
        self.turn(0)

    def turn(self, to: int) -> None:
        """Let it lead to another."""
        fresh = self.path.with_suffix(".new")
        fresh.symlink_to(self.bundles[to].resolve())
        fresh.replace(self.path)
        self.now = to

    @property
    def version(self) -> str:
        """What a server must say that it serves after a start."""
        record = json.loads((self.path / "bundle.json").read_text(encoding="utf-8"))
        return str(record["lineage"]["id"])[:12]


async def ask(port: int, texts: list[str], seed: int, seen: Seen, over: asyncio.Event) -> None:
    """One client, until it is over or the server is gone."""
    draws = random.Random(seed)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not over.is_set():
            text = draws.choice(texts)
            start = time.perf_counter()
            seen.note(*await asking.send(reader, writer, "/predict/model", json.dumps([text]).encode()), text)
            seen.times.append(time.perf_counter() - start)
        writer.close()
    except (OSError, EOFError):
        seen.broken += 1


async def swap(port: int, link: Link) -> float:
    """Turn the link and load; seconds that it took. Raises OSError or EOFError where the server is gone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    link.turn(1 - link.now)
    start = time.perf_counter()
    status, answer = await asking.send(reader, writer, LOAD, b"")
    if status != 200:
        raise SystemExit(f"a swap failed: {status} {answer!r}")
    writer.close()
    return time.perf_counter() - start


async def learn(port: int, texts: list[str], seen: Seen) -> str:
    """Ask every text once, so that `seen` knows what this version says; returns its version."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for text in texts:
        status, answer = await asking.send(reader, writer, "/predict/model", json.dumps([text]).encode())
        seen.note(status, answer, text)
    writer.close()
    return str(json.loads(answer)["version"])


async def phase(running: asking.Running, link: Link, texts: list[str], seen: Seen, plan: dict[str, Any]) -> Any:
    """Load for some seconds, or until so many swaps are done. Memory is noted each second, with the requests so far."""
    over, seen.times = asyncio.Event(), []
    before = sum(seen.statuses.values())
    clients = [asyncio.create_task(ask(running.port, texts, seed, seen, over)) for seed in range(CLIENTS)]
    memory: list[tuple[int, float]] = []
    took: list[float] = []

    async def watch() -> None:
        while True:
            memory.append((sum(seen.statuses.values()) - before, round(running.memory()["VmRSS"], 1)))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    for _ in range(plan.get("swaps", 0)):
        took.append(await swap(running.port, link))
        await asyncio.sleep(0.5)
    await asyncio.sleep(plan.get("seconds", 0))
    over.set()
    await asyncio.gather(*clients)
    watching.cancel()
    times = sorted(seen.times)
    return {
        "requests": len(times), "p50_ms": round(1000 * median(times), 1), "memory_mb": memory,
        "p99_ms": round(1000 * times[int(0.99 * (len(times) - 1))], 1), "most_ms": round(1000 * times[-1], 1),
        "swap_seconds": [round(each, 2) for each in took],
    }  # fmt: skip


def slope(memory: list[tuple[int, float]]) -> float:
    """MB per 1,000 requests: the line of least squares."""
    count = len(memory)
    x, y = (sum(each[axis] for each in memory) / count for axis in (0, 1))
    spread = sum((a - x) ** 2 for a, _ in memory)
    return round(1000 * sum((a - x) * (b - y) for a, b in memory) / spread, 4)


def swaps(link: Link, texts: list[str], plans: list[dict[str, Any]]) -> dict[str, Any]:
    """The phases one after another on one server."""
    seen = Seen()
    with asking.headstart(str(link.path), "--name", "model") as running:

        async def all_of_them() -> list[Any]:
            await learn(running.port, texts, seen)
            if any(plan.get("swaps") for plan in plans):
                await swap(running.port, link)
                await learn(running.port, texts, seen)
                await swap(running.port, link)
            await phase(running, link, texts, seen, {"seconds": 5})  # the first answers fill what is filled once
            return [await phase(running, link, texts, seen, plan) for plan in plans]

        phases = asyncio.run(all_of_them())
    for each in phases:
        each["slope_mb_per_1000"] = slope(each["memory_mb"])
        quarter = len(each["memory_mb"]) // 4
        each["slopes_of_quarters"] = [slope(each["memory_mb"][n * quarter : (n + 1) * quarter]) for n in range(4)]
    return {
        "statuses": dict(seen.statuses), "wrong": seen.wrong, "broken": seen.broken,
        "versions": dict(seen.versions), "phases": phases,
    }  # fmt: skip


def kills(link: Link, texts: list[str], count: int) -> dict[str, Any]:
    """Kill, start again, ask: every start must serve what the link leads to, and answer as before."""
    seen, draws, starts = Seen(), random.Random(0), []

    async def until_dead(running: asking.Running) -> None:
        found = await learn(running.port, texts, seen)
        assert found == link.version, (found, link.version)
        over = asyncio.Event()
        clients = [asyncio.create_task(ask(running.port, texts, seed, seen, over)) for seed in range(CLIENTS)]
        asyncio.get_running_loop().call_later(draws.uniform(0.0, 4.0), running.process.kill)
        with suppress(OSError, EOFError):
            while running.process.poll() is None:
                await swap(running.port, link)
        await asyncio.wait_for(asyncio.gather(*clients), 60)

    for number in range(count + 1):
        start = time.perf_counter()
        with asking.headstart(str(link.path), "--name", "model") as running:
            starts.append(round(time.perf_counter() - start, 1))
            if number < count:
                asyncio.run(until_dead(running))
            else:
                assert asyncio.run(learn(running.port, texts, seen)) == link.version
        print(number, dict(seen.statuses), seen.wrong, seen.broken, flush=True)
    return {
        "kills": count, "statuses": dict(seen.statuses), "wrong": seen.wrong, "connections_broken": seen.broken,
        "versions": dict(seen.versions), "start_seconds": starts,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["swaps", "kills", "steady"])
    parser.add_argument("bundles", nargs=2, type=Path)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--count", type=int, help="of swaps (50) or kills (20)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load without swaps, before and after")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    texts = [text for (text,) in asking.column(asked.data_root / "banking77" / "test.csv", "text")][:: 3080 // TEXTS]
    with tempfile.TemporaryDirectory() as place:
        link = Link(Path(place), asked.bundles)
        quiet = {"seconds": asked.seconds}
        if asked.verb == "kills":
            found = kills(link, texts, asked.count or 20)
        else:
            found = swaps(
                link, texts, [quiet, {"swaps": asked.count or 50}, quiet] if asked.verb == "swaps" else [quiet]
            )
    if asked.out is not None:
        asked.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    for each in found.get("phases", []):
        each["memory_mb"] = [each["memory_mb"][0], each["memory_mb"][-1]]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
