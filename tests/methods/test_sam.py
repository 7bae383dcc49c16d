from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_helpers import loss_of, make_batch, make_context, make_model
from torch import Tensor

from headstart.errors import MethodError
from headstart.methods.sam import SAM
from headstart.model import Model


def gradients(model: Model, kind: str) -> list[Tensor]:
    model.zero_grad()
    loss_of(model)(make_batch(kind)).backward()
    return [p.grad.clone() for p in model.parameters()]


def by_hand(model: Model, kind: str, rho: float, size: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The gradient uphill, one big vector at a time, in a network without dropout."""
    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    t = torch.cat([size(p.detach()).flatten() for p in model.parameters()])
    g = torch.cat([x.flatten() for x in gradients(model, kind)])
    up = w + rho * t * t * g / (t * g).norm()
    torch.nn.utils.vector_to_parameters(up, model.parameters())
    return gradients(model, kind)


@pytest.mark.parametrize(
    ("options", "rho", "size"),
    [
        ({}, 0.05, torch.ones_like),
        ({"rho": 0.3}, 0.3, torch.ones_like),
        ({"adaptive": True}, 0.5, lambda p: p.abs() + 0.01 if p.ndim >= 2 else torch.ones_like(p)),
    ],
)
def test_the_gradient_is_the_papers(options: dict[str, Any], rho: float, size: Any) -> None:
    model = make_model().eval()
    expected = by_hand(make_model().eval(), "text", rho, size)
    method = SAM(**options)
    method.adapt(model, make_context())
    loss = method.backward(make_batch(), loss_of(model), make_context())
    assert float(loss) == pytest.approx(float(loss_of(model)(make_batch()).detach()))
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_weights_return_exactly_and_statistics_move_once(kind: str) -> None:
    model, other = make_model(kind).train(), make_model(kind).train()
    before = [p.detach().clone() for p in model.parameters()]
    method = SAM(1.0)
    method.adapt(model, make_context(kind))
    method.backward(make_batch(kind), loss_of(model), make_context(kind))
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))
    other(make_batch(kind))
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_tiny_step_is_a_plain_run_and_micro_batches_add_up() -> None:
    model, plain = make_model().train(), make_model().train()
    method = SAM(1e-6)
    method.adapt(model, make_context())
    torch.manual_seed(0)
    for seed in (0, 1):
        method.backward(make_batch(seed=seed), loss_of(model), make_context())
    torch.manual_seed(0)
    for seed in (0, 1):
        loss_of(plain)(make_batch(seed=seed)).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)


def test_both_passes_draw_the_same_dropout() -> None:
    model = make_model().train()
    seen: list[Tensor] = []
    model.backbone.network.layers[0].dropout.register_forward_hook(
        lambda module, args, output: seen.append((output == 0) & (args[0] != 0))
    )
    method = SAM()
    method.adapt(model, make_context())
    method.backward(make_batch(), loss_of(model), make_context())
    assert len(seen) == 2 and bool(seen[0].any()) and torch.equal(seen[0], seen[1])


def test_frozen_parameters_do_not_move_and_make_no_gradient() -> None:
    model = make_model().train()
    model.backbone.requires_grad_(False)
    method = SAM()
    method.adapt(model, make_context())
    method.backward(make_batch(), loss_of(model), make_context())
    assert model.head.weight.grad is not None
    assert all(p.grad is None for p in model.backbone.parameters())


def test_weights_return_after_an_error() -> None:
    model = make_model().train()
    before = [p.detach().clone() for p in model.parameters()]
    method = SAM()
    method.adapt(model, make_context())
    calls: list[int] = []

    def fails_uphill(batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("uphill")
        return loss_of(model)(batch)

    with pytest.raises(ValueError, match="uphill"):
        method.backward(make_batch(), fails_uphill, make_context())
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))


def test_without_a_model_it_says_what_is_missing() -> None:
    with pytest.raises(MethodError, match=r"call adapt\(model, ctx\) before backward"):
        SAM().backward(make_batch(), loss_of(make_model()), make_context())


@pytest.mark.parametrize(
    ("options", "says"),
    [({"rho": 0}, "expected sam:rho to be a number above 0"), ({"adaptive": 1}, "sam:adaptive to be true or false")],
)
def test_a_bad_option_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        SAM(**options)
