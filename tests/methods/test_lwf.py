from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import make_batch, make_context, make_model
from torch import nn

from headstart.errors import MethodError
from headstart.methods.adapter import Adapter
from headstart.methods.lwf import LwF
from headstart.model import Model
from headstart.protocols import Context
from headstart.values import View


def prepared(kind: str, **options: Any) -> tuple[LwF, Model, Context]:
    """The method, a model that has moved since, and the context."""
    model = make_model(kind)
    ctx = make_context(kind, start={p: p.detach().clone() for p in model.parameters()})
    method = LwF(**options)
    assert method.adapt(model, ctx) is model
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return method, model, ctx


def view(model: Model, kind: str) -> View:
    batch = make_batch(kind)
    features, outputs = model(batch)
    return View(batch, features, outputs, outputs.sum(1), model)


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("of", ["pooled", "tokens"])
def test_the_value_is_the_relative_distance_of_each_row(kind: str, of: str) -> None:
    method, model, ctx = prepared(kind, weight=0.6, of=of)
    seen = view(model.eval(), kind)
    before = make_model(kind).eval().backbone(seen.batch)
    total = 0.0
    for row, weight in enumerate(seen.batch.weight.tolist()):

        def vectors(features: Any, row: int = row) -> np.ndarray:
            if of == "pooled":
                return np.asarray(features.pooled[row].detach().double())
            if kind == "image":
                return np.asarray(features.map[row].detach().double())
            return np.asarray(features.tokens[row][seen.batch.inputs["attention_mask"][row] == 1].detach().double())

        now, then = vectors(seen.features), vectors(before)
        total += weight * float(((now - then) ** 2).sum() / (then**2).sum())
    expected = 0.6 * total / float(seen.batch.weight.sum())
    assert float(method.penalty(seen, ctx)["lwf"].detach()) == pytest.approx(expected, rel=1e-4)


def test_the_gradient_reaches_the_model_and_never_the_start() -> None:
    method, model, ctx = prepared("text")
    method.penalty(view(model.train(), "text"), ctx)["lwf"].backward()
    assert float(model.backbone.network.embedding.weight.grad.abs().sum()) > 0
    assert not any(p.requires_grad or p.grad is not None for p in method.start_.parameters())


def test_the_frozen_start_shares_the_memory_of_the_starting_values() -> None:
    method, _, ctx = prepared("text")
    kept = {value.data_ptr() for value in ctx.start.values()}
    assert {p.data_ptr() for p in method.start_.parameters()} <= kept


def test_at_the_start_the_distance_is_zero_even_behind_surgery() -> None:
    model = make_model()
    ctx = make_context(start={p: p.detach().clone() for p in model.parameters()})
    Adapter().adapt(model, ctx)
    with torch.no_grad():  # surgery that does change values: the start is kept nevertheless
        model.backbone.network.top.weight.mul_(2)
    method = LwF()
    method.adapt(model, ctx)
    with torch.no_grad():
        model.backbone.network.top.weight.div_(2)
    assert float(method.penalty(view(model.eval(), "text"), ctx)["lwf"].detach()) == pytest.approx(0, abs=1e-12)


def test_statistics_of_the_start_do_not_move_and_finish_lets_it_go() -> None:
    method, model, ctx = prepared("image")
    before = {name: value.clone() for name, value in method.start_.named_buffers()}
    method.penalty(view(model.train(), "image"), ctx)
    assert all(torch.equal(before[name], value) for name, value in method.start_.named_buffers())
    names = set(model.state_dict())
    assert method.finish(model, ctx) is model and not method.remains()
    assert set(model.state_dict()) == names and not hasattr(method, "start_")
    assert isinstance(model.backbone, nn.Module)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"weight": 0}, "expected lwf:weight to be a number above 0"), ({"of": "token"}, "did you mean 'tokens'")],
)
def test_a_bad_option_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        LwF(**options)
