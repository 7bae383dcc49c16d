from __future__ import annotations

import pytest
import torch
from method_helpers import make_context, make_model
from torch import nn

from headstart.methods.l2sp import L2SP


def moved() -> tuple[nn.Module, dict[nn.Parameter, torch.Tensor]]:
    model = make_model()
    start = {p: p.detach().clone() for p in model.parameters()}
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, start


def test_value_and_gradient_are_the_papers() -> None:
    model, start = moved()
    found = L2SP(0.3, beta=0.7).prior(model, make_context(start=start))
    backbone = sum(float(((p.detach() - start[p]) ** 2).sum()) for p in model.backbone.parameters())
    head = sum(float((p.detach() ** 2).sum()) for p in model.head.parameters())
    assert float(found["l2sp"].detach()) == pytest.approx(0.3 / 2 * backbone, rel=1e-5)
    assert float(found["l2sp_head"].detach()) == pytest.approx(0.7 / 2 * head, rel=1e-5)
    sum(found.values()).backward()  # type: ignore[union-attr]
    for p in model.backbone.parameters():
        torch.testing.assert_close(p.grad, 0.3 * (p.detach() - start[p]))
    for p in model.head.parameters():
        torch.testing.assert_close(p.grad, 0.7 * p.detach())


def test_at_the_start_the_pull_is_zero() -> None:
    model = make_model()
    start = {p: p.detach().clone() for p in model.parameters()}
    assert float(L2SP().prior(model, make_context(start=start))["l2sp"].detach()) == 0


def test_frozen_and_new_parameters_are_not_pulled() -> None:
    model, start = moved()
    for p in model.backbone.parameters():
        p.requires_grad_(False)
    found = L2SP(1.0, beta=0).prior(model, make_context(start=start))
    assert list(found) == ["l2sp"] and float(found["l2sp"].detach()) == 0, (
        "a zero the loop can report, not a missing term"
    )
    added = nn.Parameter(torch.ones(3))
    model.backbone.register_parameter("added", added)
    assert float(L2SP(1.0).prior(model, make_context(start=start))["l2sp"].detach()) == 0
    top = model.backbone.network.top.weight
    top.requires_grad_(True)
    expected = 0.5 * float(((top.detach() - start[top]) ** 2).sum())
    assert float(L2SP(1.0).prior(model, make_context(start=start))["l2sp"].detach()) == pytest.approx(
        expected, rel=1e-5
    )
