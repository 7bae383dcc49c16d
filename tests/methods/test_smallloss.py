"""Small-loss weighting against the paper's rule, in a run and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import make_batch, make_context, make_model
from torch import Tensor

import tiny
from headstart.errors import MethodError
from headstart.methods.fgm import FGM
from headstart.methods.mixup import Mixup
from headstart.methods.sam import SAM
from headstart.methods.smallloss import SmallLoss
from headstart.values import Batch, Mix, Progress, View


def at(epoch: int, step: int = 0) -> Any:
    return make_context(progress=Progress(step, 100, epoch, 5))


def view(batch: Batch, losses: list[float]) -> View:
    features, outputs = make_model()(batch)
    return View(batch, features, outputs, torch.tensor(losses), make_model())


def rows(*numbers: int, **changes: Any) -> Batch:
    return make_batch(rows=len(numbers)).replace(row=torch.tensor(numbers), weight=torch.ones(len(numbers)), **changes)


def weights(method: SmallLoss, epoch: int, *numbers: int) -> list[float]:
    return method.transform(rows(*numbers), at(epoch)).weight.tolist()


@pytest.mark.parametrize(("rate", "warmup"), [(0.4, 1), (0.4, 3), (0.25, 2)])
def test_who_is_kept_follows_the_paper(rate: float, warmup: int) -> None:
    """R(T) = 1 - rate * min(T / T_k, 1) of the rows, those with the smallest losses of the epoch before."""
    method, count = SmallLoss(rate=rate, warmup=warmup, by_class=False), 20
    generator = torch.Generator().manual_seed(0)
    losses = torch.zeros(count)
    for epoch in range(5):
        found = [weights(method, epoch, *range(start, start + 5)) for start in range(0, count, 5)]
        kept = int((1 - rate * min(epoch / warmup, 1)) * count) if epoch else count
        best = sorted(range(count), key=lambda row: float(losses[row]))[:kept]
        expected = [1.0 if row in best else 0.0 for row in range(count)]
        for start in range(0, count, 5):  # a batch of nothing but bad rows keeps its best
            if not any(expected[start : start + 5]):
                expected[min(range(start, start + 5), key=lambda row: float(losses[row]))] = 1.0
        assert [weight for part in found for weight in part] == expected
        losses = torch.rand(count, generator=generator)
        for step, start in enumerate(range(0, count, 5)):
            part = list(range(start, start + 5))
            assert method.penalty(view(rows(*part), losses[part].tolist()), at(epoch, epoch * 4 + step)) == {}


def test_each_class_loses_the_same_share_and_keeps_a_row() -> None:
    method = SmallLoss(rate=0.5)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    losses = [0.1, 0.2, 0.3, 0.4, 5.0, 6.0, 9.0]
    method.penalty(view(rows(*range(7), labels=labels), losses), make_classes(0, 0))
    assert weights(method, 1, *range(7)) == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    overall = SmallLoss(rate=0.5, by_class=False)
    overall.penalty(view(rows(*range(7), labels=labels), losses), make_classes(0, 0))
    assert weights(overall, 1, *range(7)) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_soft_weight_and_the_weights_of_others_are_multiplied() -> None:
    method = SmallLoss(rate=0.5, weight=0.25)
    method.penalty(view(rows(0, 1), [1.0, 2.0]), at(0))
    batch = rows(0, 1).replace(weight=torch.tensor([2.0, 3.0]))
    assert method.transform(batch, at(1)).weight.tolist() == [2.0, 0.75]
    assert batch.weight.tolist() == [2.0, 3.0]


def test_unknown_rows_keep_their_weight() -> None:
    method = SmallLoss(rate=0.5)
    method.penalty(view(rows(0, 1, -1), [1.0, 2.0, 9.0]), at(0))
    assert weights(method, 1, 0, 1, -1, 7) == [1.0, 0.0, 1.0, 1.0]


def test_only_the_first_pass_of_a_step_is_looked_at() -> None:
    method = SmallLoss(rate=0.5)
    method.penalty(view(rows(0, 1), [1.0, 2.0]), at(0, 0))
    method.penalty(view(rows(0, 1), [50.0, 2.0]), at(0, 0))  # the same rows, attacked
    assert method.sums_.tolist() == [1.0, 2.0]
    method.penalty(view(rows(0, 0), [3.0, 5.0]), at(0, 1))  # a row that stands in the epoch again, twice in its batch
    assert method.sums_.tolist() == [9.0, 2.0] and method.counts_.tolist() == [3, 1]
    assert weights(method, 1, 0, 1) == [0.0, 1.0]


def test_mixed_rows_are_not_looked_at() -> None:
    method = SmallLoss(rate=0.5)
    mix = Mix(torch.tensor([1, 0, 2]), torch.tensor([0.7, 1.0, 1.0]))
    method.penalty(view(rows(0, 1, 2, mix=mix), [9.0, 1.0, 2.0]), at(0, 0))
    shares: Tensor = torch.tensor([[0.7, 0.3, 0.0], [1.0, 0.0, 0.0]])
    method.penalty(view(rows(3, 4, labels=shares), [9.0, 1.5]), make_classes(0, 1))
    assert method.counts_.tolist() == [0, 1, 1, 0, 1]


def make_classes(epoch: int, step: int) -> Any:
    return make_context(task=tiny.make_task(), progress=Progress(step, 100, epoch, 5))


class Watched(SmallLoss):
    """Keeps what every batch weighed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: dict[int, list[tuple[int, float]]] = {}

    def transform(self, batch: Batch, ctx: Any) -> Batch:
        changed = super().transform(batch, ctx)
        pairs = zip(changed.row.tolist(), changed.weight.tolist(), strict=True)
        self.seen.setdefault(ctx.progress.epoch, []).extend(pairs)
        return changed


@pytest.mark.parametrize("partner", [None, FGM(), SAM()])
def test_in_a_run_wrong_labels_are_set_aside(partner: Any) -> None:
    clean = tiny.make_rows(120)
    wrong = set(range(0, 120, 5))
    targets = clean.targets.clone()
    for row in wrong:
        targets[row] = (targets[row] + 1) % 3
    noisy = type(clean)(clean.prepared, targets, clean.weight, clean.origin)
    method = Watched(rate=0.2)
    methods: dict[str, Any] = {"smallloss": method} | ({} if partner is None else {type(partner).__name__: partner})
    result = tiny.make_loop(methods, rows=noisy, epochs=6, dropout=0.0).train()
    assert result.notes == []
    assert all(weight == 1.0 for _, weight in method.seen[0])
    aside = {row for row, weight in method.seen[5] if weight == 0}
    assert 18 <= len(aside) <= 27
    assert len(aside & wrong) / len(aside) > 0.45  # by chance 0.2


def test_a_run_in_which_it_cannot_act_says_so_when_it_should_have() -> None:
    once = tiny.make_loop({"smallloss": SmallLoss()}, epochs=1).train()
    assert once.notes == ["method 'smallloss' changed nothing in the first epoch: check its options, or leave it out"]
    mixed = tiny.make_loop({"smallloss": SmallLoss(), "mixup": Mixup(alpha=5.0)}, epochs=3).train()
    assert mixed.notes == ["method 'smallloss' changed nothing in 2 epochs: check its options, or leave it out"]


@pytest.mark.parametrize(
    "options",
    [
        {"by_class": 1},
        {"rate": 0},
        {"rate": 1.0},
        {"rate": True},
        {"warmup": 0},
        {"warmup": 1.5},
        {"weight": 1},
        {"weight": -1},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match="smallloss:"):
        SmallLoss(**options)
