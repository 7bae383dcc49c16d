"""fgm and pgd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from method_helpers import TextBackbone, loss_of, make_batch, make_context, make_model
from torch import Tensor, nn

from headstart.attack import inside, project, within
from headstart.errors import MethodError
from headstart.methods._attack import radius
from headstart.methods.fgm import FGM
from headstart.methods.pgd import PGD
from headstart.model import Model
from headstart.values import Batch


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run(method: Any, model: Model, batch: Batch, **changes: Any) -> tuple[dict[str, Tensor], float]:
    ctx = make_context(model.backbone.modality, **changes)  # type: ignore[arg-type]
    method.adapt(model, ctx)
    model.zero_grad()
    loss = method.backward(batch, loss_of(model), ctx)
    assert not loss.requires_grad
    return gradients(model), float(loss)


def slope(model: Model, batch: Batch, shift: Tensor) -> Tensor:
    shift = shift.clone().requires_grad_()
    loss = loss_of(model)(batch.replace(shift=shift))
    return torch.autograd.grad(loss, shift)[0]


def norms(change: Tensor) -> Tensor:
    return change.flatten(1).norm(dim=1)


def expected_gradients(model: Model, batch: Batch, change: Tensor, clean: float, other: float) -> dict[str, Tensor]:
    model.zero_grad()
    compute = loss_of(model)
    (clean * compute(batch) + other * compute(batch.replace(shift=change))).backward()
    found = gradients(model)
    model.zero_grad()
    return found


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4, msg=name)


def test_fgm_is_miyatos_formula() -> None:
    model, batch = make_model().eval(), make_batch()
    g = slope(model, batch, model.backbone.zero_shift(batch))
    change = 0.7 * g / norms(g)[:, None, None]
    expected = expected_gradients(model, batch, change, 1.0, 0.5)
    compute = loss_of(model)
    value = float((compute(batch) + 0.5 * compute(batch.replace(shift=change))).detach())
    found, loss = run(FGM(eps=0.7, weight=0.5), model, batch)
    close(found, expected)
    assert loss == pytest.approx(value, rel=1e-5)


def test_fgm_keeps_pixels_in_range_and_raises_the_loss() -> None:
    model, batch = make_model("image").eval(), make_batch("image")
    seen: list[Batch] = []
    compute = loss_of(model)

    def watch(given: Batch) -> Tensor:
        seen.append(given)
        return compute(given)  # type: ignore[no-any-return]

    method = FGM(eps=0.5)
    method.adapt(model, make_context("image"))
    method.backward(batch, watch, make_context("image"))
    clean, attacked = seen[-2], seen[-1]
    assert clean is batch and attacked.shift is not None
    moved = batch.inputs["pixels"] + attacked.shift
    assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6
    assert (norms(attacked.shift) <= 0.5 + 1e-5).all()
    assert compute(attacked) > compute(clean)


def test_default_radii_grow_with_the_picture() -> None:
    for size in (8, 32):
        model = make_model("image").eval()
        batch = make_batch("image").replace(inputs={"pixels": torch.full((6, 3, size, size), 0.5)})
        torch.manual_seed(0)
        batch = batch.replace(inputs={"pixels": batch.inputs["pixels"] + 0.1 * torch.rand(6, 3, size, size)})
        seen: list[Batch] = []
        method = FGM()
        method.adapt(model, make_context("image"))
        method.backward(batch, lambda b, s=seen, m=model: (s.append(b), loss_of(m)(b))[1], make_context("image"))  # type: ignore[misc]
        assert seen[-1].shift is not None
        expected = 0.5 * math.sqrt(size * size * 3 / 3072)
        torch.testing.assert_close(norms(seen[-1].shift), torch.full((6,), expected))


def reference_pgd(model: Model, batch: Batch, eps: float, step: float, steps: int, norm: str) -> Tensor:
    """The iteration of Madry et al. row by row, from the centre."""
    change = model.backbone.zero_shift(batch)
    for _ in range(steps):
        g = slope(model, batch, change)
        rows = []
        for d, row in zip(change, g, strict=True):
            d = d + step * (row.sign() if norm == "linf" else row / row.norm())
            d = d.clamp(-eps, eps) if norm == "linf" else d * min(1.0, eps / float(d.norm()))
            rows.append(d)
        change = torch.stack(rows)
        if "pixels" in batch.inputs:
            change = (batch.inputs["pixels"] + change).clamp(0, 1) - batch.inputs["pixels"]
    return change


@pytest.mark.parametrize(("kind", "norm"), [("text", "l2"), ("image", "l2"), ("image", "linf")])
def test_pgd_is_madrys_iteration(kind: str, norm: str) -> None:
    model, batch = make_model(kind).eval(), make_batch(kind)
    change = reference_pgd(model, batch, 0.2, 0.15, 3, norm)
    expected = expected_gradients(model, batch, change, 0.4, 0.6)
    method = PGD(eps=0.2, step=0.15, steps=3, norm=norm, clean=0.4, random=False)
    found, _ = run(method, model, batch)
    close(found, expected)


def test_pgd_defaults_by_kind() -> None:
    model, batch = make_model().eval(), make_batch()
    expected = expected_gradients(model, batch, reference_pgd(model, batch, 0.3, 2.5 * 0.3 / 3, 3, "l2"), 0.5, 0.5)
    close(run(PGD(random=False), model, batch)[0], expected)
    model, batch = make_model("image").eval(), make_batch("image")
    eps = 8 / 255
    expected = expected_gradients(model, batch, reference_pgd(model, batch, eps, 2.5 * eps / 3, 3, "linf"), 0.5, 0.5)
    close(run(PGD(random=False), model, batch)[0], expected)
    with pytest.raises(MethodError, match="give pgd:eps"):
        PGD(norm="linf").adapt(make_model(), make_context())


def test_radii_of_sounds() -> None:
    """A root mean square of 0.001 for the whole row, and 0.002 for one sample."""
    ctx, change = make_context("audio"), torch.zeros(2, 400)
    assert radius(None, change, ctx, "l2") == pytest.approx(0.001 * 20)
    assert radius(None, change, ctx, "linf") == 0.002
    batch = make_batch("audio")
    assert torch.equal(within(torch.full((6, 5), 3.0), batch), torch.full((6, 5), 3.0))
    start = inside(torch.zeros_like(batch.inputs["wave"]), 0.5, "l2", batch, torch.Generator().manual_seed(0))
    beyond = torch.arange(start.shape[1]) >= batch.inputs["lengths"][:, None]
    assert not bool(start[beyond].any()) and bool((start.norm(dim=1) <= 0.5).all()) and bool(start.any(1).all())


def test_pgd_without_clean_rows_is_madrys_objective() -> None:
    model, batch = make_model("image").eval(), make_batch("image")
    expected = expected_gradients(model, batch, reference_pgd(model, batch, 0.1, 0.05, 2, "linf"), 0.0, 1.0)
    close(run(PGD(eps=0.1, step=0.05, steps=2, clean=0, random=False), model, batch)[0], expected)


def test_projection_reaches_the_nearest_point() -> None:
    torch.manual_seed(0)
    change = torch.randn(5, 3, 4) * torch.tensor([0.1, 0.5, 1, 5, 0])[:, None, None]
    inside = project(change, 0.7, "l2")
    assert (norms(inside) <= 0.7 + 1e-6).all()
    small = norms(change) <= 0.7
    torch.testing.assert_close(inside[small], change[small])
    torch.testing.assert_close(norms(inside)[~small], torch.full((int((~small).sum()),), 0.7))
    torch.testing.assert_close(project(change, 0.7, "linf"), change.clamp(-0.7, 0.7))


@pytest.mark.parametrize("method", [FGM(), PGD()])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_search_leaves_no_trace(method: FGM | PGD, kind: str) -> None:
    """BatchNorm statistics move exactly as with the clean rows alone, and modes and global randomness stay."""
    model, twin, batch = make_model(kind).train(), make_model(kind).train(), make_batch(kind)
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    twin(batch)
    run(method, model, batch)
    for (name, buffer), (_, other) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)
    assert [module.training for module in model.modules()] == modes
    assert all(getattr(module, "track_running_stats", True) for module in model.modules())
    assert not any(p.grad is None for p in model.backbone.parameters())


@pytest.mark.parametrize("kind", ["text", "image"])
def test_statistics_that_move_meanwhile_are_reported(kind: str) -> None:
    """A network whose BatchNorms run as at use, or that has none, is trained as it is attacked and used."""
    model, batch, method = make_model(kind).train(), make_batch(kind), PGD(steps=1)
    moving = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    run(method, model, batch)
    assert [note.startswith("'pgd' trained with the statistics of each batch") for note in method.notes()] == (
        [True] if moving else []
    )
    for module in moving:
        module.eval()
    kept = PGD(steps=1)
    run(kept, model, batch)
    assert kept.notes() == []


def test_random_starts_come_from_the_context() -> None:
    model, batch = make_model().eval(), make_batch()
    state = torch.get_rng_state()
    first, again, other = (run(PGD(eps=1.0, step=0.01), model, batch, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert first == again != other


@pytest.mark.parametrize("method", [FGM(eps=0.5), PGD(eps=0.5, random=False)])
def test_accumulation_equals_the_big_batch(method: FGM | PGD) -> None:
    model, batch = make_model().eval(), make_batch(rows=6)
    total = batch.weight.sum()

    def compute(part: Batch) -> Tensor:
        assert part.labels is not None
        losses = nn.functional.cross_entropy(model(part)[1], part.labels, reduction="none")
        return (losses * part.weight).sum() / total

    def cut(rows: slice) -> Batch:
        return batch.replace(
            inputs={k: v[rows] for k, v in batch.inputs.items()}, labels=batch.labels[rows],  # type: ignore[index]
            weight=batch.weight[rows], origin=batch.origin[rows], row=batch.row[rows],
        )  # fmt: skip

    method.adapt(model, make_context())
    model.zero_grad()
    method.backward(batch, compute, make_context())
    whole = gradients(model)
    model.zero_grad()
    for rows in (slice(0, 4), slice(4, 6)):
        method.backward(cut(rows), compute, make_context())
    close(gradients(model), whole)


@pytest.mark.parametrize("method", [FGM(), PGD()])
def test_a_shift_that_is_there_already_is_kept(method: FGM | PGD) -> None:
    model, batch = make_model().eval(), make_batch()
    base = 0.1 * torch.ones_like(model.backbone.zero_shift(batch))
    seen: list[Batch] = []
    method.adapt(model, make_context())
    method.backward(
        batch.replace(shift=base),
        lambda b: (seen.append(b), loss_of(model)(b))[1],
        make_context(),  # type: ignore[func-returns-value]
    )
    assert seen[-1].shift is not None
    assert (norms(seen[-1].shift - base) <= 0.3 + 1e-5).all()


@pytest.mark.parametrize("method", [FGM(), PGD()])
def test_what_cannot_be_attacked_says_so(method: FGM | PGD) -> None:
    class Deaf(TextBackbone):
        def features(self, batch: Batch) -> Any:
            return super().features(batch.replace(shift=None))

    with pytest.raises(MethodError, match="adapt"):
        type(method)().backward(make_batch(), loss_of(make_model()), make_context())
    with pytest.raises(MethodError, match="ignores a shift"):
        run(method, Model(Deaf(), nn.Linear(16, 3)), make_batch())


def test_passes_are_counted_for_the_plan() -> None:
    for method in (FGM(), PGD(), PGD(steps=5, clean=0)):
        model, calls = make_model(), []
        compute = loss_of(model)
        method.adapt(model, make_context())
        method.backward(make_batch(), lambda b, c=calls, f=compute: (c.append(1), f(b))[1], make_context())  # type: ignore[misc]
        assert method.passes() == len(calls)
        assert not method.remains()
