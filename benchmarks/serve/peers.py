"""The same classifier behind `headstart serve` and behind other servers: rows a second, and how long an answer takes.

    pip install fastapi 'uvicorn[standard]' litserve
    python benchmarks/serve/peers.py make FOLDER --data-root DATA
    python benchmarks/serve/peers.py one FOLDER --data-root DATA       # appends to peers.jsonl
    python benchmarks/serve/peers.py many FOLDER --data-root DATA      # N models: one server, or N plain ones
    python benchmarks/serve/peers.py table

`make` fits MiniLM-L6 to Banking77, writes it again as a transformers folder (see `speed/predict.py`), and exports it
to ONNX, in full precision and in 8 bits. Peers are as their documentation shows (`peer_plain.py`: FastAPI, a plain
`def` endpoint in its threads, `transformers.pipeline`; `peer_lit.py`: LitServe with its batching, at three settings, of
which the best at 32 clients in a short trial is kept), in float32. All servers run at once and are asked in turn, one
text a request, each with one core for its process or processes and one thread a network; the clients have the other.
Every answer of a first pass over 200 texts is compared: labels must be equal, in 8 bits their share is noted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "speed")]
import asking  # noqa: E402

OUT = HERE / "peers.jsonl"
FORMS = {"headstart": "ours", "headstart onnx": "onnx", "headstart int8": "int8"}
CLIENTS = (1, 8, 32)
SETTINGS = ((8, 0.005), (32, 0.005), (32, 0.02))
"""LitServe's max_batch_size and batch_timeout in seconds."""
CHECKED = 200
MODELS = 4


def make(root: Path, folder: Path) -> None:
    import predict

    import headstart as hs

    predict.build(root, folder)
    rows = root / "banking77" / "test.csv"
    hs.export(folder / "ours", folder / "onnx", rows=rows)
    hs.export(folder / "ours", folder / "int8", quantize="int8", gate="2%", rows=rows)


class Server:
    """One that is asked. path: with {} for the model's name. running: its process."""

    def __init__(self, running: asking.Running, path: str) -> None:
        self.running, self.path = running, path

    def asked(self, texts: list[str], seed: int) -> Iterator[asking.Asked]:
        return asking.requests(["model"], texts, seed, self.path)

    def labels(self, texts: list[str]) -> list[str]:
        """The label of each text."""
        found = []
        for text in texts:
            url = f"http://127.0.0.1:{self.running.port}{self.path.format('model')}"
            ask = urllib.request.Request(url, json.dumps([text]).encode(), {"content-type": "application/json"})
            answer = json.load(urllib.request.urlopen(ask))
            (row,) = answer["predictions"] if isinstance(answer, dict) else answer
            found.append(row["prediction"] if "prediction" in row else row["label"])
        return found


@contextmanager
def ours(folder: Path, core: set[int]) -> Iterator[Server]:
    with asking.headstart(str(folder), "--name", "model", cores=core) as running:
        yield Server(running, "/predict/{}")


@contextmanager
def peer(script: str, folder: Path, core: set[int], *options: str) -> Iterator[Server]:
    command = [sys.executable, str(HERE / script), str(folder / "theirs"), *options]
    with asking.started(command, core) as running:
        server = Server(running, "/predict")
        for _ in range(240):  # the port is printed before it can be asked
            with suppress(OSError):
                server.labels(["ready?"])
                break
            time.sleep(0.5)
        yield server


def best(folder: Path, texts: list[str], seconds: float) -> tuple[str, str]:
    """LitServe's setting that answers most rows a second of 32 clients."""
    rates = {}
    for size, wait in SETTINGS:
        with peer("peer_lit.py", folder, {0}, str(size), str(wait)) as server:
            asking.load(server.running.port, server.asked(texts, 0), 8, 2.0)
            rates[size, wait] = asking.measured(server.running, server.asked(texts, 1), 32, seconds)["rows_per_second"]
            print({"litserve": [size, wait], "rows_per_second": rates[size, wait]}, flush=True)
    size, wait = max(rates, key=lambda setting: rates[setting])
    return str(size), str(wait)


