from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import make_batch, make_context, make_model
from torch import Tensor

from headstart.errors import MethodError
from headstart.methods.stochnorm import StochNorm
from headstart.methods.swa import SWA
from headstart.model import Model
from headstart.protocols import Context
from headstart.values import Progress

STEPS = 8


def at(step: int, kind: str) -> Context:
    """Eight steps in two epochs."""
    return make_context(kind, progress=Progress(step, STEPS, step // 4, 2))


def walk(method: SWA, kind: str, steps: range = range(STEPS), model: Model | None = None) -> tuple[Model, list[Any]]:
    """A model whose weights are moved at random, and what they were after each step.

    An epoch that is entered late is drawn from its beginning and what was done is passed over, as the loop resumes.
    """
    if model is None:
        model = make_model(kind)
        method.adapt(model, at(0, kind))
    model.train()
    seen = []
    for step in steps:
        begun = step - step % 4
        if step in (begun, steps.start):
            batches = method.stream([make_batch(kind, seed=s) for s in range(begun, begun + 4)], at(step, kind))
            for _ in range(step - begun):
                next(batches)
        next(batches)
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
        method.after_step(model, at(step, kind))
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return model, seen


@pytest.mark.parametrize(("start", "first"), [(0.5, 4), (0.6, 4), (0.75, 6), (0.0, 0)])
def test_the_average_is_uniform_over_the_steps_beyond_the_start(start: float, first: int) -> None:
    method = SWA(start)
    _, seen = walk(method, "text")
    found = method.weights()
    assert found is not None and method.steps_ == STEPS - first
    for name in seen[0]:
        expected = torch.stack([weights[name].double() for weights in seen[first:]]).mean(0)
        torch.testing.assert_close(found[name].double(), expected, atol=1e-6, rtol=1e-5)


def test_before_the_start_there_is_no_average() -> None:
    method = SWA(0.5)
    walk(method, "image", range(4))
    assert method.weights() is None and method.state() == {}


def averaged(found: Any) -> Model:
    """A plain model with these weights and torch's own recomputation of its statistics on the last epoch's batches."""
    model = make_model("image")
    model.load_state_dict(found)
    torch.optim.swa_utils.update_bn([make_batch("image", seed=s) for s in range(4, 8)], model)
    return model


def test_batchnorm_statistics_are_those_of_the_average() -> None:
    method = SWA(0.5)
    model, _ = walk(method, "image")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = dict(method.weights() or {})
    for name, value in averaged(found).state_dict().items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(norm.training and norm.momentum == 0.1 for norm in model.modules() if hasattr(norm, "running_mean"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_statistics_do_not_meet_the_hooks_of_other_methods() -> None:
    method, other = SWA(0.5), StochNorm(0.5)
    model = make_model("image")
    method.adapt(model, at(0, "image"))
    other.adapt(model, at(0, "image"))
    walk(method, "image", model=model)
    draws = other.state()["generator"].clone()
    found = dict(method.weights() or {})
    assert torch.equal(draws, other.state()["generator"])
    for name, value in averaged(found).state_dict().items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_a_batchnorm_that_does_not_move_keeps_its_statistics() -> None:
    method = SWA(0.5)
    model, _ = walk(method, "image")
    model.backbone.eval()
    found = dict(method.weights() or {})
    name = "backbone.network.top.running_mean"
    assert torch.equal(found[name], model.state_dict()[name])


@pytest.mark.parametrize("cut", [2, 6, 8])
def test_a_state_goes_on_with_the_same_average_and_statistics(cut: int) -> None:
    whole = SWA(0.5)
    walk(whole, "image")
    first = SWA(0.5)
    model, _ = walk(first, "image", range(cut))
    state = first.state()
    second = SWA(0.5)
    second.adapt(model, at(0, "image"))
    second.load_state(state, model)
    walk(second, "image", range(cut, STEPS), model)
    expected: dict[str, Tensor] = dict(whole.weights() or {})
    found = dict(second.weights() or {})
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_batches_are_remembered_only_where_they_are_needed() -> None:
    text, image = SWA(0.5, batches=3), SWA(0.5, batches=3)
    walk(text, "text")
    assert not text.recent_
    walk(image, "image", range(4))
    assert not image.recent_
    model, _ = walk(image, "image")
    assert len(image.recent_) == 3
    image.finish(model, at(8, "image"))
    assert not image.recent_ and not image.remains()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"start": 1}, "expected swa:start to be a number of at least 0 and at most"),
        ({"start": -0.5}, "expected swa:start to be a number of at least 0"),
        ({"batches": 0}, "expected swa:batches to be a whole number of at least 1"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        SWA(**options)
