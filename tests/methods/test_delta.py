from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_helpers import make_batch, make_context, make_model

from headstart.errors import MethodError
from headstart.methods.delta import Delta
from headstart.model import Model
from headstart.protocols import Context
from headstart.values import Progress, View


def prepared(kind: str, **options: Any) -> tuple[Delta, Model, Context]:
    """The method, a model that has moved since, and the context."""
    model = make_model(kind)
    ctx = make_context(kind, start={p: p.detach().clone() for p in model.parameters()})
    method = Delta(**options)
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


def pooled_and_map(model: Model, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps as (N,P,C), which places count, and pooled vectors, all in float64."""
    batch = make_batch(kind)
    features = model.backbone(batch)
    if kind == "text":
        values, mask = features.tokens, batch.inputs["attention_mask"]
    else:
        values = features.map.flatten(2).transpose(1, 2)
        mask = torch.ones(values.shape[:2])
    return tuple(np.asarray(x.detach().double()) for x in (values, mask, features.pooled))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_value_is_the_papers_with_importances_to_first_order(kind: str) -> None:
    method, model, ctx = prepared(kind, weight=0.3)
    seen = view(model.train(), kind)
    found = method.penalty(seen, ctx)["delta"]
    start = make_model(kind).eval()
    then, mask, pooled = pooled_and_map(start, kind)
    now = seen.features.tokens if kind == "text" else seen.features.map.flatten(2).transpose(1, 2)
    # Both tiny networks pool by the mean, so a channel's slope is that of its pooled value, known in closed form.
    w, b = start.head.weight.detach().double().numpy(), start.head.bias.detach().double().numpy()
    logits = pooled @ w.T + b
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = (p - np.eye(3)[np.asarray(seen.batch.labels)]) @ w
    rise = (-slope * pooled).mean(0)
    z = (rise - rise.mean()) / rise.std()
    attention = np.exp(z / 5) / np.exp(z / 5).sum()
    change = (np.asarray(now.detach().double()) - then) ** 2 * mask[..., None]
    rows = (change.sum(1) * attention).sum(1)
    weight = np.asarray(seen.batch.weight.double())
    assert float(found.detach()) == pytest.approx(0.3 * (rows * weight).sum() / weight.sum(), rel=1e-3)


def test_importance_is_near_the_rise_of_the_loss_when_a_small_channel_is_removed() -> None:
    method, model, ctx = prepared("text")
    with torch.no_grad():
        method.start_.backbone.network.top.weight.mul_(0.01)
    method.penalty(view(model.train(), "text"), ctx)
    batch = make_batch()
    with torch.no_grad():
        pooled = method.start_.backbone(batch).pooled
        head = method.start_.head
        full = F.cross_entropy(head(pooled), batch.labels)
        for channel in range(pooled.shape[1]):
            less = pooled.clone()
            less[:, channel] = 0
            removed = F.cross_entropy(head(less), batch.labels) - full
            measured = method.importance_[channel] / method.rows_
            assert float(measured) == pytest.approx(float(removed), abs=2e-4)


def test_without_attention_all_channels_weigh_the_same() -> None:
    method, model, ctx = prepared("image", weight=1.0, attend=False)
    seen = view(model.train(), "image")
    then = make_model("image").eval().backbone(seen.batch).map
    rows = (seen.features.map - then).square().sum((1, 2, 3)) / then.shape[1]
    expected = (rows * seen.batch.weight).sum() / seen.batch.weight.sum()
    assert float(method.penalty(seen, ctx)["delta"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_importances_are_measured_in_the_first_epoch_and_kept() -> None:
    method, model, ctx = prepared("text")
    method.penalty(view(model.train(), "text"), ctx)
    kept = method.importance_.clone()
    later = make_context(start=ctx.start, progress=Progress(9, 10, 1, 2))
    method.penalty(view(model, "text"), later)
    assert torch.equal(kept, method.importance_)
    assert not any(p.grad is not None for p in method.start_.parameters())


def test_the_head_is_pulled_to_zero() -> None:
    method, model, ctx = prepared("text", beta=0.4)
    squares = sum(float((p.detach().double() ** 2).sum()) for p in model.head.parameters())
    assert float(method.prior(model, ctx)["delta_head"].detach()) == pytest.approx(0.2 * squares, rel=1e-5)
    assert Delta(beta=0).prior(model, ctx) == {}


def test_a_state_brings_importances_and_the_starting_head_back() -> None:
    method, model, ctx = prepared("text")
    method.penalty(view(model.train(), "text"), ctx)
    other, changed, _ = prepared("text")
    with torch.no_grad():
        other.start_.head.weight.zero_()
    other.load_state(method.state(), changed)
    assert torch.equal(other.importance_, method.importance_) and other.rows_ == method.rows_
    assert torch.equal(other.start_.head.weight, method.start_.head.weight)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": 0}, "expected delta:weight to be a number above 0"),
        ({"beta": -1}, "expected delta:beta to be a number of at least 0"),
        ({"attend": 1}, "expected delta:attend to be true or false"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        Delta(**options)
