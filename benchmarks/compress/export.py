"""What an export costs and brings: accuracy, equal predictions, size and rows a second, in full precision and 8 bits.

A frozen probe on each set becomes an ONNX bundle, measured on the official test rows (hymenoptera: its other folder).
Speed is `inference.outputs` on the same 512 rows, one thread, all three in turn, the median of the turns.

    python benchmarks/compress/export.py --data-root DATA            # appends to export.jsonl
    python benchmarks/compress/export.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
OUT = Path(__file__).resolve().parent / "export.jsonl"
SETS = {"banking77": ("train.csv", "test.csv"), "hymenoptera": ("train", "validation")}
ROWS, TURNS = 512, 7


def measure(root: Path, name: str, gate: str) -> list[dict[str, Any]]:
    """The lines of one set."""
    import headstart as hs
    from headstart import inference
    from headstart.encoded import Encoded

    train, test = (root / name / part for part in SETS[name])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = hs.fit(train, test=test, methods=["freeze:probe"], out=folder / "torch")
        found = {
            "onnx": hs.export(folder / "torch", folder / "onnx", rows=test),
            "int8": hs.export(folder / "torch", folder / "int8", quantize="int8", gate=gate, rows=test),
        }
        made = {"torch": source, **{arm: hs.load(folder / arm) for arm in found}}
        inputs = _inputs(source, test)[:ROWS]
        rows = {arm: Encoded.of(one.modality, one.model.backbone, inputs) for arm, one in made.items()}
        rates: dict[str, list[float]] = {arm: [] for arm in made}
        for turn in range(TURNS + 1):
            for arm, one in made.items():
                started = time.perf_counter()
                inference.outputs(one.model, rows[arm])
                if turn:  # the first turn warms up
                    rates[arm].append(len(inputs) / (time.perf_counter() - started))
        lines = []
        for arm, exported in found.items():
            ratios = [ours / theirs for ours, theirs in zip(rates[arm], rates["torch"], strict=True)]
            told = {key: value for key, value in exported.to_json().items() if key not in ("folder", "data")}
            told |= {"rows_per_second": [round(median(rates[one]), 1) for one in ("torch", arm)]}
            lines.append({"set": name, "arm": arm, **told, "ratios": [round(ratio, 3) for ratio in sorted(ratios)]})
        return lines


def _inputs(source: Any, path: Path) -> list[Any]:
    from headstart import data

    columns = data.Columns.from_json(source.record["columns"])
    part = data.load_labelled(str(path), columns, labels=source.labels, encoding="utf-8")
    inputs = part.inputs()
    step = max(1, len(part) // ROWS)
    return [inputs[i] for i in range(0, len(part), step)]


def table() -> str:
    """The lines as Markdown."""
    rows = ["| set | form | accuracy % before, after | same predictions % | MB before, after | speed | layers kept |"]
    rows.append("| --- " * 7 + "|")
    for text in OUT.read_text(encoding="utf-8").splitlines():
        x = json.loads(text)
        size, ratios = [f"{value / 1e6:.1f}" for value in x["bytes"]], x["ratios"]
        speed = f"{median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        accuracy = f"{100 * x['before']:.2f}, {100 * x['after']:.2f}"
        same, kept = f"{100 * x['agreement']:.1f}", f"{x['kept']} of {x['layers']}"
        rows.append(f"| {x['set']} | {x['arm']} | {accuracy} | {same} | {size[0]}, {size[1]} | {speed} | {kept} |")
    return "\n".join(rows)


def main() -> None:
    """Measure the sets, or print the table."""
    parser = argparse.ArgumentParser(description="what an export costs and brings")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--gate", default="0.5%")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        for name in options.sets:
            for line in measure(options.data_root, name, options.gate):
                with OUT.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    print(table())


if __name__ == "__main__":
    main()
