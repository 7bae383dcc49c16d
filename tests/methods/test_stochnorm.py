from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from method_helpers import make_batch, make_context, make_model, outputs
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods.stochnorm import StochNorm
from headstart.model import Model
from headstart.protocols import Context


def prepared(p: float, seed: int = 0) -> tuple[StochNorm, Model, Context]:
    method, model, ctx = StochNorm(p), make_model("image"), make_context("image", seed)
    assert method.adapt(model, ctx) is model
    return method, model, ctx


def both(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """By the batch and by the moving statistics after they have seen it, from the formula."""
    c = (1, -1, 1, 1)
    gamma, beta = norm.weight.view(c), norm.bias.view(c)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    count = x.numel() / x.shape[1]
    moving = 0.9 * torch.zeros_like(mean) + 0.1 * mean, 0.9 * torch.ones_like(var) + 0.1 * var * count / (count - 1)

    def normal(m: Tensor, v: Tensor) -> Tensor:
        return gamma * (x - m.view(c)) / (v.view(c) + norm.eps).sqrt() + beta

    return normal(mean, var), normal(*moving)


def test_each_channel_is_normalised_one_way_or_the_other() -> None:
    _, model, _ = prepared(0.5)
    seen: list[tuple[nn.BatchNorm2d, Tensor, Tensor]] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda norm, args, output: seen.append((norm, args[0], output)))
    model.train()(make_batch("image"))
    ways = []
    for norm, x, output in seen:
        batch, moving = both(norm, x)
        for channel in range(x.shape[1]):
            by_batch = torch.allclose(output[:, channel], batch[:, channel], atol=1e-4)
            by_moving = torch.allclose(output[:, channel], moving[:, channel], atol=1e-4)
            assert by_batch != by_moving
            ways.append(by_moving)
    assert 0.3 < sum(ways) / len(ways) < 0.7


def test_statistics_move_as_they_would_anyway() -> None:
    _, model, _ = prepared(1e-9)
    plain, batch = make_model("image").train(), make_batch("image")
    torch.testing.assert_close(model.train()(batch)[1], plain(batch)[1])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


def test_gradients_flow_through_both_ways() -> None:
    _, model, _ = prepared(1.0)
    model.train()(make_batch("image"))[1].sum().backward()
    assert float(model.backbone.network.first.weight.grad.abs().sum()) > 0


def test_layers_with_an_activation_are_chosen_between_as_a_whole() -> None:
    layers = pytest.importorskip("timm.layers")
    norm = layers.BatchNormAct2d(5)
    model = nn.Module()
    model.backbone = nn.Sequential(norm)
    StochNorm(1.0).adapt(model, make_context("image"))
    x = torch.randn(4, 5, 3, 3)
    found = norm.train()(x)
    torch.testing.assert_close(found, both(norm, x)[1].relu(), atol=1e-4, rtol=1e-4)
    assert norm.training


def test_without_training_nothing_is_drawn_and_finish_leaves_nothing() -> None:
    method, model, ctx = prepared(0.5)
    batch = make_batch("image")
    expected = outputs(make_model("image"), batch)
    assert torch.equal(outputs(model, batch), expected)
    assert torch.equal(outputs(deepcopy(model), batch), expected)
    method.finish(model, ctx)
    assert not method.remains() and not any(m._forward_hooks for m in model.modules())


def test_draws_come_from_the_context_and_its_state_alone() -> None:
    batch = make_batch("image")

    def second(seed: int, disturb: int, *, resume: bool = False) -> Tensor:
        torch.manual_seed(disturb)
        method, model, _ = prepared(0.5, seed)
        model.train()(batch)
        if resume:
            again, other, _ = prepared(0.5, 99)
            again.load_state(method.state(), other)
            other.load_state_dict(model.state_dict())
            model = other
        return model.train()(batch)[1].detach()

    assert torch.equal(second(3, 1), second(3, 2))
    assert not torch.equal(second(3, 1), second(4, 1))
    assert torch.equal(second(3, 1), second(3, 1, resume=True))


def test_a_network_without_batchnorm_is_refused() -> None:
    with pytest.raises(MethodError, match="changes BatchNorm layers and this backbone has none: leave it out"):
        StochNorm().adapt(make_model("text"), make_context())


@pytest.mark.parametrize("p", [0, 1.5, "half"])
def test_a_bad_share_is_refused(p: Any) -> None:
    with pytest.raises(MethodError, match="expected stochnorm:p to be a number above 0 and at most 1"):
        StochNorm(p)
