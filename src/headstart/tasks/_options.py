"""Options that tasks share, labels as text, and the wording of what goes wrong with them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from headstart.errors import DataError, SpecError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

LOWER_IS_BETTER = ("log_loss", "ece", "hamming_loss", "rmse", "mae")
SHOWN = 5
"""Unknown labels that an error lists."""


WEIGHTS = ("none", "balanced", "effective")


@dataclass(frozen=True)
class LossOptions:
    """How the loss of a classifier differs from cross-entropy.

    class_weights and logit_adjustment are not combined: each makes up for rare classes by itself, and of all weights
    with tau = 1 only even ones stay consistent with the balanced error (Menon et al. 2021, theorem 1).
    """

    class_weights: str = "none"
    effective_beta: float = 0.999
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    logit_adjustment: float = 0.0
    gce_q: float = 0.0

    def __post_init__(self) -> None:
        if self.class_weights not in WEIGHTS:
            known = ", ".join(f"'{name}'" for name in WEIGHTS)
            raise SpecError(f"task.class_weights: expected one of {known}, received {self.class_weights!r}")
        for key in ("effective_beta", "label_smoothing"):
            value = getattr(self, key)
            if not (_number(value) and 0 <= value < 1):
                raise SpecError(f"task.{key}: expected a number in [0, 1), received {value!r}")
        for key in ("focal_gamma", "logit_adjustment"):
            value = getattr(self, key)
            if not (_number(value) and value >= 0):
                raise SpecError(f"task.{key}: expected a number of 0 or more, received {value!r}")
        if not (_number(self.gce_q) and 0 <= self.gce_q <= 1):
            raise SpecError(f"task.gce_q: expected a number in [0, 1], received {self.gce_q!r}")
        self._check_together()

    def _check_together(self) -> None:
        if self.gce_q and self.focal_gamma:
            raise SpecError(
                "task.gce_q and task.focal_gamma contradict each other: the first learns less from rows that fit "
                "badly, the second more; keep one of them"
            )
        if self.logit_adjustment and self.class_weights != "none":
            raise SpecError(
                f"task.logit_adjustment and task.class_weights={self.class_weights} both make up for rare classes, and "
                f"together they do it twice; keep one of them"
            )
        if self.effective_beta != LossOptions.effective_beta and self.class_weights != "effective":
            raise SpecError("task.effective_beta belongs to task.class_weights=effective: set that too, or neither")

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> LossOptions:
        """From a task's JSON; what an older one does not say is off."""
        return cls(**{item.name: record[item.name] for item in fields(cls) if item.name in record})

    def cost(self, logs: Tensor) -> Tensor:
        """What a probability costs where it should be 1, from its logarithm: -log p, or (1 - p^q) / q."""
        return -(self.gce_q * logs).expm1() / self.gce_q if self.gce_q else -logs


def effective_number(count: float, beta: float) -> float:
    """(1 - beta^n) / (1 - beta): rows that overlap count for less and less (Cui et al. 2019, section 3)."""
    return float((1 - beta**count) / (1 - beta))


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
