"""SetFit on the few-shot draws: one JSON line per set and draw.

SetFit lives in its own environment (``pip install setfit``). Settings are those of the
SetFit paper (Tunstall et al. 2022) and the library's defaults: one epoch over pairs made
with 20 iterations, batch 16, body learning rate 2e-5, logistic regression head.

    python benchmarks/few_shot/setfit_peer.py --backbone PATH_TO_SENTENCE_ENCODER \
        --set sst5 --draws 10 --out benchmarks/few_shot/setfit.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import pandas as pd
from draws import draw

SETS = ("tweeteval_emotion", "sst5", "ag_news")
TEST_ROWS = {"ag_news": 2000}  # the first rows of the official test file


def run(root: Path, name: str, backbone: str, per_class: int, seed: int) -> dict:
    import setfit
    import torch
    from datasets import Dataset
    from sklearn.metrics import accuracy_score, f1_score

    torch.set_num_threads(1)
    train = draw(pd.read_csv(root / name / "train.csv"), per_class, seed)
    test = pd.read_csv(root / name / "test.csv").head(TEST_ROWS.get(name))
    classes = sorted(train["label"].unique())
    code = {label: i for i, label in enumerate(classes)}
    rows = Dataset.from_dict({"text": train["text"].tolist(), "label": [code[x] for x in train["label"]]})

    began, began_cpu = time.perf_counter(), time.process_time()
    model = setfit.SetFitModel.from_pretrained(backbone, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        arguments = setfit.TrainingArguments(
            output_dir=folder,
            batch_size=16,
            num_epochs=1,
            num_iterations=20,
            seed=seed,
            report_to="none",
            save_strategy="no",
            eval_strategy="no",
            show_progress_bar=False,
        )
        setfit.Trainer(model=model, args=arguments, train_dataset=rows).train()
    fitted, fitted_cpu = time.perf_counter(), time.process_time()
    found = [classes[int(i)] for i in model.predict(test["text"].tolist())]
    done = time.perf_counter()

    line = {
        "method": "setfit",
        "setfit": setfit.__version__,
        "set": name,
        "per_class": per_class,
        "draw": seed,
        "test_rows": len(test),
        "accuracy": round(float(accuracy_score(test["label"], found)), 5),
        "fit_seconds": round(fitted - began, 1),
        "fit_cpu_seconds": round(fitted_cpu - began_cpu, 1),
        "predict_seconds": round(done - fitted, 1),
    }
    if name == "tweeteval_emotion":
        line["macro_f1"] = round(float(f1_score(test["label"], found, average="macro")), 5)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--backbone", required=True, help="folder of the sentence encoder")
    parser.add_argument("--set", nargs="+", choices=SETS, default=list(SETS), dest="sets")
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--first-draw", type=int, default=0)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/few_shot/setfit.jsonl"))
    options = parser.parse_args()

    done = set()
    if options.out.exists():  # a run that was cut short goes on where it stopped
        for text in options.out.read_text().splitlines():
            line = json.loads(text)
            done.add((line["set"], line["per_class"], line["draw"]))

    # One draw of every set before the next draw, so that a run cut short stays balanced.
    for seed in range(options.first_draw, options.first_draw + options.draws):
        for name in options.sets:
            if (name, options.per_class, seed) in done:
                continue
            line = run(options.data_root, name, options.backbone, options.per_class, seed)
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
