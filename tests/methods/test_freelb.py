"""freelb: algorithm 1 of the paper, written row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import TextBackbone, loss_of, make_batch, make_context, make_model
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods.freelb import FreeLB
from headstart.model import Model
from headstart.values import Batch


def run(
    method: FreeLB, model: Model, batch: Batch, compute: Any = None, **changes: Any
) -> tuple[dict[str, Tensor], float]:
    ctx = make_context(model.backbone.modality, **changes)  # type: ignore[arg-type]
    method.adapt(model, ctx)
    model.zero_grad()
    loss = method.backward(batch, compute or loss_of(model), ctx)
    assert not loss.requires_grad
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, float(loss)


def starting_point(model: Model, batch: Batch, eps: float, seed: int = 0) -> Tensor:
    """delta_0 = U(-eps, eps) / sqrt(n) on what is not padding; on pixels U(-eps, eps), within bounds."""
    zeros = model.backbone.zero_shift(batch)
    spot = 2 * torch.rand(zeros.shape, generator=torch.Generator().manual_seed(seed)) - 1
    rows = []
    for row, mask in enumerate(batch.inputs.get("attention_mask", torch.ones(len(batch), 1))):
        if "pixels" in batch.inputs:
            pixels = batch.inputs["pixels"][row]
            rows.append((pixels + eps * spot[row]).clamp(0, 1) - pixels)
        else:
            n = int(mask.sum()) * zeros.shape[-1]
            rows.append(eps * spot[row] * mask[:, None] / n**0.5)
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_it_is_algorithm_1(kind: str) -> None:
    model, batch, eps, step, steps = make_model(kind).eval(), make_batch(kind), 0.2, 0.15, 3
    change, expected, losses = starting_point(model, batch, eps), {}, []
    for _ in range(steps):
        model.zero_grad()
        change = change.clone().requires_grad_()
        loss = loss_of(model)(batch.replace(shift=change))
        loss.backward()
        losses.append(float(loss.detach()))
        for name, p in model.named_parameters():
            if p.grad is not None:
                expected[name] = expected.get(name, 0) + p.grad / steps
        assert change.grad is not None
        rows = []
        for d, g, place in zip(change.detach(), change.grad, range(len(batch)), strict=True):
            if kind == "image":
                pixels = batch.inputs["pixels"][place]
                d = (d + step * g.sign()).clamp(-eps, eps)
                rows.append((pixels + d).clamp(0, 1) - pixels)
            else:
                d = d + step * g / g.norm()
                rows.append(d * min(1.0, eps / float(d.norm())))
        change = torch.stack(rows)
    found, value = run(FreeLB(eps=eps, step=step, steps=steps), model, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert value == pytest.approx(sum(losses) / steps, rel=1e-5)


def test_all_passes_of_a_batch_have_the_same_dropout() -> None:
    model, batch = make_model().train(), make_batch()
    seen: list[Tensor] = []
    model.backbone.network.layers[0].dropout.register_forward_hook(lambda module, given, out: seen.append(out == 0))
    run(FreeLB(eps=1e-9), model, batch)
    assert len(seen) == 3 and seen[0].any()
    assert all(torch.equal(mask, seen[0]) for mask in seen)
    run(FreeLB(eps=1e-9), model, batch)
    assert not torch.equal(seen[3], seen[0])


def test_running_statistics_move_once() -> None:
    model, batch = make_model("image").train(), make_batch("image")
    run(FreeLB(), model, batch)
    counts = [int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts and set(counts) == {1}


def test_the_default_ball_is_that_of_pgd() -> None:
    for kind, norm, eps in (("text", "l2", 0.3), ("image", "linf", 8 / 255)):
        model, batch, seen = make_model(kind).eval(), make_batch(kind), []
        compute = loss_of(model)

        def watch(given: Batch, seen: Any = seen, compute: Any = compute) -> Tensor:
            seen.append(given.shift.detach())
            return compute(given)  # type: ignore[no-any-return]

        run(FreeLB(), model, batch, watch)
        flat = seen[-1].flatten(1)
        size = flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)
        assert (size <= eps + 1e-6).all() and float(size.max()) == pytest.approx(eps, rel=1e-4)
        assert not torch.equal(seen[0], seen[1])


def test_padding_is_left_alone_at_the_start_and_draws_come_from_the_context() -> None:
    model, batch, seen = make_model().eval(), make_batch(), []
    compute = loss_of(model)
    state = torch.get_rng_state()
    for seed in (1, 1, 2):
        run(FreeLB(steps=1), model, batch, lambda b: (seen.append(b.shift.detach()), compute(b))[1], seed=seed)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert not seen[0][batch.inputs["attention_mask"] == 0].any()


def test_passes_are_counted_and_bad_options_refused() -> None:
    model, calls = make_model(), []
    compute = loss_of(model)
    run(FreeLB(steps=4), model, make_batch(), lambda b: (calls.append(1), compute(b))[1])
    assert FreeLB(steps=4).passes() == len(calls) == 4
    assert not FreeLB().remains()
    for options in ({"eps": 0}, {"steps": 0}, {"step": -1}, {"norm": "l1"}):
        with pytest.raises(MethodError, match="expected freelb:"):
            FreeLB(**options)
    with pytest.raises(MethodError, match="give freelb:eps"):
        FreeLB(norm="linf").adapt(make_model(), make_context())


def test_what_cannot_be_attacked_says_so() -> None:
    class Deaf(TextBackbone):
        def features(self, batch: Batch) -> Any:
            return super().features(batch.replace(shift=None))

    with pytest.raises(MethodError, match="ignores a shift"):
        run(FreeLB(), Model(Deaf(), nn.Linear(16, 3)), make_batch())
