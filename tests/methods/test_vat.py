"""vat: the paper's power iteration and divergence, with and without rows without labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from method_helpers import TinyTask, make_batch, make_context, make_model
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._distance import divergence, symmetric
from headstart.methods.vat import VAT
from headstart.values import Batch, View


class Regression(TinyTask):
    name = "regression"


class Multilabel(TinyTask):
    name = "multilabel"


def silent(kind: str = "text") -> Any:
    """A training model that draws no dropout and keeps its BatchNorms as at inference."""
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


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(1)


@pytest.mark.parametrize(("kind", "steps"), [("text", 1), ("text", 3), ("image", 1)])
def test_it_is_the_papers_divergence_in_the_direction_of_the_power_iteration(kind: str, steps: int) -> None:
    model, batch = silent(kind), make_batch(kind)
    found = VAT(eps=0.4, xi=0.05, steps=steps, weight=0.7).penalty(view_of(model, batch), make_context(kind))["vat"]
    shape = (-1, *[1] * (model.backbone.zero_shift(batch).ndim - 1))
    generator = torch.Generator().manual_seed(0)
    seed = int(torch.randint(2**62, (1,), generator=generator)) + sum(i * (i + 1) for i in range(len(batch)))
    d = torch.randn(model.backbone.zero_shift(batch).shape, generator=torch.Generator().manual_seed(seed % 2**62))
    if kind == "text":
        d = d * batch.inputs["attention_mask"][..., None]
    d = d / d.flatten(1).norm(dim=1).view(shape)
    p = model(batch)[1].softmax(1).detach()
    for _ in range(steps):
        r = (0.05 * d).requires_grad_()
        q = model(batch.replace(shift=r))[1].softmax(1)
        (g,) = torch.autograd.grad(kl(p, q).sum(), r)
        d = g / g.flatten(1).norm(dim=1).view(shape)
    r = 0.4 * d
    if kind == "image":
        r = (batch.inputs["pixels"] + r).clamp(0, 1) - batch.inputs["pixels"]
    q = model(batch.replace(shift=r))[1].softmax(1)
    expected = 0.7 * (kl(p, q) * batch.weight).sum() / batch.weight.sum()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=2e-3)
    assert float(found.detach()) > 0


def test_the_direction_is_worse_than_random_ones() -> None:
    model, batch = silent(), make_batch()
    found = float(VAT(eps=0.3, steps=2).penalty(view_of(model, batch), make_context())["vat"].detach())
    p = model(batch)[1].softmax(1)
    for seed in range(5):
        d = torch.randn(model.backbone.zero_shift(batch).shape, generator=torch.Generator().manual_seed(seed))
        r = 0.3 * d / d.flatten(1).norm(dim=1)[:, None, None]
        q = model(batch.replace(shift=r))[1].softmax(1)
        assert found > 2 * float(((kl(p, q) * batch.weight).sum() / batch.weight.sum()).detach())


def test_divergences_of_every_task() -> None:
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    for row, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        p, q = torch.tensor(x).softmax(0).tolist(), torch.tensor(y).softmax(0).tolist()
        classes = sum(s * math.log(s / t) for s, t in zip(p, q, strict=True))
        assert float(divergence(a, b, "classification")[row]) == pytest.approx(classes, rel=1e-5)
        s, t = torch.tensor(x).sigmoid().tolist(), torch.tensor(y).sigmoid().tolist()
        several = [u * math.log(u / v) + (1 - u) * math.log((1 - u) / (1 - v)) for u, v in zip(s, t, strict=True)]
        assert float(divergence(a, b, "multilabel")[row]) == pytest.approx(sum(several) / 3, rel=1e-5)
        squares = sum((u - v) ** 2 for u, v in zip(x, y, strict=True)) / 3
        assert float(divergence(a, b, "regression")[row]) == pytest.approx(squares / 2)
    for task in ("classification", "multilabel", "regression"):
        torch.testing.assert_close(symmetric(a, b, task), divergence(a, b, task) + divergence(b, a, task))


@pytest.mark.parametrize("task", [Regression(), Multilabel()])
def test_other_tasks_have_a_penalty_too(task: Any) -> None:
    model, batch = silent(), make_batch()
    assert float(VAT().penalty(view_of(model, batch), make_context(task=task))["vat"].detach()) > 0


def test_dropout_alone_costs_nothing_and_the_moved_rows_are_pulled() -> None:
    model, batch = make_model().train(), make_batch()
    view = view_of(model, batch)
    assert float(VAT(eps=1e-8, xi=1e-3).penalty(view, make_context())["vat"].detach()) == pytest.approx(0, abs=1e-6)
    model.zero_grad()
    VAT().penalty(view, make_context())["vat"].backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in (model.head.weight, model.backbone.network.layers[0].mixer.weight))


class Rows:
    """Rows without labels; remembers which were asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return 50

    def batch(self, rows: list[int]) -> Batch:
        self.asked.append(rows)
        return make_batch(rows=len(rows), seed=9).replace(labels=None, weight=torch.ones(len(rows)))


def test_rows_without_labels_count_as_much_as_the_labelled() -> None:
    model, batch, rows = silent(), make_batch(rows=4), Rows()
    both = float(VAT().penalty(view_of(model, batch), make_context(unlabelled=rows))["vat"].detach())
    alone = float(VAT().penalty(view_of(model, batch), make_context())["vat"].detach())
    assert len(rows.asked) == 1 and len(rows.asked[0]) == 4 and set(rows.asked[0]) <= set(range(50))
    other = 2 * both - alone
    assert other > 0 and other != pytest.approx(alone)
    VAT().penalty(view_of(model, batch), make_context(unlabelled=rows))
    VAT().penalty(view_of(model, batch), make_context(unlabelled=rows, seed=1))
    VAT().penalty(view_of(model, batch.replace(row=batch.row + 6)), make_context(unlabelled=rows))
    assert rows.asked[0] == rows.asked[1] and rows.asked[1] not in rows.asked[2:], "seeds and micro-batches differ"


def test_passes_without_dropout_are_left_alone_and_statistics_too() -> None:
    model, batch = make_model("image"), make_batch("image")
    view = view_of(model.eval(), batch)
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, args: calls.append(1))
    assert float(VAT().penalty(view, make_context("image"))["vat"].detach()) == 0 and not calls
    handle.remove()
    before = {name: value.clone() for name, value in model.named_buffers()}
    state = torch.get_rng_state()
    VAT().penalty(View(batch, view.features, view.outputs, view.losses, model.train()), make_context("image"))
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    assert torch.equal(state, torch.get_rng_state())


def test_the_passes_have_the_precision_of_the_run() -> None:
    model, batch = make_model().train(), make_batch()
    view, kinds = view_of(model, batch), []
    model.backbone.network.layers[0].mixer.register_forward_hook(lambda module, args, out: kinds.append(out.dtype))
    ctx = make_context(autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    model.zero_grad()
    VAT().penalty(view, ctx)["vat"].backward()
    assert set(kinds) == {torch.bfloat16} and len(kinds) == 3
    assert model.backbone.network.layers[0].mixer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{"eps": 0}, {"weight": -1}, {"steps": 0}, {"xi": "far"}])
def test_bad_options_are_refused(options: Any) -> None:
    with pytest.raises(MethodError, match="expected vat:"):
        VAT(**options)