def one(
    folder: Path, texts: list[str], seconds: float, rounds: int, first: int = 1, only: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Every server with one model, or only some and the plain one; rounds are counted from `first`."""
    os.sched_setaffinity(0, {1})
    wanted = [*FORMS, "litserve"] if only is None else only
    setting = best(folder, texts, seconds) if "litserve" in wanted else None
    with ExitStack() as stack:
        forms = {name: place for name, place in FORMS.items() if name in wanted}
        servers = {name: stack.enter_context(ours(folder / place, {0})) for name, place in forms.items()}
        servers["plain"] = stack.enter_context(peer("peer_plain.py", folder, {0}))
        if setting is not None:
            servers["litserve"] = stack.enter_context(peer("peer_lit.py", folder, {0}, *setting))
        answers = {name: server.labels(texts[:CHECKED]) for name, server in servers.items()}
        for name, found in answers.items():
            same = sum(a == b for a, b in zip(found, answers["plain"], strict=True)) / CHECKED
            if same < 1 and name != "headstart int8":
                raise SystemExit(f"{name} answers otherwise than the plain server: {same:.3f} of the labels are equal")
            memory = round(servers[name].running.proportional())
            told = setting if name == "litserve" else None
            yield {"what": "start", "server": name, "same": same, "memory_mb": memory, "setting": told}
        for server in servers.values():
            asking.load(server.running.port, server.asked(texts, 0), 8, 2.0)  # the first answers are slow
        for number in range(first, first + rounds):
            for clients in CLIENTS:
                for name, server in servers.items():
                    found = asking.measured(server.running, server.asked(texts, number), clients, seconds)
                    yield {"what": "one", "server": name, "clients": clients, "round": number, **found}


def many(folder: Path, texts: list[str], seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """N models that are asked in turn: in one server of ours, or in a plain server each, on the same core."""
    os.sched_setaffinity(0, {1})
    names = [f"model-{number}" for number in range(MODELS)]
    arguments = [str(folder / "ours")] * MODELS + [part for name in names for part in ("--name", name)]
    with ExitStack() as stack:
        together = stack.enter_context(asking.headstart(*arguments, cores={0}))
        apart = [stack.enter_context(peer("peer_plain.py", folder, {0})).running for _ in names]
        for number in range(rounds + 1):
            for which, servers in (("one server", [together]), (f"{MODELS} plain servers", apart)):
                path = "/predict/{}" if len(servers) == 1 else "/predict"
                asked = asking.requests(names, texts, number, path)
                found = asking.measured_all(servers, asked, 32, seconds)
                memory = round(sum(server.proportional() for server in servers))
                if number:  # the first answers are slow
                    line = {"what": "many", "server": which, "clients": 32, "round": number}
                    yield {**line, **found, "memory_mb": memory}


def table() -> str:
    """The lines as Markdown."""
    lines = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()]
    start = {line["server"]: line for line in lines if line["what"] == "start"}
    rows = []
    for what, title in (("one", "clients"), ("many", "models")):
        mine = [line for line in lines if line["what"] == what]
        if not mine:
            continue
        base = "plain" if what == "one" else next(x["server"] for x in mine if "plain" in x["server"])
        rows += [f"| {title} | server | rows/s | over plain | p50 ms | p99 ms | CPU ms a row | memory, MB |"]
        rows += ["| ---: | --- | ---: | --- | ---: | ---: | ---: | ---: |"]
        for clients, name in dict.fromkeys((line["clients"], line["server"]) for line in mine):
            runs = {x["round"]: x for x in mine if (x["clients"], x["server"]) == (clients, name)}
            plain = {x["round"]: x for x in mine if (x["clients"], x["server"]) == (clients, base)}
            pairs = [(x["rows_per_second"], plain[number]["rows_per_second"]) for number, x in runs.items()]
            over = asking.ratio(pairs) if name != base else ""
            keys = ("rows_per_second", "p50_ms", "p99_ms", "cpu_ms")
            rate, middle, most, cpu = (median(x[key] for x in runs.values()) for key in keys)
            memory = start[name]["memory_mb"] if what == "one" else median(x["memory_mb"] for x in runs.values())
            first = clients if what == "one" else MODELS
            cells = [first, name, f"{rate:.0f}", over, f"{middle:.1f}", f"{most:.1f}", f"{cpu:.2f}", f"{memory:.0f}"]
            rows.append(f"| {' | '.join(map(str, cells))} |")
        rows.append("")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["make", "one", "many", "table"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seconds", type=float, default=5.0, help="of load, for each server and number of clients")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", type=int, default=1, help="number of the first round")
    parser.add_argument("--only", nargs="+", choices=[*FORMS, "litserve"], help="servers beside the plain one")
    asked = parser.parse_args()
    if asked.verb == "make":
        make(asked.data_root, asked.folder)
        return
    if asked.verb != "table":
        texts = [text for (text,) in asking.column(asked.data_root / "banking77" / "test.csv", "text")]
        given = asked.folder, texts, asked.seconds, asked.rounds
        for line in many(*given) if asked.verb == "many" else one(*given, asked.first, asked.only):
            print(json.dumps(line), flush=True)
            with OUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    print(table())


if __name__ == "__main__":
    main()
