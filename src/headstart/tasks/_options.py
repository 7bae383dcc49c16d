"""Options that tasks share, labels as text, and the wording of what goes wrong with them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headstart.errors import DataError, SpecError, did_you_mean

LOWER_IS_BETTER = ("log_loss", "ece", "hamming_loss", "rmse", "mae")
SHOWN = 5
"""Unknown labels that an error lists."""


@dataclass(frozen=True)
class LossOptions:
    """How the loss of a classifier differs from cross-entropy."""

    class_weights: str = "none"
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.class_weights not in ("none", "balanced"):
            raise SpecError(f"task.class_weights: expected 'none' or 'balanced', received {self.class_weights!r}")
        if not (_number(self.label_smoothing) and 0 <= self.label_smoothing < 1):
            raise SpecError(f"task.label_smoothing: expected a number in [0, 1), received {self.label_smoothing!r}")
        if not (_number(self.focal_gamma) and self.focal_gamma >= 0):
            raise SpecError(f"task.focal_gamma: expected a number of 0 or more, received {self.focal_gamma!r}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_options(task: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` with the user's options over them. Raises SpecError for an option that the task does not have."""
    for key in options:
        if key not in defaults:
            raise SpecError(f"task '{task}' has no option '{key}': {did_you_mean(key, defaults)}")
    return {**defaults, **options}


def check_metric(metric: str, known: Sequence[str], task: str) -> bool:
    """Whether greater values of `metric` are better. Raises SpecError when the task does not measure it."""
    if metric not in known:
        raise SpecError(f"task '{task}' does not measure '{metric}': {did_you_mean(metric, known)}")
    return not metric.startswith(LOWER_IS_BETTER)


def label_text(value: Any, row: int) -> str:
    """A label as text: 3.0 and 3 are the same label. Raises DataError for an empty one."""
    if hasattr(value, "item") and not isinstance(value, str | bytes) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            value = None
        elif value.is_integer():
            value = int(value)
    text = "" if value is None else str(value)
    if not text.strip():
        raise DataError(f"row {row} has no label: give it one, or leave bad rows out with --on-bad-row skip")
    return text


def ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels in a fixed order: whole numbers by value, everything else by text."""
    found = set(labels)
    whole = all(re.fullmatch(r"[+-]?[0-9]+", label) for label in found)
    return tuple(sorted(found, key=(lambda x: (int(x), x)) if whole else (lambda x: (0, x))))


def refuse_unknown(unknown: Mapping[str, int], known: Sequence[str]) -> None:
    """Raise DataError that lists the unknown labels (label -> first row) with the nearest known ones."""
    if not unknown:
        return
    lines = [f"'{label}' (row {row}; {_nearest(label, known)})" for label, row in list(unknown.items())[:SHOWN]]
    more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    raise DataError(
        f"expected the {len(known)} labels of the training rows, received {len(unknown)} unknown: "
        f"{', '.join(lines)}{more}; correct these rows, or add rows with these labels to the training file"
    )


def _nearest(label: str, known: Sequence[str]) -> str:
    phrase = did_you_mean(label, known)
    if phrase.startswith("known: ") and len(known) > 2 * SHOWN:
        return f"known: {', '.join(known[:SHOWN])}, ..."
    return phrase
