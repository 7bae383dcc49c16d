"""Whether probabilities mean what they say, and the one number that makes them.

The reliability diagram and the calibration error use 15 equal-width bins of confidence (Guo et al. 2017, section 2).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from headstart.protocols import Task

RANGE = (0.05, 20.0)
"""Temperatures that are considered."""

STEPS = 60
"""Golden-section steps: the bracket shrinks by 0.618 each, far below what rows can tell."""


def fit_temperature(outputs: Any, targets: Any) -> float:
    """The temperature T that makes softmax(outputs / T) likeliest on held-out rows (Guo et al. 2017, section 4.2).

    outputs: raw (rows,K), a tensor or array. targets: (rows,) class indices, or (rows,K) of 0 and 1, for which
    sigmoid(outputs / T) is fitted. log T has a standard normal prior, the weight of about one row: without it, a
    model that is right on all of a few held-out rows would be declared infinitely sure. 1.0 when there are no rows.
    """
    z, t = _array(outputs).astype(np.float64), _array(targets)
    if len(z) == 0:
        return 1.0

    def cost(log_temperature: float) -> float:
        scaled = z * math.exp(-log_temperature)
        nll = _softmax_nll(scaled, t) if t.ndim == 1 else _sigmoid_nll(scaled, t)
        return nll + log_temperature**2 / 2

    return math.exp(_golden(cost, math.log(RANGE[0]), math.log(RANGE[1])))


def temperature_of(task: Task, outputs: Any, targets: Any) -> Any:
    """What a task's outputs are divided by: `fit_temperature` on held-out rows, 1.0 for regression.

    Of several tasks one number a task, by name, each from its own rows.
    """
    if task.members:
        found = {}
        for member in task.members:
            rows = member.rows(targets)
            found[member.name] = temperature_of(
                member.task, outputs[rows][:, member.columns], member.own(targets[rows])
            )
        return found
    return 1.0 if task.name == "regression" else fit_temperature(outputs, targets)


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The mean gap between confidence and accuracy over 15 equal-width bins; confidence and right are (rows,)."""
    from headstart.tasks import calibration_error

    return calibration_error(reliability(confidence, right))


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """The reliability diagram: per bin its edges, count, mean confidence and accuracy (null for an empty bin)."""
    from headstart import tasks

    return tasks.reliability(np.asarray(confidence), np.asarray(right))


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def _softmax_nll(z: np.ndarray, t: np.ndarray) -> float:
    top = z.max(1)
    return float((np.log(np.exp(z - top[:, None]).sum(1)) + top - z[np.arange(len(z)), t]).sum())


def _sigmoid_nll(z: np.ndarray, t: np.ndarray) -> float:
    return float((np.logaddexp(0, z) - t * z).mean(1).sum())


def _golden(cost: Any, low: float, high: float) -> float:
    """The minimum of a function with a single valley."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = cost(a), cost(b)
    for _ in range(STEPS):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = cost(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = cost(b)
    return (low + high) / 2
