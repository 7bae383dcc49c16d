"""Temperatures that were put in are found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from headstart.evaluation.calibration import RANGE, expected_calibration_error, fit_temperature, reliability


def drawn(temperature: float, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax at this temperature is the law of the targets."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 5)) * 3
    p = np.exp(logits / temperature)
    p /= p.sum(1, keepdims=True)
    targets = (p.cumsum(1) < rng.random((rows, 1))).sum(1)
    return logits, targets


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_true_temperature_is_found(temperature):
    logits, targets = drawn(temperature, 20_000)
    found = fit_temperature(torch.tensor(logits), torch.tensor(targets))
    assert found == pytest.approx(temperature, rel=0.05)


def test_it_is_the_minimum_of_the_likelihood():
    logits, targets = drawn(1.7, 2000)

    def nll(log_temperature):
        outputs = torch.tensor(logits) * np.exp(-log_temperature)
        loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(targets), reduction="sum")
        return float(loss) + log_temperature**2 / 2

    best = minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x
    assert fit_temperature(logits, targets) == pytest.approx(np.exp(best), rel=1e-4)


def test_it_lowers_the_calibration_error():
    logits, targets = drawn(3.0, 5000)
    temperature = fit_temperature(logits, targets)

    def error(t):
        p = torch.softmax(torch.tensor(logits) / t, 1).numpy()
        return expected_calibration_error(p.max(1), p.argmax(1) == targets)

    assert error(temperature) < 0.03 < error(1.0)


def test_few_rows_all_right_do_not_make_it_infinitely_sure():
    logits = np.eye(3)[[0, 1, 2, 0]] * 5
    found = fit_temperature(logits, np.array([0, 1, 2, 0]))
    assert 3 * RANGE[0] < found < 1


def test_several_labels():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 3)) * 3
    targets = (rng.random((20_000, 3)) < 1 / (1 + np.exp(-logits / 2))).astype(np.float32)
    assert fit_temperature(torch.tensor(logits), torch.tensor(targets)) == pytest.approx(2, rel=0.05)


def test_no_rows_leave_outputs_as_they_are():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1.0


def test_reliability_counts_every_row_once():
    confidence = np.array([0.0, 0.05, 1 / 15, 0.0667, 0.5, 1.0, 1.0])
    bins = reliability(confidence, np.array([0, 0, 1, 1, 1, 1, 0]))
    assert len(bins) == 15 and sum(b["count"] for b in bins) == 7
    assert bins[0]["count"] == 3 and bins[0]["accuracy"] == pytest.approx(1 / 3)
    assert bins[1]["count"] == 1 and bins[14]["accuracy"] == 0.5 and bins[14]["confidence"] == 1.0
    assert bins[5]["confidence"] is None
