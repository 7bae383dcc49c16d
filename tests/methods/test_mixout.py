from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from method_helpers import make_batch, make_context, make_model, outputs
from torch import nn

from headstart.errors import MethodError
from headstart.hooks import Hooks
from headstart.methods.ema import EMA
from headstart.methods.mixout import Mixout, mix
from headstart.model import Model
from headstart.protocols import Context


def prepared(kind: str = "text", p: float = 0.5, seed: int = 0) -> tuple[Mixout, Model, Context]:
    model = make_model(kind)
    ctx = make_context(kind, seed, start={q: q.detach().clone() for q in model.parameters()})
    method = Mixout(p)
    assert method.adapt(model, ctx) is model
    with torch.no_grad():
        for q in model.parameters():
            q.add_(0.1)
    return method, model, ctx


def test_each_weight_is_one_of_two_values_and_the_mean_is_the_weight() -> None:
    start = torch.randn(200, 100, generator=torch.Generator().manual_seed(1))
    weight = (start + 1).requires_grad_()
    found = mix(weight, start, 0.7, torch.Generator().manual_seed(0))
    kept, swapped = (weight - 0.7 * start) / 0.3, (start - 0.7 * start) / 0.3
    is_swapped = torch.isclose(found, swapped, atol=1e-4)
    assert bool((is_swapped ^ torch.isclose(found, kept, atol=1e-4)).all())
    assert float(is_swapped.double().mean()) == pytest.approx(0.7, abs=0.01)
    assert float((found - weight).mean().detach()) == pytest.approx(0, abs=0.03)
    found.sum().backward()
    torch.testing.assert_close(weight.grad, (~is_swapped).float() / 0.3)


def test_a_training_pass_computes_with_mixed_weights_and_leaves_the_model_as_it_was() -> None:
    _, model, _ = prepared("image")
    batch = make_batch("image")
    seen: list[Any] = []
    layer = model.backbone.network.layers[0].point
    layer.register_forward_hook(lambda module, args, output: seen.append((module.weight, args[0], output)))
    parameter, names = layer.weight, list(model.state_dict())
    model.train()(batch)
    used, inputs, output = seen[0]
    assert used is not parameter and not torch.allclose(used, parameter)
    torch.testing.assert_close(output, torch.nn.functional.conv2d(inputs, used, layer.bias))
    assert layer.weight is parameter and list(model.state_dict()) == names


def test_the_weights_come_back_after_an_error() -> None:
    _, model, _ = prepared()
    layer = model.backbone.network.layers[0].mixer
    parameter = layer.weight
    with pytest.raises(AttributeError):
        model.train().backbone(None)
    assert layer.weight is parameter


def test_passes_without_dropout_and_copies_see_plain_weights() -> None:
    method, model, ctx = prepared()
    plain = make_model()
    plain.load_state_dict(model.state_dict())
    batch = make_batch()
    expected = outputs(plain, batch)
    assert torch.equal(outputs(model, batch), expected)
    assert torch.equal(outputs(deepcopy(model), batch), expected)
    model.train()
    with ctx.quiet(model):
        assert torch.equal(model(batch)[1], expected)
    method.finish(model, ctx)
    assert not method.remains() and not model.backbone._forward_pre_hooks and not model.backbone._forward_hooks


def test_frozen_and_new_weights_are_not_mixed() -> None:
    model = make_model("image")
    ctx = make_context("image", start={q: q.detach().clone() for q in model.parameters()})
    model.backbone.network.layers[0].point = nn.Conv2d(8, 8, 1)
    Mixout().adapt(model, ctx)
    model.backbone.requires_grad_(False)
    model.backbone.network.layers[0].point.requires_grad_(True)
    plain = deepcopy(model)
    for handles in (plain.backbone._forward_pre_hooks, plain.backbone._forward_hooks):
        handles.clear()
    batch = make_batch("image")
    assert torch.equal(model.train()(batch)[1], plain.train()(batch)[1])


def test_a_shared_weight_is_drawn_once() -> None:
    model = make_model()
    layers = model.backbone.network.layers
    layers[1].mixer.weight = layers[0].mixer.weight
    ctx = make_context(start={q: q.detach().clone() for q in model.parameters()})
    Mixout(0.5).adapt(model, ctx)
    seen: list[Any] = []
    for layer in layers[:2]:
        layer.mixer.register_forward_hook(lambda module, args, output: seen.append(module.weight))
    model.train()(make_batch())
    assert seen[0] is seen[1] and seen[0] is not layers[0].mixer.weight


def test_asking_for_the_start_is_what_keeps_it() -> None:
    def started(methods: dict[str, Any]) -> int:
        ctx = make_context()
        hooks = Hooks(methods, ctx.task, ctx.modality, seed=0)
        hooks.adapt(make_model())
        return len(hooks.start)

    assert started({"mixout": Mixout()}) == len(list(make_model().parameters()))
    assert started({"ema": EMA()}) == 0


def test_draws_come_from_the_context_and_its_state_alone() -> None:
    batch = make_batch("image")

    def second(seed: int, disturb: int, *, resume: bool = False) -> torch.Tensor:
        torch.manual_seed(disturb)
        method, model, _ = prepared("image", seed=seed)
        model.train()(batch)
        if resume:
            again, model, _ = prepared("image", seed=99)
            again.load_state(method.state(), model)
        return model.train()(batch)[1].detach()

    assert torch.equal(second(3, 1), second(3, 2))
    assert not torch.equal(second(3, 1), second(4, 1))
    assert torch.equal(second(3, 1), second(3, 1, resume=True))


@pytest.mark.parametrize("p", [0, 1.0, "half"])
def test_a_bad_share_is_refused(p: Any) -> None:
    with pytest.raises(MethodError, match=r"expected mixout:p to be a number above 0 and at most 0\.99"):
        Mixout(p)
