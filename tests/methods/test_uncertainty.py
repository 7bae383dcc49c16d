"""Uncertainty weighting against the formula, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from method_helpers import make_batch, make_context, make_model

from headstart.errors import MethodError
from headstart.methods.uncertainty import Uncertainty
from headstart.tasks.multitask import Multitask
from headstart.values import Features, View

PAIRS = [("kind", "a"), ("kind", "b"), ("size", 1.0), ("size", 2.0)]
TASK = Multitask.fit(PAIRS, tasks={"kind": {"name": "classification"}, "size": {"name": "regression"}})


def view(losses: torch.Tensor) -> View:
    batch = make_batch(rows=6).replace(origin=torch.tensor([0, 1, 1, 0, 1, 0]))
    return View(batch, Features(torch.zeros(6, 2)), torch.zeros(6, 3), losses, make_model())


def started(rate: float = 0.01) -> Uncertainty:
    method = Uncertainty(rate=rate)
    method.adapt(make_model(), make_context(task=TASK))
    return method


def test_plain_loss_and_penalty_make_the_papers_loss() -> None:
    method, losses = started(), torch.tensor([0.3, 1.0, 2.0, 0.7, 0.1, 1.5])
    method._start(torch.tensor([0.4, -1.1]))
    seen = view(losses)
    weight = seen.batch.weight
    expected = 0.0
    for row in range(6):
        task = int(seen.batch.origin[row])
        s, c = (0.4, 1.0) if task == 0 else (-1.1, 0.5)
        expected += float(weight[row]) * (c * math.exp(-s) * float(losses[row]) + s / 2) / float(weight.sum())
    plain = (losses * weight).sum() / weight.sum()
    found = method.penalty(seen, make_context(task=TASK))["uncertainty"] + plain
    assert float(found.detach()) == pytest.approx(expected, abs=1e-6)


def test_variances_go_to_twice_the_mean_square_and_the_gradient_reaches_the_losses() -> None:
    method = started(rate=0.05)
    losses = torch.tensor([0.5, 2.0, 2.0, 0.5, 2.0, 0.5], requires_grad=True)
    for _ in range(600):
        method.penalty(view(losses), make_context(task=TASK))["uncertainty"].backward()
        method.after_step(make_model(), make_context(task=TASK))
    # The slope of c exp(-s) L + s / 2 is zero at s = log(2 c L).
    assert method.logs_.tolist() == pytest.approx([math.log(2 * 0.5), math.log(2 * 0.5 * 2.0)], abs=0.05)
    assert losses.grad is not None and bool((losses.grad != 0).any())


def test_its_state_comes_back() -> None:
    method, losses = started(), torch.rand(6)
    context = make_context(task=TASK)
    method.penalty(view(losses), context)["uncertainty"].backward()
    method.after_step(make_model(), context)
    again = started()
    again.load_state(method.state(), make_model())
    for each in (method, again):
        each.penalty(view(losses), context)["uncertainty"].backward()
        each.after_step(make_model(), context)
    assert torch.equal(method.logs_, again.logs_)


def test_bad_options() -> None:
    with pytest.raises(MethodError, match="uncertainty:rate"):
        Uncertainty(rate=0)
