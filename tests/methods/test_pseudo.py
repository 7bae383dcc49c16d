from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_helpers import TinyTask, make_batch, make_context, make_model
from torch import Tensor

from headstart.encoded import Encoded
from headstart.errors import MethodError
from headstart.hooks import Hooks
from headstart.methods.pseudo import Pseudo
from headstart.modalities.text import TextModality
from headstart.protocols import Context, Prepared
from headstart.tasks.classification import Classification
from headstart.values import Batch, Progress, View


class Rows(Prepared):
    """The rows of a batch, given out again; remembers which were taken."""

    def __init__(self, batch: Batch) -> None:
        self.inputs, self.taken = batch.inputs, []

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, rows: Any) -> dict[str, Tensor]:
        self.taken.append(list(rows))
        return {name: value[list(rows)] for name, value in self.inputs.items()}


def free_rows(kind: str = "text", rows: int = 20) -> Encoded:
    batch = make_batch(kind, rows, seed=9)
    return Encoded(Rows(batch), None, torch.ones(rows), torch.zeros(rows, dtype=torch.int64))


def context(free: Encoded, kind: str = "text", done: int = 10, seed: int = 0, **changes: Any) -> Context:
    return make_context(kind, seed, unlabelled=free, progress=Progress(done, 10, 0, 5), **changes)


def view_of(model: Any, batch: Batch) -> View:
    features, outputs = model(batch)
    return View(batch, features, outputs, outputs.sum(1), model)


def slow(probabilities: Tensor, outputs: Tensor, threshold: float) -> float:
    """The formula: over all rows, the cross-entropy of the likeliest class where it is likely enough."""
    total = 0.0
    for p, o in zip(probabilities.tolist(), outputs.tolist(), strict=True):
        if max(p) >= threshold:
            guess = p.index(max(p))
            total -= math.log(math.exp(o[guess]) / sum(math.exp(value) for value in o))
    return total / len(probabilities)


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.5])
def test_the_formula(threshold: float) -> None:
    model, free = without_dropout(make_model()).train(), free_rows()
    with torch.no_grad():
        model.head.weight.mul_(4)
    batch = make_batch()
    method = Pseudo(threshold=threshold, weight=0.7, mu=2)
    found = method.penalty(view_of(model, batch), context(free))["pseudo"]
    (taken,) = free.prepared.taken  # type: ignore[attr-defined]
    assert len(taken) == 2 * len(batch) == len(set(taken))
    outputs = model(free.batch(taken))[1].detach()
    expected = 0.7 * slow(outputs.softmax(1), outputs, threshold)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
    kept = (outputs.softmax(1).amax(1) >= threshold).sum()
    assert int(kept) > 0 and (threshold == 0) == (int(kept) == len(taken))
    assert f"believed {int(kept)} of {len(taken)}" in method.notes()[0]


@pytest.mark.parametrize(("step", "share"), [(0, 0), (2, 0), (4, 0.5), (6, 1), (10, 1)])
def test_the_weight_rises_with_the_run(step: int, share: float) -> None:
    model, free = without_dropout(make_model()), free_rows()
    method = Pseudo(threshold=0, start=0.2, full=0.6)
    full = method.penalty(view_of(model, make_batch()), context(free))["pseudo"]
    now = method.penalty(view_of(model, make_batch()), context(free, done=step))["pseudo"]
    assert float(now.detach()) == pytest.approx(share * float(full.detach()), abs=1e-7)


def test_guesses_are_made_at_rest_and_carry_no_gradient_but_learning_does() -> None:
    model, free = make_model().train(), free_rows()
    seen: list[tuple[bool, bool]] = []
    model.register_forward_hook(lambda m, a, out: seen.append((m.head.training, out[1].requires_grad)))
    batch = make_batch()
    view = view_of(model, batch)
    seen.clear()
    Pseudo(threshold=0).penalty(replace(view, outputs=view.outputs.detach()), context(free))["pseudo"].backward()
    assert seen == [(False, False), (True, True)]
    assert model.training and float(model.head.weight.grad.abs().sum()) > 0
    assert float(model.backbone.network.embedding.weight.grad.abs().sum()) > 0


def test_nothing_is_learned_of_unsure_rows_and_no_second_pass_is_made() -> None:
    model, free = make_model(), free_rows()
    view, calls = view_of(model, make_batch()), []
    model.register_forward_pre_hook(lambda m, a: calls.append(1))
    method = Pseudo(threshold=1.0)
    assert float(method.penalty(view, context(free))["pseudo"]) == 0 and calls == [1]
    assert "believed 0 of 6 draws" in method.notes()[0]


def test_running_statistics_follow_the_labelled_rows_alone() -> None:
    model, free = make_model("image").train(), free_rows("image")
    view = view_of(model, make_batch("image"))
    before = {name: value.clone() for name, value in model.named_buffers()}
    Pseudo(threshold=0).penalty(view, context(free, "image"))
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())


def test_passes_over_one_micro_batch_meet_the_same_rows_and_other_micro_batches_others() -> None:
    model, free = make_model(), free_rows(rows=200)
    first, second = make_batch(), make_batch().replace(row=torch.arange(6) + 6)
    for batch in (first, second, first):
        Pseudo(threshold=1.0).penalty(view_of(model, batch), context(free))
    Pseudo(threshold=1.0).penalty(view_of(model, first), context(free, seed=1))
    a, b, again, later = free.prepared.taken  # type: ignore[attr-defined]
    assert a == again and a != b and a != later


def test_few_unlabelled_rows_are_drawn_more_than_once() -> None:
    model, free = make_model(), free_rows(rows=2)
    Pseudo(mu=3).penalty(view_of(model, make_batch()), context(free))
    assert len(free.prepared.taken[0]) == 18  # type: ignore[attr-defined]


def test_the_precision_of_the_run() -> None:
    model, free = make_model().train(), free_rows()
    view, kinds = view_of(model, make_batch()), []
    model.backbone.network.layers[0].mixer.register_forward_hook(lambda m, a, out: kinds.append(out.dtype))
    ctx = context(free, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    Pseudo(threshold=0).penalty(view, ctx)
    assert kinds == [torch.bfloat16] * 2


def test_the_count_is_carried_on() -> None:
    model, free = make_model(), free_rows()
    method = Pseudo(threshold=0)
    method.penalty(view_of(model, make_batch()), context(free))
    again = Pseudo(threshold=0)
    again.load_state(method.state(), model)
    again.penalty(view_of(model, make_batch()), context(free))
    assert "believed 12 of 12 draws" in again.notes()[0]


def test_it_needs_rows_without_labels_and_classes() -> None:
    with pytest.raises(MethodError, match="give them with --unlabelled"):
        Hooks({"pseudo": Pseudo()}, Classification.fit(["a", "b"]), TextModality(), seed=0)

    class Numbers(TinyTask):
        name = "regression"

    with pytest.raises(MethodError, match="guesses one class a row"):
        Hooks({"pseudo": Pseudo()}, Numbers(), TextModality(), seed=0, unlabelled=free_rows())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "pseudo:threshold"),
        ({"weight": 0}, "pseudo:weight"),
        ({"start": -1}, "pseudo:start"),
        ({"start": 0.5, "full": 0.2}, "pseudo:full to be at least pseudo:start"),
        ({"mu": 0}, "pseudo:mu"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        Pseudo(**options)
