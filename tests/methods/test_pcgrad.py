"""PCGrad against algorithm 1 of the paper, written out on flat vectors."""

from __future__ import annotations

import torch
from method_helpers import loss_of, make_batch, make_context, make_model
from torch import Tensor, nn

from headstart.methods._tasks import by_task
from headstart.methods.pcgrad import PCGrad
from headstart.model import Model
from headstart.values import Batch


def mixed(kind: str = "text") -> Batch:
    batch = make_batch(kind, rows=9)
    return batch.replace(origin=torch.tensor([0, 1, 2] * 3))


def whole(model: Model, batch: Batch) -> nn.Module:
    """The loss as the loop makes it: parts are divided by the weight of the whole."""
    total = batch.weight.sum()
    mean = loss_of(model)
    return lambda part: mean(part) * part.weight.sum() / total  # type: ignore[return-value]


def flat(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def test_the_gradient_of_a_mixed_batch_is_the_sum_of_its_tasks() -> None:
    model, batch = make_model().eval(), mixed()
    loss = whole(model, batch)
    parameters = list(model.parameters())
    loss(batch).backward()
    together = flat(parameters)
    model.zero_grad()
    parts = by_task(batch)
    assert [number for number, _ in parts] == [0, 1, 2] and [part.row.tolist() for _, part in parts][1] == [1, 4, 7]
    for _, part in parts:
        loss(part).backward()
    assert torch.allclose(flat(parameters), together, atol=1e-6)


def test_it_is_algorithm_1() -> None:
    model, batch, method = make_model().eval(), mixed(), PCGrad()
    loss = whole(model, batch)
    method.adapt(model, make_context())
    shared = list(model.backbone.parameters())
    each = []
    for _, part in by_task(batch):
        model.zero_grad()
        loss(part).backward()
        each.append(flat(shared))
    assert min(float(a @ b) for a in each for b in each) < 0, "the tasks must disagree for the test to say anything"
    order = torch.Generator().manual_seed(3)
    expected = torch.zeros_like(each[0])
    for i, own in enumerate(each):
        g = own.clone()
        others = [j for j in range(3) if j != i]
        for place in torch.randperm(2, generator=order).tolist():
            other = each[others[place]]
            if g @ other < 0:
                g = g - (g @ other) / (other @ other) * other
        expected = expected + g
    model.zero_grad()
    value = method.backward(batch, loss, make_context(seed=3))
    assert torch.allclose(flat(shared), expected, atol=1e-6)
    assert torch.allclose(value, loss(batch), atol=1e-6)
    head = list(model.head.parameters())
    found = flat(head)
    model.zero_grad()
    loss(batch).backward()
    assert torch.allclose(found, flat(head), atol=1e-6), "heads are left alone"


def test_two_opposed_tasks_end_orthogonal_to_each_other() -> None:
    method = PCGrad()
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    first, second = (row[0] for row in method._operated([[a], [b]], make_context()))
    assert abs(float(first @ b)) < 1e-6 and abs(float(second @ a)) < 1e-6
    agreeing = method._operated([[a], [torch.tensor([1.0, 1.0])]], make_context())
    assert torch.equal(agreeing[0][0], a)


def test_gradients_add_to_what_other_micro_batches_left() -> None:
    model, batch, method = make_model().eval(), mixed(), PCGrad()
    loss = whole(model, batch)
    method.adapt(model, make_context())
    method.backward(batch, loss, make_context())
    once = flat(list(model.parameters()))
    method.backward(batch, loss, make_context())
    assert torch.allclose(flat(list(model.parameters())), 2 * once, atol=1e-6)


def test_a_batch_of_one_task_is_left_alone() -> None:
    model, batch, method = make_model().eval(), make_batch(rows=6), PCGrad()
    loss = whole(model, batch)
    method.adapt(model, make_context())
    method.backward(batch, loss, make_context())
    found = flat(list(model.parameters()))
    model.zero_grad()
    loss(batch).backward()
    assert torch.equal(found, flat(list(model.parameters())))
