"""What each method brings over plain fine-tuning, by theme: `headstart compare` on real sets, paired by row and seed.

    python benchmarks/methods/themes.py who stay regularise --seeds 5 --work FOLDER
    python benchmarks/methods/themes.py who stay regularise --table

Fits that the work folder holds already are not repeated. The comparisons go to `benchmarks/methods/themes/` as JSON.
Plain fine-tuning (`finetune`) starts from the probe's head, as every arm here does.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path

import torch

from headstart.comparison import compare, lines

HERE = Path(__file__).resolve().parent
TEST_ROWS = 400
"""Rows measured on, the first of the official test rows, or the first of each class: time on a processor."""

ARMS = {
    "who": (
        "probe", "freeze:bitfit", "freeze:norms", "freeze:top=1", "freeze:decay=0.85", "freeze:gradual", "surgical",
        "lora", "lora:dora=true", "lora:rslora=true", "ia3", "prompt", "prompt:deep=true", "adapter",
        "adapter:parallel=true",
    ),
    "stay": ("l2sp", "delta", "bss", "mixout", "lwf", "stochnorm"),
    "regularise": ("rdrop", "dropout", "depth", "sam", "ema", "swa", "soup"),
}  # fmt: skip
NOT_FOR = {"text": {"stochnorm"}, "image": {"prompt", "prompt:deep=true", "rdrop"}}
"""Methods that do not apply here: MiniLM has no BatchNorm, EfficientNet-lite0 neither tokens nor dropout."""

SETS = {
    ("tweeteval_emotion", 8): {"training__epochs": 15},
    ("tweeteval_emotion", 50): {"training__epochs": 4},
    ("cifar10_subset", 25): {"training__epochs": 4, "backbone__image_size": 64},
    ("cifar10_subset", 100): {"training__epochs": 4, "backbone__image_size": 64},
}
"""(set, rows a class) -> what differs from the defaults. Few epochs, the same for all arms of a set: time again."""


def files(root: Path, name: str, work: Path) -> tuple[Path, Path]:
    """The training rows and the first test rows of a set."""
    work.mkdir(parents=True, exist_ok=True)
    cut = work / f"{name}-test.csv"
    if (root / name / "train.csv").exists():
        with (root / name / "test.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[: TEST_ROWS + 1]
    else:
        folders = sorted(path for path in (root / name / "test").iterdir() if path.is_dir())
        each = TEST_ROWS // len(folders)
        rows = [["image", "label"]]
        rows += [[str(p.resolve()), folder.name] for folder in folders for p in sorted(folder.iterdir())[:each]]
    with cut.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    train = root / name / "train.csv"
    return (train if train.exists() else root / name / "train"), cut


def table(theme: str) -> str:
    """Arms in rows, sets in columns: accuracy %, and the difference to `finetune` in points with p."""
    columns, lines = [], {arm: "" for arm in ("finetune", *ARMS[theme])}
    for name, per_class in SETS:
        path = HERE / "themes" / f"{theme}-{name}-{per_class}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        own = {each["arm"]: each for each in found["summary"]}
        against = {each["against"]: each for each in found["transfer"]}
        columns.append(f"{name}, {per_class} a class, {own['finetune']['seeds']} seeds | to `finetune` | CPU s")
        for arm in lines:
            cells = " | | |"
            if arm in own:
                cells = f" {100 * own[arm]['mean']:.1f} ± {100 * own[arm]['sd']:.1f} |"
                # The record says by how much `finetune` is better.
                cells += f" {-100 * against[arm]['value']:+.1f}, {against[arm]['p']:.2g} |" if arm in against else " |"
                cells += f" {own[arm]['cpu_seconds']:.0f} |"
            lines[arm] += cells
    head = f"| {theme} | {' | '.join(columns)} |\n{'| --- ' * (1 + 3 * len(columns))}|\n"
    return head + "\n".join(f"| `{arm}` |{cells}" for arm, cells in lines.items())


def main() -> None:
    """Run the themes that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("themes", nargs="+", choices=list(ARMS))
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=sorted({name for name, _ in SETS}), help="all where left out")
    parser.add_argument("--sizes", nargs="+", type=int, help="rows a class; all of the sets where left out")
    parser.add_argument("--work", type=Path, help="keeps finished fits")
    parser.add_argument("--table", action="store_true", help="print what was found and stop")
    options = parser.parse_args()
    if options.table:
        print("\n\n".join(table(theme) for theme in options.themes))
        return
    if options.work is None:
        parser.error("--work is needed: a folder that keeps finished fits")
    torch.set_num_threads(1)
    for theme in options.themes:
        for (name, per_class), changes in SETS.items():
            if (options.sets and name not in options.sets) or (options.sizes and per_class not in options.sizes):
                continue
            kind = "text" if "backbone__image_size" not in changes else "image"
            train, test = files(options.data_root, name, options.work)
            arms = [arm for arm in ARMS[theme] if arm not in NOT_FOR[kind]]
            found = compare(
                str(train), against=arms, baseline="finetune", labels=(str(per_class),), seeds=options.seeds,
                data__test=str(test), out=options.work / f"{name}-{per_class}", resume=True, **changes,
            )  # fmt: skip
            print(f"== {theme}, {name}, {per_class} rows a class", *lines(found), sep="\n", flush=True)
            record = found.to_json()
            out = HERE / "themes" / f"{theme}-{name}-{per_class}.json"
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
