"""The loop: accumulation, the update rules, early stopping, kept weights, modes, determinism."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from headstart.errors import HeadstartError, MethodError
from headstart.loop import Loop
from headstart.protocols import Context, Method
from headstart.running import set_modes
from headstart.steps.ways import Ways
from headstart.values import Batch, Group, View
from tiny import DEVICE, make_loop, make_rows


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: value.to(DEVICE, copy=True) for name, value in loop.model.state_dict().items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def slices(count: int, size: int, epoch: int) -> list[tuple[np.ndarray, float]]:
    return [(np.arange(start, min(start + size, count)), 1.0) for start in range(0, count, size)]


@pytest.mark.parametrize("count", [64, 61])
def test_accumulation_equals_the_big_batch(count: int) -> None:
    """Partial last window and row weights included; rows of one length, so that both cut the same batches."""
    rows = make_rows(count, same_length=True)
    rows.weight[:] = torch.rand(count, generator=torch.Generator().manual_seed(1)) + 0.1
    results = []
    for batch_size, accumulate in ((16, 1), (4, 4)):
        loop = make_loop(rows=rows, dropout=0.0, batch_size=batch_size, accumulate=accumulate, optimizer="sgd")
        loop._plan = partial(slices, count, batch_size)  # type: ignore[method-assign]
        loop.train()
        results.append(weights(loop))
        steps = loop.steps_done
    assert steps == 2 * -(-count // 16)
    assert largest_difference(*results) < 1e-6


def test_same_seed_same_numbers_and_another_seed_others() -> None:
    runs = []
    for seed in (0, 0, 1):
        loop = make_loop(seed=seed)
        loop.train()
        runs.append(weights(loop))
    assert largest_difference(runs[0], runs[1]) == 0
    assert largest_difference(runs[0], runs[2]) > 0


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    loop = make_loop()
    state = torch.get_rng_state()
    loop.train()
    assert torch.equal(state, torch.get_rng_state())


def test_it_learns() -> None:
    loop = make_loop(rows=make_rows(256), validation=make_rows(128, seed=1), epochs=6)
    result = loop.train()
    assert result.best is not None
    assert result.best > 0.8
    assert result.rows_trained == 256 * len(result.history)


def test_the_best_weights_are_kept_and_patience_stops() -> None:
    loop = make_loop(validation=make_rows(64, seed=1), epochs=20, patience=2, learning_rate=0.5, clip=None)
    result = loop.train()
    scores = [entry["accuracy"] for entry in result.history]
    assert result.best == max(scores)
    assert len(scores) < 20
    assert "no better validation" in result.stopped
    assert loop._validate(loop.model) == result.best


def test_the_last_weights_are_kept_where_that_is_asked_for() -> None:
    """Validation then only watches: the run ends as it does without any."""
    rows, ends = make_rows(64, seed=1), []
    for options in ({"validation": rows, "weights": "last"}, {"validation": rows}, {}):
        loop = make_loop(epochs=3, patience=None, **options)  # type: ignore[arg-type]
        falling = iter((0.9, 0.8, 0.7))
        loop._validate = lambda model, falling=falling: next(falling)  # type: ignore[method-assign, misc]
        loop.train()
        ends.append(weights(loop))
    assert all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@dataclass
class HeadOnly(Method):
    def groups(self, model: nn.Module, ctx: Context) -> list[Group]:
        return []


def test_nothing_but_the_head_learns_and_the_backbone_runs_as_at_inference() -> None:
    loop = make_loop({"head": HeadOnly()}, dropout=0.5)
    before = weights(loop)
    modes = []
    loop.listen = lambda event, figures: modes.append(loop.model.backbone.network.layers[0].training)
    loop.train()
    after = weights(loop)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    assert not any(modes)


@dataclass
class Idle(Method):
    def transform(self, batch: Batch, ctx: Context) -> Batch:
        return batch


@dataclass
class ZeroPenalty(Method):
    name_: str = "nothing"

    def penalty(self, view: View, ctx: Context) -> dict[str, torch.Tensor]:
        return {self.name_: view.outputs.sum() * 0}


def test_a_method_that_changes_nothing_is_reported_by_name() -> None:
    result = make_loop({"idle": Idle(), "zero": ZeroPenalty()}).train()
    assert [note.split("'")[1] for note in result.notes] == ["idle", "zero"]


def test_two_penalties_of_one_name_are_refused() -> None:
    with pytest.raises(MethodError, match="'a' and 'b' both report a penalty called 'nothing'"):
        make_loop({"a": ZeroPenalty(), "b": ZeroPenalty()}).train()


def test_two_owners_of_an_exclusive_hook_are_refused_at_construction() -> None:
    with pytest.raises(MethodError, match="'a' and 'b' cannot share a run: each decides which parameters learn"):
        make_loop({"a": HeadOnly(), "b": HeadOnly()})


@dataclass
class LosesOrigin(Method):
    def transform(self, batch: Batch, ctx: Context) -> Batch:
        return batch.replace(origin=batch.origin + 7)


def test_a_transform_must_keep_origin_true() -> None:
    with pytest.raises(MethodError, match="'liar' returned a batch whose 'origin'"):
        make_loop({"liar": LosesOrigin()}).train()


@dataclass
class Twice(Method):
    """Makes two passes; the prior must be counted once all the same."""

    def backward(self, batch: Batch, loss_of, ctx: Context) -> torch.Tensor:  # type: ignore[no-untyped-def]
        loss = loss_of(batch) * 0
        ctx.backward(loss)
        loss = loss_of(batch) * 0
        ctx.backward(loss)
        return loss.detach()


@dataclass
class Pull(Method):
    def prior(self, model: nn.Module, ctx: Context) -> dict[str, torch.Tensor]:
        return {"pull": model.head.bias.sum()}


def test_a_prior_is_counted_once_however_many_passes_and_micro_batches() -> None:
    loop = make_loop(
        {"twice": Twice(), "pull": Pull()}, rows=make_rows(16), batch_size=8, accumulate=2, epochs=1,
        optimizer="sgd", momentum=0.0, schedule="constant", warmup=0.0, weight_decay=0.0, clip=None,
    )  # fmt: skip
    before = loop.model.head.bias.detach().clone()
    loop.train()
    assert torch.allclose(before - loop.model.head.bias, torch.full((3,), 1e-2, device=DEVICE), atol=1e-7)


def test_a_loss_that_is_not_a_number_says_what_to_do() -> None:
    with pytest.raises(HeadstartError, match=r"the loss is (nan|inf).*lower learning rate"):
        make_loop(learning_rate=1e30, clip=None, epochs=5).train()


def test_a_time_limit_ends_the_run_with_a_usable_model() -> None:
    loop = make_loop(time_limit=1e-6, epochs=50)
    result = loop.train()
    assert result.stopped == "time limit reached"
    assert loop.steps_done == 1


def test_hooks_can_make_passes_in_the_precision_of_the_run() -> None:
    for bf16 in (True, False):
        loop = make_loop(epochs=1)
        loop.ways = Ways("bf16" if bf16 else "fp32")
        seen: list[bool] = []

        def look(event: str, figures: object, loop: Loop = loop, seen: list[bool] = seen) -> None:
            with loop.hooks.context("any").autocast():
                seen.append(torch.is_autocast_enabled(DEVICE.type))

        loop.listen = look
        loop.train()
        assert seen and set(seen) == {bf16}


@dataclass
class Surgery(Method):
    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        return model

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        finished.append(ctx.owner)
        return model


@dataclass
class Average(Method):
    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        finished.append(ctx.owner)
        return model


finished: list[str] = []


def test_averages_finish_before_surgery_is_undone_and_the_last_listed_first() -> None:
    for names in ("abst", "tasb", "satb"):
        methods = {name: Average() if name in "ab" else Surgery() for name in names}
        finished.clear()
        make_loop(methods).train()
        averages, surgeries = [n for n in names if n in "ab"], [n for n in names if n in "st"]
        assert finished == averages[::-1] + surgeries[::-1]


class BatchNormed(nn.Module):
    """The parts of a convolutional backbone that `set_modes` looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail = (), ()
        self.blocks = (nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.inside = nn.ModuleList(self.blocks)


@pytest.mark.parametrize("keep", [False, True])
def test_running_statistics_are_updated_or_kept(keep: bool) -> None:
    model = nn.Module()
    model.backbone = BatchNormed()
    norm = model.backbone.blocks[1]
    set_modes(model, keep_stats=keep)
    norm(torch.randn(8, 2) + 5)
    assert torch.equal(norm.running_mean, torch.zeros(2)) is keep
    assert norm.weight.requires_grad


def test_the_loop_asks_for_kept_statistics_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("headstart.loop.set_modes", lambda model, *, keep_stats: asked.append(keep_stats))
    make_loop(validation=make_rows(8, seed=1), epochs=2, running_stats="keep").train()
    assert len(asked) > 2
    assert all(asked)


@pytest.mark.parametrize("most", [1, 40, 10_000])
def test_a_step_in_parts_equals_the_whole(most: int) -> None:
    """Row weights included; the part with the most padding holds no more tokens than allowed, or one row."""
    rows = make_rows(61)
    rows.weight[:] = torch.rand(61, generator=torch.Generator().manual_seed(1)) + 0.1
    results, seen = [], []
    for limit in (None, most):
        loop = make_loop(rows=rows, dropout=0.0, batch_size=16, accumulate=2, optimizer="sgd", max_tokens=limit)
        loop.model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].inputs["input_ids"].shape)))
        loop.train()
        results.append(weights(loop))
        if limit is None:
            seen.clear()
    assert all(count * width <= most or count == 1 for count, width in seen)
    assert len(seen) > len(rows) // 16 * 2 or most == 10_000
    assert largest_difference(*results) < 1e-6


def test_parts_keep_every_field_of_a_batch() -> None:
    batch = make_rows(10).batch(range(10)).replace(shift=torch.randn(10, 3))
    parts = [batch.part(slice(0, 4)), batch.part(slice(4, 12))]
    for name in ("labels", "weight", "origin", "row", "shift"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert all(torch.equal(torch.cat([part.inputs[k] for part in parts]), v) for k, v in batch.inputs.items())
