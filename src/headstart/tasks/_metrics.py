"""Metrics as functions of sums over rows, so that one definition serves the value and every resample of it.

Shapes: rows = R, resamples = B, K labels, and 15 bins of confidence. `counts` (B,R) says how often a resample holds
each row; one row of ones is the data themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headstart.values import Weighted

BINS = 15
"""Equal-width bins of confidence for the calibration error, as in Guo et al. 2017 (section 2)."""

SMALLEST = float(np.finfo(np.float32).eps)
"""Probabilities are clipped to this before a logarithm, which bounds what one row can cost."""

LISTED_CONFUSIONS = 20


def evaluate(groups: Sequence[Weighted], rows: int) -> dict[str, float]:
    """Every metric on the rows themselves."""
    once = np.ones((1, rows), dtype=np.float32)
    return {name: float(values[0]) for group in groups for name, values in group.compute(once).items()}


def f1_of(hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> dict[str, np.ndarray]:
    """`macro_f1` and `micro_f1`, each (B,), from (B,K) sums.

    The macro mean runs over the labels that occur in truth or prediction, as in scikit-learn.
    """
    both = predicted + actual
    f1 = 2 * hits / np.where(both > 0, both, 1.0)
    seen = (both > 0).sum(1)
    micro = 2 * hits.sum(1) / np.maximum(both.sum(1), 1.0)
    macro = np.where(seen > 0, f1.sum(1) / np.maximum(seen, 1), np.nan)
    return {"macro_f1": macro, "micro_f1": np.where(both.sum(1) > 0, micro, np.nan)}


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """The bin (low, high] of each confidence in [0, 1], an int64 of the same shape."""
    found: np.ndarray = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return found


def gaps(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Columns (R,15) whose sums' absolute values make the calibration error; confidence and right are (R,) or (R,K)."""
    rows = np.broadcast_to(np.arange(len(confidence)).reshape(-1, *[1] * (confidence.ndim - 1)), confidence.shape)
    found = np.zeros((len(confidence), BINS))
    np.add.at(found, (rows, bin_of(confidence)), right - confidence)
    return found


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """One record a bin: its edges, how many answers fell in it, their mean confidence and how many were right."""
    confidence, right = confidence.ravel().astype(np.float64), right.ravel().astype(np.float64)
    places = bin_of(confidence)
    count = np.bincount(places, minlength=BINS)
    mean = np.bincount(places, confidence, BINS) / np.maximum(count, 1)
    share = np.bincount(places, right, BINS) / np.maximum(count, 1)
    return [
        {
            "low": k / BINS,
            "high": (k + 1) / BINS,
            "count": int(count[k]),
            "confidence": float(mean[k]) if count[k] else None,
            "accuracy": float(share[k]) if count[k] else None,
        }
        for k in range(BINS)
    ]


def calibration_error(bins: Sequence[Mapping[str, Any]]) -> float:
    """The expected calibration error of `reliability`'s records: the mean gap between confidence and accuracy."""
    total = sum(b["count"] for b in bins)
    gap = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins if b["count"])
    return gap / total if total else float("nan")


def per_class(
    labels: Sequence[str], hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray
) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each label from (K,) sums; null where there is nothing to divide by."""

    def share(part: float, whole: float) -> float | None:
        return float(part / whole) if whole else None

    return [
        {
            "label": label,
            "precision": share(hits[k], predicted[k]),
            "recall": share(hits[k], actual[k]),
            "f1": share(2 * hits[k], predicted[k] + actual[k]),
            "support": int(actual[k]),
        }
        for k, label in enumerate(labels)
    ]


def confusion(labels: Sequence[str], truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """`counts[i][j]`: rows of label i answered j. `top`: the commonest mistakes, most rows first."""
    size = len(labels)
    counts = np.bincount(truth * size + predicted, minlength=size * size).reshape(size, size)
    wrong = counts * (1 - np.eye(size, dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED_CONFUSIONS]
    top = [
        {
            "truth": labels[i],
            "prediction": labels[j],
            "count": int(wrong[i, j]),
            "share": float(wrong[i, j] / counts[i].sum()),
        }
        for i, j in (divmod(int(place), size) for place in order)
        if wrong[i, j]
    ]
    return {"counts": counts.tolist(), "top": top}
