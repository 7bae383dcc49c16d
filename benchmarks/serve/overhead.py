"""What a server costs beside the network that it runs: the same batches answered with HTTP around them and without.

    python benchmarks/serve/overhead.py FOLDER --data-root DATA          # appends to overhead.jsonl
    python benchmarks/serve/overhead.py --table

FOLDER is what `peers.py make` wrote: one classifier of Banking77 as `ours` (torch), `onnx` and `int8`. Each is served
by `headstart serve` in a process that also notes the batches which the network got. A second process asks, one text of
Banking77 a request; then the first runs the same batches again, ready as tensors, in a loop and without a server. Both
in turn, `--rounds` times. With one client it is the middle request that counts, with 32 the rows a second.

`cores` says what the server had: `one`, a core of its own, so that all that it does adds up, with the clients on the
other; or `two`, shared with the clients. The network has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import asking  # noqa: E402

OUT = HERE / "overhead.jsonl"
FORMS = {"torch": "ours", "onnx": "onnx", "int8": "int8"}
CORES = {"one": {0}, "two": {0, 1}}
CLIENTS = (1, 32)


def host(folder: str) -> None:
    """The server's process: serves, and at each line on standard input runs again what the network got meanwhile."""
    import torch

    import headstart as hs
    from headstart.serve.lane import Lane, batch_of, joined
    from headstart.serve.run import Place, serve

    model = hs.load(folder).model  # first, since lazy imports do not like two threads
    noted: list[list[Any]] = []
    run = Lane._together

    def noting(self: Any, rows: Any) -> Any:
        noted.append([inputs for _, inputs in rows])
        return run(self, rows)

    setattr(Lane, "_together", noting)  # noqa: B010
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    serving = threading.Thread(
        target=serve, args=([Path(folder)],), daemon=True,
        kwargs={"names": ["model"], "place": Place(port=0), "say": lambda line: print(line, flush=True)},
    )  # fmt: skip
    serving.start()
    for _ in sys.stdin:
        batches = [batch_of(joined(rows, {})) for rows in noted]
        noted.clear()
        times = []
        cpu = time.process_time()
        with torch.inference_mode():
            for batch in batches:
                start = time.perf_counter()
                model(batch)
                times.append(time.perf_counter() - start)
        rows = sum(map(len, batches))
        print(json.dumps({
            "rows": rows, "batches": len(batches), "rows_per_second": round(rows / sum(times), 2),
            "cpu_ms": round(1000 * (time.process_time() - cpu) / rows, 3), "p50_ms": round(1000 * median(times), 3),
        }), flush=True)  # fmt: skip


def again(running: asking.Running) -> dict[str, Any]:
    """The network alone on the batches that it got since this was asked last."""
    process = running.process
    assert process.stdin is not None and process.stdout is not None
    print(file=process.stdin, flush=True)
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def measure(
    folder: Path, texts: list[str], forms: list[str], cores: str, seconds: float, rounds: int
) -> Iterator[dict[str, Any]]:
    os.sched_setaffinity(0, {1} if cores == "one" else CORES[cores])
    with ExitStack() as stack:
        servers = {}
        for form in forms:
            command = [sys.executable, str(HERE / "overhead.py"), "--host", str(folder / FORMS[form])]
            servers[form] = stack.enter_context(asking.started(command, CORES[cores]))
            asking.load(servers[form].port, asking.requests(["model"], texts, 0), 4, 2.0)  # the first are slow
            again(servers[form])
        for number in range(1, rounds + 1):
            for clients in CLIENTS:
                for form, running in servers.items():
                    asked = asking.requests(["model"], texts, number)
                    server = asking.measured(running, asked, clients, seconds)
                    line = {"form": form, "cores": cores, "clients": clients, "round": number, "server": server}
                    yield {**line, "network": again(running)}


def table(out: Path) -> str:
    """The lines as Markdown."""
    lines = [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]
    rows = [
        "| form | cores | clients | rows a batch | rows/s, network | server | kept | p50 ms, network | server | added |"
    ]
    rows.append("| --- | --- " + "| ---: " * 8 + "|")
    for key in dict.fromkeys((line["form"], line["cores"], line["clients"]) for line in lines):
        mine = [line for line in lines if (line["form"], line["cores"], line["clients"]) == key]

        def middle(side: str, what: str, mine: list[Any] = mine) -> float:
            return median(line[side][what] for line in mine)

        size = sum(line["network"]["rows"] for line in mine) / sum(line["network"]["batches"] for line in mine)
        kept = asking.ratio([(x["server"]["rows_per_second"], x["network"]["rows_per_second"]) for x in mine])
        added = sorted(x["server"]["p50_ms"] - x["network"]["p50_ms"] for x in mine)
        told = f"{median(added):.2f} ({added[0]:.2f} to {added[-1]:.2f})"
        latency = [f"{middle('network', 'p50_ms'):.2f}", f"{middle('server', 'p50_ms'):.2f}", told]
        rates = [f"{middle(side, 'rows_per_second'):.0f}" for side in ("network", "server")]
        cells = [*map(str, key), f"{size:.1f}", *rates, kept, *(latency if key[2] == 1 else ["", "", ""])]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--forms", choices=list(FORMS), nargs="+", default=list(FORMS))
    parser.add_argument("--cores", choices=list(CORES), nargs="+", default=list(CORES))
    parser.add_argument("--seconds", type=float, default=5.0, help="of load, for each number of clients and form")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.host:
        host(asked.host)
        return
    if not asked.table:
        texts = [text for (text,) in asking.column(asked.data_root / "banking77" / "test.csv", "text")]
        for cores in asked.cores:
            for line in measure(asked.folder, texts, asked.forms, cores, asked.seconds, asked.rounds):
                with asked.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    print(table(asked.out))


if __name__ == "__main__":
    main()
