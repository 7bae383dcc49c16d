from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from method_helpers import TinyTask, make_batch, make_context, make_model

from headstart.errors import MethodError
from headstart.methods.rdrop import RDrop
from headstart.values import View


class Regression(TinyTask):
    name = "regression"


class Multilabel(TinyTask):
    name = "multilabel"


def two_passes(task: Any, alpha: float) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The penalty, and the two answers that went into it."""
    model, batch = make_model().train(), make_batch()
    torch.manual_seed(5)
    features, first = model(batch)
    found = RDrop(alpha).penalty(View(batch, features, first, first.sum(1), model), make_context(task=task))
    torch.manual_seed(5)
    model(batch)
    second = model(batch)[1]
    assert not torch.equal(first, second)
    return found["rdrop"], first.detach().double(), second.detach().double(), batch.weight.double()


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_classes_are_the_papers_symmetric_divergence() -> None:
    found, first, second, weight = two_passes(TinyTask(), 0.7)
    total = 0.0
    for a, b, w in zip(first, second, weight, strict=True):
        p, q = a.softmax(0).tolist(), b.softmax(0).tolist()
        total += float(w) * (kl(p, q) + kl(q, p)) / 2
    assert float(found.detach()) == pytest.approx(0.7 * total / float(weight.sum()), rel=1e-4)


def test_several_labels_are_one_bernoulli_each() -> None:
    found, first, second, weight = two_passes(Multilabel(), 1.0)
    total = 0.0
    for a, b, w in zip(first, second, weight, strict=True):
        for x, y in zip(a.sigmoid().tolist(), b.sigmoid().tolist(), strict=True):
            p, q = [x, 1 - x], [y, 1 - y]
            total += float(w) * (kl(p, q) + kl(q, p)) / 2 / len(a)
    assert float(found.detach()) == pytest.approx(total / float(weight.sum()), rel=1e-4)


def test_regression_is_the_squared_difference() -> None:
    found, first, second, weight = two_passes(Regression(), 2.0)
    rows = ((first - second) ** 2).mean(1)
    assert float(found.detach()) == pytest.approx(2.0 * float((rows * weight).sum() / weight.sum()), rel=1e-5)


def test_both_passes_are_pulled() -> None:
    model, batch = make_model().train(), make_batch()
    features, first = model(batch)
    frozen = View(batch, features, first.detach(), first.sum(1), model)
    RDrop().penalty(frozen, make_context())["rdrop"].backward()
    assert float(model.head.weight.grad.abs().sum()) > 0, "the second pass has no gradient"


def test_a_pass_without_dropout_is_not_repeated() -> None:
    model, batch = make_model().eval(), make_batch()
    features, first = model(batch)
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    found = RDrop().penalty(View(batch, features, first, first.sum(1), model), make_context())
    assert float(found["rdrop"].detach()) == 0 and not calls


def test_the_second_pass_moves_no_statistics_and_a_batch_without_weight_gives_zero() -> None:
    model, batch = make_model("image").train(), make_batch("image")
    batch = batch.replace(weight=torch.zeros_like(batch.weight))
    features, first = model(batch)
    before = {name: value.clone() for name, value in model.named_buffers()}
    found = RDrop().penalty(View(batch, features, first, first.sum(1), model), make_context("image"))
    assert float(found["rdrop"].detach()) == 0
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())


def test_the_second_pass_has_the_precision_of_the_run() -> None:
    model, batch = make_model().train(), make_batch()
    features, first = model(batch)
    kinds = []
    model.backbone.network.top.register_forward_pre_hook(lambda module, args: kinds.append(args[0].dtype))
    model.backbone.network.layers[0].mixer.register_forward_hook(lambda module, args, out: kinds.append(out.dtype))
    ctx = make_context(autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    RDrop().penalty(View(batch, features, first, first.sum(1), model), ctx)
    assert torch.bfloat16 in kinds


@pytest.mark.parametrize("alpha", [0, -1, "much"])
def test_a_bad_strength_is_refused(alpha: Any) -> None:
    with pytest.raises(MethodError, match="expected rdrop:alpha to be a number above 0"):
        RDrop(alpha)
