"""A server that follows a registry: killed while champions change, and how soon it serves a new one.

    python benchmarks/serve/follow.py kills FIRST SECOND --rows ROWS --out benchmarks/serve/follow_kills.json
    python benchmarks/serve/follow.py takeover FIRST SECOND --rows ROWS --out benchmarks/serve/takeover.json

FIRST and SECOND are bundles of Banking77, ROWS a few labelled rows of it that `promote` measures on. Both bundles are
registered as versions 1 and 2 of two models. Eight clients ask both models, one text a request. An answer says which
version gave it: its label must be the one that this version's bundle, loaded by itself, gives to the text.

`kills`: champions are promoted and rolled back without a pause while `serve --registry` answers, or while it starts; it
gets SIGKILL at a random moment, in turn up to 6 seconds after the first answers and up to 18 after its launch (a start
takes long beside all that). Then the registry is checked (every version that is listed proves itself, every champion is
one of them, no folder is over) and a new server is started, which must have every model ready and answer by its
champion; 20 times. `takeover`: seconds from the end of `promote` to the first answer by the new version, 10 times with
each pause between two looks; what failed meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import asking

import headstart as hs
from headstart.registry.place import Registry

CLIENTS = 8
TEXTS = 40
MODELS = ("cards", "transfers")
POLL = 0.2
PAUSES = (5.0, 0.5)
TURNS = 10


@dataclass
class World:
    """The registry and what is right: (version, text) -> label, with versions as the server calls them."""

    registry: Path
    rows: Path
    texts: list[str]
    right: dict[tuple[str, str], str] = field(default_factory=dict)
    called: dict[int, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, bundles: list[Path], rows: Path, texts: list[str]) -> World:
        """Register both bundles under each name, the first as the champion."""
        world = cls(folder / "registry", rows, texts)
        for number, bundle in enumerate(bundles, 1):
            for name in MODELS:
                version = hs.register(
                    bundle, name, alias="champion" if number == 1 else None, registry=world.registry
                )  # fmt: skip
            world.called[number] = version.bundle[:12]
            for text, label in zip(texts, hs.load(bundle, report=False).predict(texts), strict=True):
                world.right[version.bundle[:12], text] = str(label)
        return world

    def turn(self, name: str) -> int:
        """Make the other version the champion, by `promote` or `rollback`; its number."""
        now = Registry(self.registry).champions()[name]
        if now == 2:
            return hs.rollback(name, registry=self.registry).version
        return hs.promote(name, 2, registry=self.registry, test=self.rows, force="for the benchmark").version

    def check(self) -> None:
        """Nothing that is listed is lost, and nothing lies around."""
        there = Registry(self.registry)
        versions = there.versions()
        assert {(each.name, each.version) for each in versions} == {(name, n) for name in MODELS for n in (1, 2)}
        for each in versions:
            hs.load(there.fetch(each), report=False)
        assert there.champions().keys() == set(MODELS)
        for name in MODELS:
            listed = {Path(each.place).name for each in versions if each.name == name}
            assert listed == {path.name for path in (self.registry / "models" / name).iterdir()}


@dataclass
class Seen:
    """What the clients saw. last: of each model the version of its last answer and when it came."""

    world: World
    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    last: dict[str, str] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    wrong: int = 0
    broken: int = 0

    async def one(self, line: tuple[asyncio.StreamReader, asyncio.StreamWriter], name: str, text: str) -> None:
        """Ask one model one text."""
        start = time.perf_counter()
        status, answer = await asking.send(*line, f"/predict/{name}", json.dumps([text]).encode())
        self.times.append(time.perf_counter() - start)
        self.statuses[status] += 1
        if status == 200:
            found = json.loads(answer)
            self.last[name] = found["version"]
            self.versions[found["version"]] += 1
            self.wrong += self.world.right[found["version"], text] != found["predictions"][0]["prediction"]

    async def client(self, port: int, seed: int, over: threading.Event) -> None:
        """Ask until it is over or the server is gone."""
        draws = random.Random(seed)
        try:
            line = await asyncio.open_connection("127.0.0.1", port)
            while not over.is_set():
                await self.one(line, draws.choice(MODELS), draws.choice(self.world.texts))
            line[1].close()
        except (OSError, EOFError):
            self.broken += 1

    def told(self) -> dict[str, Any]:
        """For the file of figures."""
        return {
            "statuses": dict(self.statuses), "wrong": self.wrong, "connections_broken": self.broken,
            "versions": dict(self.versions),
        }  # fmt: skip


@contextmanager
def clients(seen: Seen, port: int) -> Iterator[None]:
    """Eight clients in a thread of their own, until the block is left or the server is gone."""
    over = threading.Event()

    async def all_of_them() -> None:
        await asyncio.gather(*(seen.client(port, seed, over) for seed in range(CLIENTS)))

    thread = threading.Thread(target=asyncio.run, args=(all_of_them(),))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def turning(world: World) -> Iterator[list[int]]:
    """Champions turn one after another until the block is left. Yields what grows by one number a turn."""
    over, turns = threading.Event(), []

    def keep_turning() -> None:
        while not over.is_set():
            turns.append(world.turn(MODELS[len(turns) % 2]))

    thread = threading.Thread(target=keep_turning)
    thread.start()
    try:
        yield turns
    finally:
        over.set()
        thread.join()


def kill_at_start(world: World, seen: Seen, moment: float) -> bool:
    """Launch a server and kill it so many seconds later; whether it answered before."""
    command = [sys.executable, "-m", "headstart", "serve", *follow(world, POLL), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    killing = threading.Timer(moment, process.kill)
    killing.start()
    assert process.stdout is not None
    line = process.stdout.readline()  # empty where it is killed before
    if line:
        with clients(seen, int(line.rsplit(":", 1)[1])):
            process.wait()
    killing.join()
    process.wait()
    return bool(line)


def follow(world: World, pause: float) -> tuple[str, ...]:
    """What the server is told."""
    return ("--registry", str(world.registry), "--poll", str(pause))


def kills(world: World, count: int) -> dict[str, Any]:
    """Start, ask, kill, check; and once more."""
    seen, after, draws = Seen(world), Seen(world), random.Random(0)
    starts: list[float] = []
    rounds: list[dict[str, Any]] = []
    for number in range(count + 1):
        start = time.perf_counter()
        with asking.headstart(*follow(world, POLL)) as running:
            starts.append(round(time.perf_counter() - start, 1))
            champions = Registry(world.registry).champions()
            asyncio.run(every_text(after, running.port))
            assert after.last == {name: world.called[version] for name, version in champions.items()}, champions
            if number == count:
                break
            moment, early, ready = draws.uniform(0, 18 if number % 2 else 6), bool(number % 2), True
            if not early:
                with turning(world) as turns, clients(seen, running.port):
                    time.sleep(moment)
                    running.process.kill()
                    running.process.wait()
        if early:
            with turning(world) as turns:
                ready = kill_at_start(world, seen, moment)
        world.check()
        rounds.append({"after_launch": early, "moment": round(moment, 2), "was_ready": ready, "turns": len(turns)})
        print(number, rounds[-1], seen.told(), flush=True)
    return {
        "kills": count, "rounds": rounds, "load": seen.told(), "after_starts": after.told(), "start_seconds": starts,
        "killed_before_ready": sum(not each["was_ready"] for each in rounds),
        "turns": sum(each["turns"] for each in rounds),
    }  # fmt: skip


async def every_text(seen: Seen, port: int) -> None:
    """Ask every model every text, after it has said that all are ready."""
    line = await asyncio.open_connection("127.0.0.1", port)
    status, answer = await asking.send(*line, "/v2/repository/index", b"")
    assert status == 200 and {each["name"]: each["state"] for each in json.loads(answer)} == dict.fromkeys(
        MODELS, "READY"
    ), answer
    for name in MODELS:
        for text in seen.world.texts:
            await seen.one(line, name, text)
    line[1].close()


def takeover(world: World, pause: float) -> dict[str, Any]:
    """Seconds from the end of `promote` or `rollback` to the first answer by the version that it made champion."""
    seen, draws, took, name = Seen(world), random.Random(0), [], MODELS[0]
    with asking.headstart(*follow(world, pause)) as running, clients(seen, running.port):
        while len(seen.last) < len(MODELS):
            time.sleep(0.01)
        while len(took) < TURNS:
            time.sleep(draws.uniform(0, pause))
            promoting = Registry(world.registry).champions()[name] == 1
            version = world.called[world.turn(name)]
            start = time.perf_counter()
            while seen.last[name] != version:
                time.sleep(0.002)
            if promoting:
                took.append(round(time.perf_counter() - start, 2))
    times = sorted(seen.times)
    return {
        "poll": pause, "seconds": took, "median": round(median(took), 2), "most": max(took), **seen.told(),
        "p50_ms": round(1000 * median(times), 1), "p99_ms": round(1000 * times[int(0.99 * (len(times) - 1))], 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["kills", "takeover"])
    parser.add_argument("bundles", nargs=2, type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--count", type=int, default=20, help="of kills")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    texts = [text for (text,) in asking.column(asked.data_root / "banking77" / "test.csv", "text")][:: 3080 // TEXTS]
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder), asked.bundles, asked.rows, texts)
        if asked.verb == "kills":
            found: Any = kills(world, asked.count)
        else:
            found = [takeover(world, pause) for pause in PAUSES]
    if asked.out is not None:
        asked.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
