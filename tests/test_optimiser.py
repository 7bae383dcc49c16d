"""Update rules against their formulas, schedules, and moments that follow their parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from headstart.optimiser import BETAS, Optimiser, schedule
from headstart.spec import TrainingSpec
from headstart.values import Group


def make(optimizer: str, parameter: nn.Parameter, **options: object) -> Optimiser:
    training = TrainingSpec(optimizer=optimizer, schedule="constant", warmup=0.0, weight_decay=0.1, **options)
    optimiser = Optimiser(training, 0.01)
    optimiser.set_groups([Group((parameter,), 0.5)])
    return optimiser


def test_sgd_is_the_decoupled_update() -> None:
    start, gradient = torch.randn(3, 2), torch.randn(3, 2)
    parameter = nn.Parameter(start.clone())
    parameter.grad = gradient.clone()
    make("sgd", parameter, momentum=0.0).step(0.5)
    rate = 0.01 * 0.5
    assert torch.allclose(parameter, start - rate * gradient - rate * 0.1 * start, atol=1e-7)


def test_adamw_is_torch_adamw() -> None:
    start = torch.randn(3, 2)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimiser = make("adamw", ours)
    reference = torch.optim.AdamW([theirs], lr=0.005, betas=BETAS, weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(3, 2)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimiser.step(0.5)
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_the_fused_update_is_the_plain_one(kind: str) -> None:
    """A table of which each step touches a few rows moves whole, by the moments that its other rows still have."""
    ours = nn.Embedding(200, 8)
    theirs = nn.Embedding.from_pretrained(ours.weight.detach().clone(), freeze=False)
    optimiser = make(kind, ours.weight)
    plain = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[kind]
    reference = plain(theirs.parameters(), lr=0.005, betas=BETAS, weight_decay=0.1, fused=False, foreach=False)
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        tokens, wanted = torch.randint(200, (6,), generator=draws), torch.randn(6, 8, generator=draws)
        for table in (ours, theirs):
            (table(tokens) - wanted).square().sum().backward()
        optimiser.step(0.5)
        reference.step()
        reference.zero_grad()
    assert optimiser.torch is not None and optimiser.torch.defaults["fused"]
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-6, rtol=0)


def test_a_frozen_table_costs_nothing() -> None:
    table, head = nn.Embedding(50, 4), nn.Linear(4, 2)
    table.weight.requires_grad_(False)
    before = table.weight.clone()
    optimiser = make("adamw", head.weight)
    head(table(torch.tensor([1, 2]))).sum().backward()
    optimiser.step(0.5)
    assert table.weight.grad is None and torch.equal(table.weight, before)
    assert list(optimiser.torch.state) == [head.weight]


def test_adam_adds_the_decay_to_the_gradient() -> None:
    start = torch.randn(3, 2)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimiser = make("adam", ours)
    reference = torch.optim.Adam([theirs], lr=0.005, betas=BETAS, weight_decay=0.1)
    ours.grad, theirs.grad = torch.ones(3, 2), torch.ones(3, 2)
    optimiser.step(0.5)
    reference.step()
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_biases_and_norms_are_not_decayed() -> None:
    parameter = nn.Parameter(torch.ones(4))
    parameter.grad = torch.zeros(4)
    make("sgd", parameter).step(0.5)
    assert torch.equal(parameter, torch.ones(4))


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adam"])
def test_biases_and_norms_are_decayed_where_asked(kind: str) -> None:
    start = torch.randn(4)
    moved = {}
    for decay_norms in (False, True):
        parameter = nn.Parameter(start.clone())
        parameter.grad = torch.zeros(4)
        make(kind, parameter, decay_norms=decay_norms).step(0.5)
        moved[decay_norms] = parameter.detach()
    assert torch.equal(moved[False], start)
    if kind == "adam":  # the decay is all of its gradient
        assert bool(((start - moved[True]) * start > 0).all())
    else:
        assert torch.allclose(moved[True], start * (1 - 0.005 * 0.1))


def test_moments_follow_their_parameters_when_groups_change() -> None:
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = make("adamw", a)
    a.grad = torch.ones(2, 2)
    optimiser.step(0.5)
    moment = optimiser.torch.state[a]["exp_avg"].clone()
    optimiser.set_groups([Group((b, a))])
    assert torch.equal(optimiser.torch.state[a]["exp_avg"], moment)
    assert b not in optimiser.torch.state


@pytest.mark.parametrize(
    ("kind", "at", "expected"),
    [
        ("cosine", 0.05, 0.5), ("cosine", 0.1, 1.0), ("cosine", 0.55, 0.5), ("cosine", 1.0, 0.0),
        ("linear", 0.55, 0.5), ("linear", 1.0, 0.0), ("constant", 0.05, 0.5), ("constant", 1.0, 1.0),
        ("one_cycle", 0.0, 1 / 25), ("one_cycle", 0.1, 1.0), ("one_cycle", 1.0, 1e-4),
    ],
)  # fmt: skip
def test_schedules(kind: str, at: float, expected: float) -> None:
    assert math.isclose(schedule(kind, 0.1, at), expected, abs_tol=1e-9)
