"""The probe against scikit-learn's solvers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from headstart import tasks
from headstart.heads import probe


def problem(rows: int = 300, width: int = 20, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(classes, width))
    y = generator.integers(classes, size=rows)
    return (centres[y] + generator.normal(size=(rows, width)) * 1.5).astype(np.float32), y


def test_the_solution_is_logistic_regression() -> None:
    x, y = problem()
    task = tasks.fit("classification", [str(value) for value in y])
    weight, bias = probe.solve(torch.from_numpy(x).double(), torch.from_numpy(y), task, 10.0)
    z = standardised(x)
    reference = LogisticRegression(C=10.0, max_iter=5000, tol=1e-10).fit(z, y)
    ours = torch.softmax(torch.from_numpy(x).double() @ weight.T + bias, 1).numpy()
    assert np.abs(ours - reference.predict_proba(z)).max() < 1e-3


def standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0) / np.sqrt(x.shape[1])


def test_for_regression_it_is_ridge() -> None:
    x, _ = problem()
    y = (x[:, 0] * 2 + x[:, 1] + np.random.default_rng(1).normal(size=len(x))).astype(np.float64)
    task = tasks.fit("regression", y.tolist())
    weight, bias = probe.solve(torch.from_numpy(x).double(), task.encode(y.tolist()), task, 10.0)
    found = task.scores((torch.from_numpy(x).double() @ weight.T + bias).float()).numpy()[:, 0]
    z = standardised(x)
    # mean squared error + l2/2 |W|^2 is n times Ridge's objective for alpha = n * l2 / 2.
    reference = Ridge(alpha=1 / (2 * 10.0)).fit(z, y).predict(z)
    assert np.abs(found - reference).max() < 1e-2


def test_strength_is_chosen_on_validation_rows_or_across_folds() -> None:
    x, y = problem()
    task = tasks.fit("classification", [str(value) for value in y])
    targets = torch.from_numpy(y)
    held = probe.fit(x[:200], targets[:200], task, (x[200:], targets[200:]))
    assert held.held_out.shape == (100, 4)
    assert held.score == float((held.held_out.argmax(1) == targets[200:]).double().mean())
    crossed = probe.fit(x[:40], targets[:40], task)
    assert crossed.held_out.shape == (40, 4)
    assert crossed.c in probe.STRENGTHS
    assert 0.3 < crossed.score < 1.0


def test_folds_hold_every_row_out_once_and_spread_classes() -> None:
    targets = torch.tensor([0] * 10 + [1] * 5)
    held = [rows for _, rows in probe.folds(targets, 5, 0)]
    assert sorted(torch.cat(held).tolist()) == list(range(15))
    assert all(int((targets[rows] == 1).sum()) == 1 for rows in held)


@pytest.mark.parametrize("few", [0, 2**13])
def test_strengths_one_after_the_other_end_where_each_alone_does(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where less of the curvature is remembered."""
    monkeypatch.setattr(probe, "FEW_NUMBERS", few)
    x, y = problem(rows=60)
    task, targets = tasks.fit("classification", [str(value) for value in range(4)]), torch.from_numpy(y)
    whole = torch.from_numpy(x).double()
    spread = (whole - whole.mean(0)).square().mean(0).sqrt() * whole.shape[1] ** 0.5

    def objective(c: float, weight: Tensor, bias: Tensor) -> float:
        loss = task.loss(whole @ weight.T + bias, targets).mean()
        return float(loss + (weight * spread).square().sum() / (2 * c * len(x)))

    path = list(probe._path(whole, targets, task))
    assert len(path) == len(probe.STRENGTHS)
    for c, (weight, bias) in zip(probe.STRENGTHS, path, strict=True):
        alone = objective(c, *probe.solve(whole, targets, task, c))
        assert objective(c, weight, bias) == pytest.approx(alone, rel=1e-5)
        assert objective(c, weight * 1.01, bias) > alone


def test_extra_rows_are_always_fitted_and_never_held_out() -> None:
    x, y = problem(rows=40)
    task = tasks.fit("classification", [str(value) for value in range(4)])
    targets = torch.from_numpy(y)
    more, of = problem(rows=55)[0][40:52], torch.from_numpy(problem(rows=55)[1][40:52])
    found = probe.fit(x, targets, task, None, (more, of), seed=3)
    assert found.held_out.shape == (40, 4)
    # The out-of-fold answers, made by hand.
    expected = torch.zeros(40, 4, dtype=torch.float64)
    for fitted, held in probe.folds(targets, probe.FOLDS, 3):
        rows = np.concatenate([x[fitted], more])
        path = list(probe._path(torch.from_numpy(rows).double(), torch.cat([targets[fitted], of]), task))
        weight, bias = path[probe.STRENGTHS.index(found.c)]
        expected[held] = torch.from_numpy(x[held]).double() @ weight.T + bias
    assert torch.allclose(found.held_out, expected.float(), atol=1e-4)
    weight, _ = probe.solve(
        torch.from_numpy(np.concatenate([x, more])).double(), torch.cat([targets, of]), task, found.c
    )
    assert torch.allclose(found.weight, weight.float(), atol=1e-4)


def test_a_large_problem_ends_where_float64_alone_does(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(rows=600)
    task = tasks.fit("classification", [str(value) for value in y])
    targets = torch.from_numpy(y)
    parts = (x[:400], targets[:400], task, (x[400:], targets[400:]))
    plain = probe.fit(*parts)
    monkeypatch.setattr(probe, "LARGE", 0)
    fast = probe.fit(*parts)
    assert fast.c == plain.c
    assert fast.score == plain.score
    assert torch.allclose(fast.held_out, plain.held_out, atol=1e-2)


def test_a_solution_is_gone_on_with() -> None:
    x, y = problem()
    task = tasks.fit("classification", [str(value) for value in y])
    features, targets = torch.from_numpy(x).double(), torch.from_numpy(y)
    found = probe.solve(features, targets, task, 10.0)
    again = probe.solve(features, targets, task, 10.0, start=found)
    for one, other in zip(found, again, strict=True):
        assert torch.allclose(one, other, atol=1e-3)
    calls: list[int] = []
    counted = copy.copy(task)
    counted.loss = lambda *given: calls.append(1) or task.loss(*given)  # type: ignore[method-assign]
    probe.solve(features, targets, counted, 10.0)
    alone = len(calls)
    calls.clear()
    probe.solve(features, targets, counted, 10.0, start=found)
    assert len(calls) < alone / 2


def test_the_time_of_solving_is_expected_to_grow_with_folds() -> None:
    x, y = problem()
    task = tasks.fit("classification", [str(value) for value in y])
    assert 0 < probe.expected(x.shape[1], torch.from_numpy(y), task, crossed=True) < 60


def test_rows_that_are_always_fitted_are_expected_to_take_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each timing takes a second here, and as many rows again stand beside those of the set."""
    x, y = problem()
    task, clock = tasks.fit("classification", [str(value) for value in y]), iter(range(100))
    monkeypatch.setattr(probe.time, "perf_counter", lambda: float(next(clock)))
    alone, more = (
        probe.expected(x.shape[1], torch.from_numpy(y), task, crossed=False, extra=extra) for extra in (0, len(y))
    )
    assert alone > 0 and more == pytest.approx(2 * alone)


def test_small_numbers_count_again_afterwards() -> None:
    small = torch.tensor(1e-39)
    assert float(small * 1) > 0
    with pytest.raises(RuntimeError), probe._flushed():
        assert float(small * 1) == 0
        raise RuntimeError
    assert float(small * 1) > 0
