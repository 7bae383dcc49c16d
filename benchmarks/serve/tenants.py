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
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import asking

CLIENTS = 32


def make(folder: Path, rows: Path, count: int) -> None:
    import torch

    import headstart as hs
    from headstart import bundle as bundles

    texts, labels = zip(*asking.column(rows, "text", "intent")[:120], strict=True)
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


def ask(running: asking.Running, names: list[str], texts: list[str], seconds: float, seed: int) -> dict[str, float]:
    """Rows a second and CPU seconds for 1,000 rows, of `CLIENTS` clients; each request draws its tenant."""
    found = asking.measured(running, asking.requests(names, texts, seed), CLIENTS, seconds)
    return {
        "rows_per_second": found["rows_per_second"],
        "cpu_seconds_per_1000": found["cpu_ms"],
        "p50_ms": found["p50_ms"],
    }


def measure(folder: Path, rows: Path, seconds: float, rounds: int) -> dict[str, Any]:
    texts = [text for (text,) in asking.column(rows, "text")]
    folders = sorted(folder.glob("tenant-*"))
    found: dict[str, Any] = {
        "tenants": len(folders),
        "clients": CLIENTS,
        "seconds": seconds,
        "memory": {},
        "rounds": [],
    }
    names = {"one": [folders[0].name], "many": [each.name for each in folders]}
    with asking.headstart(str(folders[0])) as one, asking.headstart(*map(str, folders)) as many:
        for name, running in (("one", one), ("many", many)):
            found["memory"][name] = {"loaded": running.memory()}
            ask(running, names[name], texts, seconds, 0)  # the first answers are slow, and fill what is filled once
            found["memory"][name]["asked"] = running.memory()
        for number in range(rounds):
            pair = {}
            order = (("one", one), ("many", many))
            for name, running in order if number % 2 else reversed(order):
                pair[name] = ask(running, names[name], texts, seconds, number)
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
        found_ratio = asking.ratio([(each["many"][key], each["one"][key]) for each in rounds])
        print(f"{what}, many over one: {found_ratio} over {len(rounds)} rounds")
    for when in ("loaded", "end"):
        ratio = memory["many"][when]["VmRSS"] / memory["one"][when]["VmRSS"]
        print(f"RSS {when}, many over one: {ratio:.2f}")


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
