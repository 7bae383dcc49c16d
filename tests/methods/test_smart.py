"""smart: the worst neighbour's symmetric divergence, and the distance to the averaged weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import TinyTask, make_batch, make_context, make_model
from torch import Tensor, nn

from headstart.attack import inside
from headstart.errors import MethodError
from headstart.methods._draws import of_batch
from headstart.methods.smart import Smart
from headstart.values import Batch, View


class Regression(TinyTask):
    name = "regression"


def silent(kind: str = "text") -> Any:
    model = make_model(kind).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.modules.batchnorm._BatchNorm):
            module.eval()
    if kind == "image":  # its answers hardly move otherwise, and rounding would be compared
        model.head.weight.data *= 300
    return model


def view_of(model: Any, batch: Batch) -> View:
    features, outputs = model(batch)
    return View(batch, features, outputs, outputs.sum(1), model)


def both_ways(a: Tensor, b: Tensor) -> Tensor:
    p, q = a.softmax(1), b.softmax(1)
    return (p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)


@pytest.mark.parametrize(("kind", "steps"), [("text", 1), ("text", 2), ("image", 2)])
def test_it_is_the_papers_regulariser_at_the_end_of_the_ascent(kind: str, steps: int) -> None:
    model, batch, eps = silent(kind), make_batch(kind), 0.2
    found = Smart(eps=eps, steps=steps, weight=3, proximal=0).penalty(view_of(model, batch), make_context(kind))
    assert set(found) == {"smart"}
    norm = "linf" if kind == "image" else "l2"
    zeros = model.backbone.zero_shift(batch)
    change = inside(zeros, eps, norm, batch, of_batch(torch.Generator().manual_seed(0), batch))
    clean = model(batch)[1].detach()
    for _ in range(steps):
        moved = change.clone().requires_grad_()
        (g,) = torch.autograd.grad(both_ways(clean, model(batch.replace(shift=moved))[1]).sum(), moved)
        rows = []
        for d, slope in zip(change, g, strict=True):
            length = 2.5 * eps / steps
            d = d + length * (slope.sign() if norm == "linf" else slope / slope.norm())
            rows.append(d.clamp(-eps, eps) if norm == "linf" else d * min(1.0, eps / float(d.norm())))
        change = torch.stack(rows)
        if kind == "image":
            change = (batch.inputs["pixels"] + change).clamp(0, 1) - batch.inputs["pixels"]
    rows_of = both_ways(clean, model(batch.replace(shift=change))[1])
    expected = 3 * float(((rows_of * batch.weight).sum() / batch.weight.sum()).detach())
    assert float(found["smart"].detach()) == pytest.approx(expected, rel=2e-3) and expected > 0


def test_the_averaged_weights_follow_with_momentum() -> None:
    model, method, ctx = silent(), Smart(momentum=0.9), make_context()
    expected: dict[str, Tensor] = {}
    for step in range(4):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * (step + 1))
        for name, p in model.named_parameters():
            value = p.detach().clone()
            expected[name] = 0.9 * expected[name] + 0.1 * value if name in expected else value
        method.after_step(model, ctx)
    for name, value in expected.items():
        torch.testing.assert_close(method.average_[name], value)
    batch = make_batch()
    view = view_of(model, batch)
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = method.penalty(view, ctx)["smart_proximal"]
    assert all(torch.equal(own[name], p) for name, p in model.named_parameters())
    twin = silent()
    twin.load_state_dict(expected, strict=False)
    rows = both_ways(view.outputs.detach(), twin(batch)[1].detach())
    assert float(found.detach()) == pytest.approx(float((rows * batch.weight).sum() / batch.weight.sum()), rel=1e-4)


def test_the_proximal_term_begins_after_the_first_step_and_can_be_left_out() -> None:
    model, batch = silent(), make_batch()
    method = Smart()
    assert set(method.penalty(view_of(model, batch), make_context())) == {"smart"}
    method.after_step(model, make_context())
    assert set(method.penalty(view_of(model, batch), make_context())) == {"smart", "smart_proximal"}
    without = Smart(proximal=0)
    without.after_step(model, make_context())
    assert without.state() == {}


def test_state_comes_back() -> None:
    model, method = silent(), Smart()
    method.after_step(model, make_context())
    again = Smart()
    again.load_state(method.state(), model)
    assert again.average_.keys() == method.average_.keys()
    assert all(torch.equal(again.average_[name], value) for name, value in method.average_.items())
    method.finish(model, make_context())
    assert method.state() == {}


def test_dropout_alone_costs_nothing_and_both_answers_are_pulled() -> None:
    model, batch = make_model().train(), make_batch()
    view = view_of(model, batch)
    small = Smart(eps=1e-8).penalty(view, make_context())["smart"]
    assert float(small.detach()) == pytest.approx(0, abs=1e-6)
    model.zero_grad()
    Smart().penalty(view, make_context())["smart"].backward()
    assert float(model.backbone.network.layers[0].mixer.weight.grad.abs().sum()) > 0


def test_regression_is_the_squared_difference() -> None:
    model, batch = silent(), make_batch()
    method = Smart(proximal=1)
    with torch.no_grad():
        method.after_step(model, make_context())
        model.head.bias.add_(0.5)
    found = method.penalty(view_of(model, batch), make_context(task=Regression()))
    assert float(found["smart_proximal"].detach()) == pytest.approx(0.25, rel=1e-4)


def test_passes_without_dropout_are_left_alone_and_statistics_too() -> None:
    model, batch = make_model("image"), make_batch("image")
    view = view_of(model.eval(), batch)
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, args: calls.append(1))
    assert float(Smart().penalty(view, make_context("image"))["smart"].detach()) == 0 and not calls
    handle.remove()
    before = {name: value.clone() for name, value in model.named_buffers()}
    method = Smart()
    method.after_step(model, make_context("image"))
    method.penalty(View(batch, view.features, view.outputs, view.losses, model.train()), make_context("image"))
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())


@pytest.mark.parametrize(
    "options", [{"eps": 0}, {"weight": 0}, {"steps": 0}, {"norm": "l1"}, {"proximal": -1}, {"momentum": 1}]
)
def test_bad_options_are_refused(options: Any) -> None:
    with pytest.raises(MethodError, match="expected smart:"):
        Smart(**options)


def test_a_ball_of_unknown_size_is_refused() -> None:
    with pytest.raises(MethodError, match="give smart:eps"):
        Smart(norm="linf").adapt(make_model(), make_context())
