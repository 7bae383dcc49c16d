"""Any number of labels a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

METRICS = (
    "macro_f1",
    "micro_f1",
    "subset_accuracy",
    "hamming_loss",
    "log_loss",
    "ece",
    "roc_auc",
    "average_precision",
)
THRESHOLD = 0.5
SEPARATOR = "|"


@dataclass
class Multilabel(Task):
    """Any of K labels a row, each by its own sigmoid.

    With targets t in [0, 1], smoothing e, p = sigmoid(outputs) and s = (1 - e) t + e / 2, a row's loss is

        - mean_k  a_k s_k (1 - p_k)^gamma log p_k  +  b_k (1 - s_k) p_k^gamma log(1 - p_k)

    focal_gamma: Lin et al. 2017, equation 4; 0 is binary cross-entropy. class_weights 'balanced': for each label
    a = rows / (2 rows with it) and b = rows / (2 rows without it), so that both sides weigh the same in total;
    'effective': a and b as the inverse effective numbers of rows with and without it, with a sum of 2 (Cui et al. 2019,
    sections 3 and 4). logit_adjustment tau: p = sigmoid(outputs + tau log(prior / (1 - prior))) while learning, prior
    the label's share of the training rows (Menon et al. 2021, section 5.2, for the two sides of each label).
    gce_q: (1 - p^q) / q in place of - log p, likewise for 1 - p (Zhang and Sabuncu 2018, section 3.2).
    """

    name: ClassVar[str] = "multilabel"

    labels: tuple[str, ...]
    options: LossOptions
    weights: tuple[tuple[float, float], ...] | None = None
    separator: str = SEPARATOR
    metric: str = "macro_f1"
    priors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Raises SpecError for a metric that is not measured."""
        self.greater_is_better = check_metric(self.metric, METRICS, self.name)
        self._index = {label: k for k, label in enumerate(self.labels)}

    @classmethod
    def fit(cls, values: Sequence[Any], **options: Any) -> Multilabel:
        """Learn the label set from the training rows; a row is a list of labels, or a cell with `|` between them.

        Options: those of the loss (`LossOptions`), metric, separator, and `labels` to fix the set and its order. Raises
        DataError when no row has a label, SpecError for an option out of range or two that contradict each other.
        """
        defaults = {**asdict(LossOptions()), "metric": "macro_f1", "labels": None, "separator": SEPARATOR}
        chosen = read_options(cls.name, options, defaults)
        metric, given, separator = chosen.pop("metric"), chosen.pop("labels"), chosen.pop("separator")
        loss = LossOptions(**chosen)
        rows = [_split(value, row, separator) for row, value in enumerate(values)]
        found = ordered(label for row in rows for label in row)
        labels = found if given is None else tuple(label_text(value, row) for row, value in enumerate(given))
        if not labels:
            raise DataError("expected rows with labels, received none with any")
        made = cls(labels, loss, None, separator, metric)
        with_label = made._encode(rows).sum(0).tolist()
        if loss.class_weights != "none":
            made.weights = tuple(made._sides(n, len(rows)) for n in with_label)
        if loss.logit_adjustment:
            # A side without rows counts as one row: the logarithm of nothing would rule it out.
            made.priors = tuple(min(max(n, 1), len(rows) - 1) / len(rows) if len(rows) > 1 else 0.5 for n in with_label)
        return made

    def _sides(self, n: float, rows: int) -> tuple[float, float]:
        """The weights of a label's two sides, rows with it and rows without; 1 where one side is empty."""
        if not 0 < n < rows:
            return 1.0, 1.0
        if self.options.class_weights == "balanced":
            return rows / (2 * n), rows / (2 * (rows - n))
        have, lack = (1 / effective_number(count, self.options.effective_beta) for count in (n, rows - n))
        return 2 * have / (have + lack), 2 * lack / (have + lack)

    def encode(self, values: Sequence[Any]) -> Tensor:
        """1 for each label that a row has, (rows,K) float32. Raises DataError for labels not in the training rows."""
        return torch.from_numpy(self._encode([_split(value, row, self.separator) for row, value in enumerate(values)]))

    def _encode(self, rows: Sequence[Sequence[str]]) -> np.ndarray:
        unknown: dict[str, int] = {}
        found = np.zeros((len(rows), self.outputs), dtype=np.float32)
        for row, labels in enumerate(rows):
            for label in labels:
                if label in self._index:
                    found[row, self._index[label]] = 1.0
                else:
                    unknown.setdefault(label, row)
        refuse_unknown(unknown, self.labels)
        return found

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, (N,): the mean over its labels. outputs and targets are (N,K)."""
        targets = targets.to(outputs.dtype)
        smoothing, gamma = self.options.label_smoothing, self.options.focal_gamma
        share = (1 - smoothing) * targets + smoothing / 2
        if self.priors is not None:
            outputs = outputs + self.options.logit_adjustment * outputs.new_tensor(self.priors).logit()
        # softplus(-z) is -log p and softplus(z) is -log(1 - p).
        have = share * self.options.cost(-functional.softplus(-outputs))
        lack = (1 - share) * self.options.cost(-functional.softplus(outputs))
        if gamma:
            have = have * torch.exp(-gamma * functional.softplus(outputs))
            lack = lack * torch.exp(-gamma * functional.softplus(-outputs))
        if self.weights is not None:
            weights = outputs.new_tensor(self.weights)
            have, lack = have * weights[:, 0], lack * weights[:, 1]
        return (have + lack).mean(-1)

    def scores(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """Probabilities (N,K): sigmoid(outputs / temperature)."""
        return torch.sigmoid(outputs.float() / temperature)

    def margin(self, outputs: np.ndarray) -> np.ndarray:
        """(N,): how far the raw output nearest to `THRESHOLD`, which is 0, is from it."""
        found: np.ndarray = np.abs(outputs).min(axis=1)
        return found

    def decode(self, scores: np.ndarray) -> Decoded:
        """A list of the labels above one half, and one column `probability_<label>` a label."""
        columns = {f"probability_{label}": scores[:, k] for k, label in enumerate(self.labels)}
        return Decoded(list(self.truth(scores)), columns)

    def measure(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """macro_f1, micro_f1, subset_accuracy (all labels of a row right), hamming_loss (share of wrong decisions),
        log_loss and ece over all decisions, roc_auc and average_precision (mean over labels with both kinds of row).
        """
        return _metrics.evaluate(self.weighted(scores, targets), len(targets))

    def weighted(self, scores: np.ndarray, targets: np.ndarray) -> tuple[Weighted, ...]:
        """Metrics that are functions of sums over rows, and those of ranks."""
        return self._additive(scores, targets), self._ranked(scores, targets)

    def _additive(self, scores: np.ndarray, targets: np.ndarray) -> Weighted:
        size = scores.shape[1]
        answers, truth = scores > THRESHOLD, targets > THRESHOLD
        p = np.clip(scores.astype(np.float64), _metrics.SMALLEST, 1 - _metrics.SMALLEST)
        logs = -np.where(truth, np.log(p), np.log1p(-p)).mean(1)
        wrong = (answers != truth).mean(1)
        gaps = _metrics.gaps(scores.astype(np.float64), truth) / size
        table = np.column_stack([wrong == 0, wrong, logs, gaps, answers & truth, answers, truth]).astype(np.float64)

        def compute(counts: np.ndarray) -> dict[str, np.ndarray]:
            total = counts.sum(1)
            sums = counts @ table
            hits, predicted, actual = np.split(sums[:, 3 + _metrics.BINS :], 3, axis=1)
            f1 = _metrics.f1_of(hits, predicted, actual)
            return {
                "macro_f1": f1["macro_f1"],
                "micro_f1": f1["micro_f1"],
                "subset_accuracy": sums[:, 0] / total,
                "hamming_loss": sums[:, 1] / total,
                "log_loss": sums[:, 2] / total,
                "ece": np.abs(sums[:, 3 : 3 + _metrics.BINS]).sum(1) / total,
            }

        return Weighted(METRICS[:6], table.size, compute, ("subset_accuracy",))

    def _ranked(self, scores: np.ndarray, targets: np.ndarray) -> Weighted:
        rankings: list[Ranking] = []
        positive = targets > THRESHOLD

        def compute(counts: np.ndarray) -> dict[str, np.ndarray]:
            if not rankings:
                rankings.extend(Ranking(scores[:, k]) for k in range(scores.shape[1]))
            return macro_areas(counts, rankings, positive)

        return Weighted(METRICS[6:], scores.size * 8, compute)

    def details(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """`per_class`, and `calibration` over all decisions."""
        answers, truth = scores > THRESHOLD, targets > THRESHOLD
        bins = _metrics.reliability(scores, truth)
        return {
            "per_class": _metrics.per_class(self.labels, (answers & truth).sum(0), answers.sum(0), truth.sum(0)),
            "calibration": {"ece": _metrics.calibration_error(bins), "bins": bins},
        }

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> tuple[str, np.ndarray]:
        """The probability that the row's worst wrong decision was given, 0 when all are right."""
        truth = targets > THRESHOLD
        given = np.where(truth, 1 - scores, scores)
        return "probability", np.where((scores > THRESHOLD) == truth, 0.0, given).max(1)

    def truth(self, targets: np.ndarray) -> list[list[str]]:
        """A list of each row's labels; empty for a row without."""
        return [[self.labels[k] for k in np.flatnonzero(row > THRESHOLD)] for row in targets]

    def mix(self, targets: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        """Shares of labels, (N,K) float32: share * targets + (1 - share) * those of the partner."""
        share = share.float()[:, None]
        return share * targets.float() + (1 - share) * targets.float()[partner]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name,
            "labels": list(self.labels),
            **asdict(self.options),
            "weights": None if self.weights is None else [list(pair) for pair in self.weights],
            "separator": self.separator,
            "metric": self.metric,
            "priors": None if self.priors is None else list(self.priors),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Multilabel:
        """The inverse of `to_json`."""
        options = LossOptions.read(record)
        weights = None if record["weights"] is None else tuple((a, b) for a, b in record["weights"])
        priors = None if record.get("priors") is None else tuple(record["priors"])
        return cls(tuple(record["labels"]), options, weights, record["separator"], record["metric"], priors)


def _split(value: Any, row: int, separator: str) -> list[str]:
    """The labels of a row, from a list or a cell. Raises DataError for anything else."""
    if value is None or (isinstance(value, float) and value != value):
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    if isinstance(value, Mapping | bytes) or not isinstance(value, Iterable):
        raise DataError(
            f"row {row}: expected a list of labels, or a cell such as 'a{separator}b', received {type(value).__name__}"
        )
    return [label_text(item, row) for item in value]
