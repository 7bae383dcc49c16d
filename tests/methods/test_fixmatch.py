from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from method_helpers import MASK, make_batch, make_context, make_model
from test_pseudo import free_rows, slow, view_of, without_dropout
from torch import Tensor

from headstart.errors import MethodError
from headstart.methods._unlabelled import draw
from headstart.methods._views import Views
from headstart.methods.fixmatch import FixMatch
from headstart.values import Batch

KINDS = ("text", "image", "audio")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(kind: str, **options: Any) -> Views:
    settings = {"operations": 2, "magnitude": 9, "rate": 0.3, **options}
    return Views.of(make_model(kind), make_context(kind), name="fixmatch", **settings)


def inputs_of(batch: Batch) -> Tensor:
    return next(batch.inputs[name] for name in ("input_ids", "pixels", "wave") if name in batch.inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_formula(kind: str) -> None:
    model, free, batch = without_dropout(make_model(kind)).eval(), free_rows(kind), make_batch(kind)
    with torch.no_grad():
        model.head.weight.mul_({"text": 4, "image": 20, "audio": 1}[kind])
    ctx = make_context(kind, unlabelled=free)
    # The same draws, with a threshold that about half of the rows reach.
    rows, own = draw(batch, 2, make_context(kind, unlabelled=free))
    made = Views.of(model, ctx, 2, 9, 0.2, "fixmatch")
    weak = made.weak(rows, own)
    guesses = model(weak)[1].detach().softmax(1)
    answers = model(made.strong(rows, own))[1].detach()
    threshold = float(guesses.amax(1).median())
    method = FixMatch(threshold=threshold, weight=0.7, mu=2)
    method.adapt(model, ctx)
    found = method.penalty(view_of(model, batch), make_context(kind, unlabelled=free))["fixmatch"]
    total, kept = 0.0, 0
    for q, o in zip(guesses.tolist(), answers.tolist(), strict=True):
        if max(q) >= threshold:
            kept += 1
            total -= math.log(math.exp(o[q.index(max(q))]) / sum(math.exp(value) for value in o))
    assert 0 < kept < len(rows)
    assert float(found.detach()) == pytest.approx(0.7 * total / len(rows), rel=1e-4)
    assert f"believed {kept} of 12 draws" in method.notes()[0]
    assert float(found.detach()) != pytest.approx(0.7 * slow(guesses, model(weak)[1].detach(), threshold), rel=1e-3), (
        "the view is weak"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_strong_views_differ_from_weak_ones_and_repeat_with_the_generator(kind: str) -> None:
    made, batch = views(kind), make_batch(kind)
    first, again, other = (made.strong(batch, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(inputs_of(first), inputs_of(again))
    same = inputs_of(first).shape == inputs_of(other).shape and torch.equal(inputs_of(first), inputs_of(other))
    assert not same
    weak = made.weak(batch, generator())
    assert kind == "image" or torch.equal(inputs_of(weak), inputs_of(batch))


def test_weak_pictures_are_mirrored_and_shifted_ones_and_nothing_else() -> None:
    batch = make_batch("image", rows=40)
    weak = inputs_of(views("image").weak(batch, generator()))
    moves = set()
    for before, after in zip(inputs_of(batch), weak, strict=True):
        wide = torch.nn.functional.pad(before[None], (1, 1, 1, 1), mode="reflect")[0]
        found = [
            (flip, top, left)
            for flip in (False, True)
            for top in range(3)
            for left in range(3)
            if torch.equal((_padded(before.flip(-1)) if flip else wide)[:, top : top + 8, left : left + 8], after)
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert {flip for flip, _, _ in moves} == {False, True} and len(moves) > 6


def _padded(picture: Tensor) -> Tensor:
    return torch.nn.functional.pad(picture[None], (1, 1, 1, 1), mode="reflect")[0]


def test_strong_pictures_lose_a_grey_square_and_stay_pictures() -> None:
    batch = make_batch("image", rows=30)
    pixels = inputs_of(views("image", operations=0).strong(batch, generator()))
    assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1
    for picture in pixels:
        grey = (picture == 0.5).all(0)
        rows, columns = grey.any(1).nonzero().flatten(), grey.any(0).nonzero().flatten()
        assert bool(grey[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all())
        assert 4 <= int(grey.sum()) <= 16  # half of the side is 4 pixels; a corner leaves a quarter of that


def test_every_text_is_edited_and_keeps_its_special_tokens() -> None:
    batch = make_batch("text", rows=30)
    strong = views("text").strong(batch, generator())
    before, after = (
        [row[real.bool()].tolist() for row, real in zip(one["input_ids"], one["attention_mask"], strict=True)]
        for one in (batch.inputs, strong.inputs)
    )
    assert all(a[0] == b[0] and a[-1] == b[-1] for a, b in zip(before, after, strict=True))
    assert sum(a != b for a, b in zip(before, after, strict=True)) > 15
    assert any(MASK in row for row in after)


def test_running_statistics_follow_the_labelled_rows_alone() -> None:
    model, free = make_model("image").train(), free_rows("image")
    view = view_of(model, make_batch("image"))
    before = {name: value.clone() for name, value in model.named_buffers()}
    method = FixMatch(threshold=0)
    method.adapt(model, make_context("image"))
    method.penalty(view, make_context("image", unlabelled=free))["fixmatch"].backward()
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    assert float(model.head.weight.grad.abs().sum()) > 0


def test_it_must_see_the_model_first() -> None:
    model = make_model()
    with pytest.raises(MethodError, match="call adapt"):
        FixMatch().penalty(view_of(model, make_batch()), make_context(unlabelled=free_rows()))


@pytest.mark.parametrize(
    "options",
    [{"threshold": -0.1}, {"weight": 0}, {"mu": 0}, {"operations": -1}, {"magnitude": 31}, {"rate": 0}],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=f"fixmatch:{next(iter(options))}"):
        FixMatch(**options)
