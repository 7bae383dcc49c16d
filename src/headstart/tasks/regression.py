"""Numbers instead of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from headstart.errors import DataError, SpecError
from headstart.protocols import Task
from headstart.tasks import _metrics
from headstart.tasks._options import LossOptions, check_metric, read_options
from headstart.tasks._ranking import Ranking, mean_defined, rank_correlation
from headstart.values import Decoded, Weighted

METRICS = ("rmse", "mae", "r2", "spearman")
POINTS = 300
"""Points of a scatter plot that a report keeps."""


@dataclass
class Regression(Task):
    """One number a row, or a vector of K.

    The head learns standardised targets z = (y - mean) / std, with the training rows' mean and standard deviation; a
    row's loss is the mean over targets of (output - z)^2. With `huber` = d it is quadratic up to d and linear beyond
    (Huber 1964), scaled to agree with the square below d. Scores and metrics are in the targets' own units.
    """

    name: ClassVar[str] = "regression"

    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    huber: float = 0.0
    metric: str = "rmse"

    def __post_init__(self) -> None:
        """Raises SpecError for a metric that is not measured."""
        each = [f"{metric}_{label}" for metric in METRICS for label in self.labels]
        known = METRICS if self.outputs == 1 else (*METRICS, *each)
        self.greater_is_better = check_metric(self.metric, known, self.name)

    @classmethod
    def fit(cls, values: Sequence[Any], **options: Any) -> Regression:
        """Learn the scale of the targets from the training rows: numbers, or lists of K numbers.

        Options: huber (in standard deviations; 0 is off), metric, and `labels`, the targets' names. Raises DataError
        for what is not a finite number or when nothing varies, SpecError for options that only make sense for labels.
        """
        for key, neutral in asdict(LossOptions()).items():
            if options.pop(key, neutral) != neutral:
                raise SpecError(f"task.{key} is about labels and regression has none: leave it out")
        chosen = read_options(cls.name, options, {"huber": 0.0, "metric": "rmse", "labels": None})
        if not (isinstance(chosen["huber"], int | float) and 0 <= chosen["huber"] < math.inf):
            raise SpecError(f"task.huber: expected a number of 0 or more, received {chosen['huber']!r}")
        table = _table(values, None)
        if len(table) == 0:
            raise DataError("expected rows with a number to learn, received none")
        size = table.shape[1]
        names = chosen["labels"] or (["value"] if size == 1 else [f"value_{k}" for k in range(size)])
        if len(names) != size:
            raise DataError(f"expected {len(names)} numbers a row ({', '.join(names)}), received {size}")
        spread = table.std(0)
        if not (spread > 0).any():
            raise DataError(f"every training row has the same target ({table[0].tolist()}): there is nothing to learn")
        mean, std = table.mean(0).tolist(), np.where(spread > 0, spread, 1.0).tolist()
        return cls(tuple(map(str, names)), tuple(mean), tuple(std), chosen["huber"], chosen["metric"])

    def encode(self, values: Sequence[Any]) -> Tensor:
        """Targets in their own units, (rows,K) float32. Raises DataError for what is not K finite numbers."""
        return torch.from_numpy(_table(values, self.outputs).astype(np.float32))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, (N,), on standardised targets. outputs (N,K) standardised, targets (N,K) are not."""
        z = (targets.to(outputs.dtype) - outputs.new_tensor(self.mean)) / outputs.new_tensor(self.std)
        if self.huber:
            return 2 * functional.huber_loss(outputs, z, reduction="none", delta=self.huber).mean(-1)
        return (outputs - z).square().mean(-1)

    def scores(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """Values in the targets' own units, (N,K); a temperature says nothing about them."""
        outputs = outputs.float()
        return outputs * outputs.new_tensor(self.std) + outputs.new_tensor(self.mean)

    def decode(self, scores: np.ndarray) -> Decoded:
        """One number a row; for several targets a list of numbers, and one column `predicted_<target>` each."""
        if self.outputs == 1:
            return Decoded(scores[:, 0].tolist(), {})
        columns = {f"predicted_{label}": scores[:, k] for k, label in enumerate(self.labels)}
        return Decoded(scores.tolist(), columns)

    def measure(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """rmse, mae, r2 and spearman, the mean over targets, and for several targets each as `rmse_<target>`, ..."""
        return _metrics.evaluate(self.weighted(scores, targets), len(targets))

    def weighted(self, scores: np.ndarray, targets: np.ndarray) -> tuple[Weighted, ...]:
        """Metrics that are functions of sums over rows, and those of ranks."""
        given, truth = scores.astype(np.float64), targets.astype(np.float64)
        return self._additive(given, truth), self._ranked(given, truth)

    def _named(self, name: str, values: np.ndarray) -> dict[str, np.ndarray]:
        """The mean over targets, and each target's own, from (B,K)."""
        found = {name: mean_defined(values.T)}
        if self.outputs > 1:
            found |= {f"{name}_{label}": values[:, k] for k, label in enumerate(self.labels)}
        return found

    def _additive(self, scores: np.ndarray, targets: np.ndarray) -> Weighted:
        error = scores - targets
        centred = targets - targets.mean(0)
        table = np.concatenate([error**2, np.abs(error), centred, centred**2], axis=1)

        def compute(counts: np.ndarray) -> dict[str, np.ndarray]:
            means = (counts @ table) / counts.sum(1, keepdims=True)
            squares, absolutes, first, second = np.split(means, 4, axis=1)
            spread = second - first**2
            r2 = np.where(spread > 0, 1 - squares / np.where(spread > 0, spread, 1.0), np.nan)
            return self._named("rmse", np.sqrt(squares)) | self._named("mae", absolutes) | self._named("r2", r2)

        return Weighted(tuple(compute(np.ones((1, len(targets))))), table.size, compute)

    def _ranked(self, scores: np.ndarray, targets: np.ndarray) -> Weighted:
        pairs = [(Ranking(scores[:, k]), Ranking(targets[:, k])) for k in range(self.outputs)]

        def compute(counts: np.ndarray) -> dict[str, np.ndarray]:
            return self._named("spearman", np.column_stack([rank_correlation(counts, a, b) for a, b in pairs]))

        return Weighted(tuple(compute(np.ones((1, len(targets))))), scores.size * 16, compute)

    def details(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """`scatter`: for each target up to 300 pairs of truth and prediction, evenly spread over the rows."""
        rows = np.unique(np.linspace(0, len(targets) - 1, min(POINTS, len(targets))).astype(int))
        pairs = np.stack([targets[rows], scores[rows]], axis=-1).astype(np.float64)
        return {"scatter": {label: pairs[:, k].tolist() for k, label in enumerate(self.labels)}}

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> tuple[str, np.ndarray]:
        """The absolute error; for several targets the root mean square of errors in standard deviations."""
        error = scores.astype(np.float64) - targets
        if self.outputs == 1:
            return "error", np.abs(error[:, 0])
        return "standardised_error", np.sqrt(((error / np.array(self.std)) ** 2).mean(1))

    def truth(self, targets: np.ndarray) -> list[Any]:
        """The numbers themselves."""
        return list(targets[:, 0].tolist() if self.outputs == 1 else targets.tolist())

    def mix(self, targets: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        """Targets between two rows', (N,K) float32: share * targets + (1 - share) * those of the partner."""
        share = share.float()[:, None]
        return share * targets.float() + (1 - share) * targets.float()[partner]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name,
            "labels": list(self.labels),
            "mean": list(self.mean),
            "std": list(self.std),
            "huber": self.huber,
            "metric": self.metric,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Regression:
        """The inverse of `to_json`."""
        labels, mean, std = (tuple(record[key]) for key in ("labels", "mean", "std"))
        return cls(labels, mean, std, record["huber"], record["metric"])


def _table(values: Sequence[Any], size: int | None) -> np.ndarray:
    """Targets as (rows,K) float64. Raises DataError naming the first row that is not `size` finite numbers."""
    found: list[list[float]] = []
    for row, value in enumerate(values):
        cells = value if isinstance(value, list | tuple | np.ndarray) and np.ndim(value) else [value]
        try:
            numbers = [float(cell) for cell in cells]
        except (TypeError, ValueError):
            raise DataError(f"row {row}: expected a number to learn, received {value!r}") from None
        if not all(map(math.isfinite, numbers)):
            raise DataError(f"row {row}: expected a finite number to learn, received {value!r}")
        size = len(numbers) if size is None else size
        if len(numbers) != size:
            raise DataError(f"row {row}: expected {size} numbers, received {len(numbers)}")
        found.append(numbers)
    return np.array(found, dtype=np.float64).reshape(len(found), size or 1)
