"""How fast a served bundle answers: one client and many, with shared batches and without.

    python benchmarks/serve/load.py runs/tickets src/headstart/examples/support_tickets/test.csv --out serve.json

Starts `headstart serve` for each setting in turn and asks it over connections that stay open, one text a request, each
client sending its next request when it has its answer. Times are those of the client, from the first byte sent to the
last byte received. The settings are run in turn, `--rounds` times, so that what else the machine does hits them alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))
import asking

SETTINGS = {"alone": ("--batch", "1", "--delay", "0"), "batches": ()}
CLIENTS = (1, 8, 32)


def measure(bundle: str, texts: list[str], seconds: float, options: tuple[str, ...]) -> dict[int, dict[str, float]]:
    with asking.headstart(bundle, "--name", "model", *options) as running:
        asking.load(running.port, asking.requests(["model"], texts, 0), 4, 1.0)  # the first answers are slow
        return {
            clients: asking.measured(running, asking.requests(["model"], texts, clients), clients, seconds)
            for clients in CLIENTS
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("rows", type=Path, help="csv with a column 'text'")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load, for each number of clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    texts = [text for (text,) in asking.column(asked.rows, "text")]
    rounds: dict[str, list[dict[int, dict[str, float]]]] = {name: [] for name in SETTINGS}
    for _ in range(asked.rounds):
        for name, options in SETTINGS.items():
            rounds[name].append(measure(asked.bundle, texts, asked.seconds, options))
    print("| clients | batches | requests/s | p50 ms | p99 ms |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for clients in CLIENTS:
        for name, runs in rounds.items():
            middle = {key: median(run[clients][key] for run in runs) for key in ("rows_per_second", "p50_ms", "p99_ms")}
            rate, middle_ms, most_ms = middle.values()
            print(f"| {clients} | {name} | {rate:.0f} | {middle_ms:.1f} | {most_ms:.1f} |")
    if asked.out is not None:
        asked.out.write_text(json.dumps(rounds, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
