"""GradNorm against the equations of section 3, written out."""

from __future__ import annotations

import pytest
import torch
from method_helpers import loss_of, make_batch, make_context, make_model
from torch import Tensor

from headstart.errors import MethodError
from headstart.methods._tasks import by_task
from headstart.methods.gradnorm import GradNorm
from headstart.tasks.multitask import Multitask
from headstart.values import Batch

PAIRS = [("x", "a"), ("x", "b"), ("x", "c"), ("y", "a"), ("y", "b"), ("y", "c")]
TASK = Multitask.fit(PAIRS, tasks={name: {"name": "classification"} for name in "xy"})


def mixed() -> Batch:
    return make_batch(rows=8).replace(origin=torch.tensor([0, 0, 0, 1] * 2))


def norm_of(loss: Tensor, block: torch.nn.Module) -> float:
    found = torch.autograd.grad(loss, list(block.parameters()), retain_graph=True)
    return float(torch.cat([g.flatten() for g in found]).norm())


def test_weights_follow_the_slope_of_the_papers_loss() -> None:
    model, method, batch = make_model().eval(), GradNorm(alpha=1.5, rate=0.1), mixed()
    method.adapt(model, make_context(task=TASK))
    total, mean = batch.weight.sum(), loss_of(model)
    method.first_ = {0: 2.0, 1: 0.5}
    weights = torch.tensor([1.2, 0.8])
    method._weigh(weights)
    # By hand: G_i of the weighed parts in the last block, r_i from the tasks' mean losses.
    losses = [mean(part) * part.weight.sum() / total for _, part in by_task(batch)]
    sizes = [float(w) * norm_of(loss, model.backbone.blocks[-1]) for w, loss in zip(weights, losses, strict=True)]
    pace = [float(mean(part).detach()) / first for (_, part), first in zip(by_task(batch), (2.0, 0.5), strict=True)]
    wanted = [sum(sizes) / 2 * (p / (sum(pace) / 2)) ** 1.5 for p in pace]
    slope = torch.tensor(
        [(1.0 if g > t else -1.0) * g / w for g, t, w in zip(sizes, wanted, weights.tolist(), strict=True)]
    )
    probe = weights.clone().requires_grad_()
    adam = torch.optim.Adam([probe], lr=0.1)
    probe.grad = slope
    adam.step()
    expected = probe.detach() * 2 / probe.detach().sum()
    model.zero_grad()
    value = method.backward(batch, lambda part: mean(part) * part.weight.sum() / total, make_context(task=TASK))
    assert torch.allclose(method.weights_.detach(), expected, atol=1e-5)
    assert float(method.weights_.detach().sum()) == pytest.approx(2)
    assert torch.allclose(value, mean(batch), atol=1e-6)
    # The gradients are those of the weighed sum, with the weights from before the step.
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    sum(
        float(w) * mean(part) * part.weight.sum() / total for w, (_, part) in zip(weights, by_task(batch), strict=True)
    ).backward()  # type: ignore[union-attr]
    for p, g in zip((p for p in model.parameters() if p.grad is not None), found, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-6)


def test_the_task_with_the_smaller_gradient_gains_weight() -> None:
    model, method, batch = make_model().eval(), GradNorm(alpha=0.0), mixed()
    method.adapt(model, make_context(task=TASK))
    total, mean = batch.weight.sum(), loss_of(model)

    def loss(part: Batch) -> Tensor:
        return (10.0 if part.origin[0] == 0 else 0.1) * mean(part) * part.weight.sum() / total

    for _ in range(5):
        method.backward(batch, loss, make_context(task=TASK))
    assert bool(method.weights_[1] > 1) and bool(method.weights_[0] < 1)


def test_a_batch_that_lacks_a_task_leaves_the_weights() -> None:
    model, method = make_model().eval(), GradNorm()
    method.adapt(model, make_context(task=TASK))
    method.backward(make_batch(), loss_of(model), make_context(task=TASK))
    assert method.weights_.tolist() == [1, 1] and method.first_.keys() == {0}


def test_its_state_comes_back() -> None:
    model, method, batch = make_model().eval(), GradNorm(), mixed()
    context = make_context(task=TASK)
    method.adapt(model, context)
    method.backward(batch, loss_of(model), context)
    again = GradNorm()
    again.adapt(model, context)
    again.load_state(method.state(), model)
    for each in (method, again):
        each.backward(batch, loss_of(model), context)
    assert torch.equal(method.weights_, again.weights_) and method.first_ == again.first_


@pytest.mark.parametrize("options", [{"alpha": -1}, {"rate": 0}, {"rate": "fast"}])
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(MethodError, match="gradnorm:"):
        GradNorm(**options)  # type: ignore[arg-type]
