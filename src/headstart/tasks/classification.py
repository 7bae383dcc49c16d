"""One label a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from headstart.errors import DataError
from headstart.protocols import Task
from headstart.tasks import _metrics
from headstart.tasks._options import (
    LossOptions,
    check_metric,
    effective_number,
    label_text,
    ordered,
    read_options,
    refuse_unknown,
)
from headstart.tasks._ranking import Ranking, macro_areas
from headstart.values import Decoded, Weighted

METRICS = ("accuracy", "macro_f1", "micro_f1", "log_loss", "ece", "roc_auc", "average_precision")


@dataclass
class Classification(Task):
    """One of K labels a row, by cross-entropy.

    With targets t (one-hot, or mixed), label smoothing e, class weights w and p = softmax(outputs), a row's loss is

        - sum_k  w_k ((1 - e) t_k + e / K) (1 - p_k)^gamma log p_k

    label_smoothing: Szegedy et al. 2016, section 7. focal_gamma: Lin et al. 2017, equation 4; 0 is cross-entropy.
    class_weights 'balanced': w_k = rows / (K rows of k), so that every class weighs the same in total; 'effective':
    w_k proportional to (1 - beta) / (1 - beta^(rows of k)), with a mean of 1 (Cui et al. 2019, sections 3 and 4).
    logit_adjustment tau: p = softmax(outputs + tau log prior) while learning, prior the classes' shares of the training
    rows; answers are made without it (Menon et al. 2021, section 5.2).
    gce_q: (1 - p_k^q) / q in place of - log p_k, which wrong labels pull at less (Zhang and Sabuncu 2018, section 3.2).
    """

    name: ClassVar[str] = "classification"

    labels: tuple[str, ...]
    options: LossOptions
    weights: tuple[float, ...] | None = None
    metric: str = "accuracy"
    priors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Raises SpecError for a metric that is not measured."""
        self.greater_is_better = check_metric(self.metric, METRICS, self.name)
        self._index = {label: k for k, label in enumerate(self.labels)}

    @classmethod
    def fit(cls, values: Sequence[Any], **options: Any) -> Classification:
        """Learn the label set from the training rows: numbers in their order, other labels by text.

        Options: those of the loss (`LossOptions`), metric, and `labels` to fix the set and its order. Raises DataError
        with fewer than two labels, SpecError for an option out of range or two that contradict each other.
        """
        defaults = {**asdict(LossOptions()), "metric": "accuracy", "labels": None}
        chosen = read_options(cls.name, options, defaults)
        metric, given = chosen.pop("metric"), chosen.pop("labels")
        loss = LossOptions(**chosen)
        texts = [label_text(value, row) for row, value in enumerate(values)]
        labels = ordered(texts) if given is None else tuple(label_text(v, row) for row, v in enumerate(given))
        if len(set(labels)) < 2:
            received = f"one ('{labels[0]}')" if labels else "none"
            raise DataError(f"expected at least two different labels to tell apart, received {received}")
        made = cls(labels, loss, None, metric)
        counts = np.bincount(made._encode(texts), minlength=made.outputs).tolist()
        made.weights = made._weights(counts)
        if loss.logit_adjustment:
            # A class without rows counts as one row: the logarithm of nothing would rule it out.
            made.priors = tuple(max(count, 1) / sum(max(n, 1) for n in counts) for count in counts)
        return made

    def _weights(self, counts: Sequence[int]) -> tuple[float, ...] | None:
        """The weight of each class, 1 for one without rows."""
        if self.options.class_weights == "balanced":
            return tuple(sum(counts) / (self.outputs * count) if count else 1.0 for count in counts)
        if self.options.class_weights == "effective":
            beta = self.options.effective_beta
            inverse = [1 / effective_number(count, beta) if count else None for count in counts]
            there = [value for value in inverse if value is not None]
            return tuple(1.0 if value is None else value * len(there) / sum(there) for value in inverse)
        return None

    def encode(self, values: Sequence[Any]) -> Tensor:
        """Class indices, (rows,) int64. Raises DataError for labels that the training rows do not have."""
        return torch.from_numpy(self._encode([label_text(value, row) for row, value in enumerate(values)]))

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        unknown: dict[str, int] = {}
        for row, text in enumerate(texts):
            if text not in self._index:
                unknown.setdefault(text, row)
        refuse_unknown(unknown, self.labels)
        return np.array([self._index[text] for text in texts], dtype=np.int64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, (N,). outputs (N,K); targets (N,) int64, or (N,K) shares that sum to 1."""
        smoothing = self.options.label_smoothing
        if self.priors is not None:
            outputs = outputs + self.options.logit_adjustment * outputs.new_tensor(self.priors).log()
        logs = functional.log_softmax(outputs, dim=-1)
        shares: Tensor | None = None
        if targets.ndim == 2 or smoothing:
            shares = targets if targets.ndim == 2 else functional.one_hot(targets, self.outputs)
            shares = (1 - smoothing) * shares.to(outputs.dtype) + smoothing / self.outputs
        else:  # one class a row has all: the others add nothing
            logs = logs.gather(1, targets[:, None])
        terms = self.options.cost(logs)
        if self.options.focal_gamma:
            # -expm1(log p) is 1 - p without cancellation; the floor keeps the power's slope finite at p = 1.
            rest = (-torch.expm1(logs)).clamp_min(torch.finfo(logs.dtype).tiny)
            terms = terms * rest**self.options.focal_gamma
        if self.weights is not None:
            weights = outputs.new_tensor(self.weights)
            terms = terms * (weights[targets][:, None] if shares is None else weights)
        return terms.sum(-1) if shares is None else (shares * terms).sum(-1)

    def scores(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """Probabilities (N,K): softmax(outputs / temperature)."""
        return torch.softmax(outputs.float() / temperature, dim=-1)

    def margin(self, outputs: np.ndarray) -> np.ndarray:
        """(N,): the largest raw output less the next, inf for a single class."""
        if outputs.shape[1] < 2:
            return super().margin(outputs)
        ends = np.partition(outputs, -2, axis=1)[:, -2:]
        found: np.ndarray = ends[:, 1] - ends[:, 0]
        return found

    def decode(self, scores: np.ndarray) -> Decoded:
        """The likeliest label of each row, and one column `probability_<label>` a label."""
        columns = {f"probability_{label}": scores[:, k] for k, label in enumerate(self.labels)}
        return Decoded([self.labels[k] for k in scores.argmax(1).tolist()], columns)

    def measure(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """accuracy, macro_f1, micro_f1, log_loss, ece, roc_auc and average_precision (both one against the rest,
        mean over the classes that occur; nan when only one does).
        """
        return _metrics.evaluate(self.weighted(scores, targets), len(targets))

    def weighted(self, scores: np.ndarray, targets: np.ndarray) -> tuple[Weighted, ...]:
        """Metrics that are functions of sums over rows, and those of ranks."""
        return self._additive(scores, targets), self._ranked(scores, targets)

    def _additive(self, scores: np.ndarray, targets: np.ndarray) -> Weighted:
        from scipy.sparse import csr_array

        rows, size = scores.shape
        answers, right = scores.argmax(1), scores.argmax(1) == targets
        logs = -np.log(np.clip(scores[np.arange(rows), targets].astype(np.float64), _metrics.SMALLEST, 1.0))
        dense = np.column_stack([right, logs, _metrics.gaps(scores.max(1).astype(np.float64), right)])
        # One entry a row in each of three blocks of K columns: right answers, answers, truths.
        places = np.column_stack([targets, size + answers, 2 * size + targets])
        ones = np.column_stack([right, np.ones((rows, 2))]).astype(np.float64)
        blocks = csr_array((ones.ravel(), places.ravel(), np.arange(0, 3 * rows + 1, 3)), shape=(rows, 3 * size))

        def compute(counts: np.ndarray) -> dict[str, np.ndarray]:
            total = counts.sum(1)
            sums = counts @ dense
            hits, predicted, actual = np.split((blocks.T @ counts.T).T, 3, axis=1)
            accuracy = sums[:, 0] / total
            f1 = _metrics.f1_of(hits, predicted, actual)
            ece = np.abs(sums[:, 2:]).sum(1) / total
            return {
                "accuracy": accuracy,
                "macro_f1": f1["macro_f1"],
                "micro_f1": f1["micro_f1"],
                "log_loss": sums[:, 1] / total,
                "ece": ece,
            }

        return Weighted(METRICS[:5], rows * 8 + size, compute, ("accuracy", "micro_f1"))

    def _ranked(self, scores: np.ndarray, targets: np.ndarray) -> Weighted:
        rankings: list[Ranking] = []
        positive = targets[:, None] == np.arange(self.outputs)

        def compute(counts: np.ndarray) -> dict[str, np.ndarray]:
            if not rankings:
                rankings.extend(Ranking(scores[:, k]) for k in range(scores.shape[1]))
            return macro_areas(counts, rankings, positive)

        return Weighted(METRICS[5:], scores.size * 8, compute)

    def details(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """`per_class`, `confusion` and `calibration`."""
        answers, size = scores.argmax(1), self.outputs
        right = answers == targets
        bins = _metrics.reliability(scores.max(1), right)
        return {
            "per_class": _metrics.per_class(
                self.labels,
                np.bincount(targets[right], minlength=size),
                np.bincount(answers, minlength=size),
                np.bincount(targets, minlength=size),
            ),
            "confusion": _metrics.confusion(self.labels, targets, answers),
            "calibration": {"ece": _metrics.calibration_error(bins), "bins": bins},
        }

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> tuple[str, np.ndarray]:
        """The probability given to a wrong answer, 0 for a right one."""
        return "probability", np.where(scores.argmax(1) == targets, 0.0, scores.max(1))

    def truth(self, targets: np.ndarray) -> list[str]:
        """The labels of class indices."""
        return [self.labels[k] for k in targets.tolist()]

    def mix(self, targets: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        """Shares of classes, (N,K) float32: share * one-hot + (1 - share) * one-hot of the partner."""
        whole = targets.float() if targets.ndim == 2 else functional.one_hot(targets, self.outputs).float()
        share = share.to(whole.dtype)[:, None]
        return share * whole + (1 - share) * whole[partner]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        weights = None if self.weights is None else list(self.weights)
        return {
            "name": self.name,
            "labels": list(self.labels),
            **asdict(self.options),
            "weights": weights,
            "metric": self.metric,
            "priors": None if self.priors is None else list(self.priors),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Classification:
        """The inverse of `to_json`."""
        options = LossOptions.read(record)
        weights = None if record["weights"] is None else tuple(record["weights"])
        priors = None if record.get("priors") is None else tuple(record["priors"])
        return cls(tuple(record["labels"]), options, weights, record["metric"], priors)
