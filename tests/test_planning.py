"""What the plan chooses, says and counts."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headstart import planning
from headstart.planning import Plan, describe_stage
from headstart.spec import TrainingSpec
from headstart.steps import costing
from headstart.steps.precision import Precision
from headstart.values import Batch
from method_runs import make_loop, make_method
from tiny import make_loop as make_small
from tiny import make_rows


@pytest.mark.parametrize(("rows", "expected"), [(32, 50), (960, 10), (9000, 5), (1_000_000, 5)])
def test_epochs_give_few_rows_enough_steps(rows: int, expected: int) -> None:
    assert planning.choose_epochs(TrainingSpec(), rows) == expected
    assert planning.choose_epochs(TrainingSpec(epochs=2), rows) == 2


def test_the_users_rate_wins_then_the_methods_then_the_modalitys() -> None:
    lora = {"lora": make_method("lora")}
    assert planning.choose_rate(TrainingSpec(learning_rate=3e-6), lora, "text") == 3e-6
    assert planning.choose_rate(TrainingSpec(), lora, "text") == lora["lora"].learning_rate("text")
    assert planning.choose_rate(TrainingSpec(), {}, "text") == planning.LEARNING_RATE["text"]
    kept = TrainingSpec(running_stats="keep")
    assert planning.choose_rate(kept, {}, "image") < planning.LEARNING_RATE["image"]
    assert planning.choose_rate(kept, lora, "image") == lora["lora"].learning_rate("image")


def test_short_runs_keep_the_statistics_of_a_pretrained_batchnorm() -> None:
    model, most = make_loop([], "image").model, planning.KEPT_STEPS

    def chosen(model: nn.Module = model, rows: int = 32 * most, pretrained: bool = True, **asked: Any) -> str:
        methods = {name: make_method(name) for name in asked.pop("methods", ())}
        training = TrainingSpec(epochs=1, **asked)
        return planning.choose_stats(training, methods, model, rows, pretrained=pretrained).running_stats

    assert chosen() == "keep"
    assert chosen(rows=32 * most + 1) == "update"
    assert chosen(rows=32 * most + 1, batch_size=64) == "keep"
    assert chosen(rows=32 * most + 1, running_stats="keep") == "keep"
    assert chosen(running_stats="update") == "update"
    assert chosen(pretrained=False) == "update"
    assert chosen(methods=["stochnorm"]) == "update"
    assert chosen(model=make_loop([], "text").model) == "update", "it has no BatchNorm"


@pytest.mark.parametrize("kind", ["image", "text"])
def test_measuring_leaves_the_model_as_it_was(kind: str) -> None:
    loop = make_loop([], kind)
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    loop.model.train()
    state = torch.get_rng_state()
    costs = costing.measure(loop.model, loop.train_rows, loop.training, precision="fp32", backward=True)
    assert costs.step > costs.answer > 0
    assert costs.kept > 0
    assert costs.update > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert loop.model.training
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loop.model.parameters())


def test_what_is_frozen_keeps_nothing_for_the_backward_pass() -> None:
    """The head keeps its input and the outputs that are squared; the whole network keeps more."""
    loop = make_loop([], "text")
    whole = costing.measure(loop.model, loop.train_rows, loop.training, precision="fp32", backward=True).kept
    loop.model.backbone.requires_grad_(False)
    head = costing.measure(loop.model, loop.train_rows, loop.training, precision="fp32", backward=True).kept
    assert 0 < head < whole / 4
    loop.model.requires_grad_(False)
    assert costing.measure(loop.model, loop.train_rows, loop.training, precision="fp32", backward=False).kept == 0


def test_batches_are_timed_over_the_lengths_that_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a token costs a second, the estimate is the padded tokens of the plan, as near as three batches tell."""
    loop = make_loop([], "text")
    training = loop.training.model_copy(update={"batch_size": 2})
    rows = loop.train_rows
    padded = [len(index) * int(rows.prepared.lengths[index].max()) for index in rows.plan(training, 0)]

    def run(model: object, rows: object, index: np.ndarray, **options: bool) -> tuple[float, float, int]:
        cost = float(len(index) * loop.train_rows.prepared.lengths[index].max())
        return cost / 4, cost, 7

    monkeypatch.setattr(costing, "once", run)
    costs = costing.measure(loop.model, rows, training, precision="fp32", backward=True)
    assert costs.step * len(rows) == pytest.approx(sum(padded), rel=0.1)
    assert costs.answer == pytest.approx(costs.step / 4)


def test_time_and_memory_of_a_whole_run() -> None:
    costs = costing.Costs(step=0.3, answer=0.1, kept=1000)
    assert planning.epoch_seconds(costs, 100, 20, 2.0) == pytest.approx(0.3 * 100 * 2 + 0.1 * 20)
    asked = dict(rows=100, epochs=3, rate=1e-3, trainable=10, total=50, precision=Precision(), validated=20)
    exact = describe_stage("probe", {}, TrainingSpec(optimizer="lbfgs"), costs=costs, **asked)
    tuned = describe_stage("all", {}, TrainingSpec(), costs=costs, **asked)
    assert exact.seconds == pytest.approx(0.1 * 120) and exact.batch_bytes is None
    assert tuned.seconds == pytest.approx(3 * (30 + 2) + 2) and tuned.batch_bytes == 1000
    assert planning.most_memory((exact, tuned)) == planning.REPORT_BYTES + 12 * 10 + 1000 + 4 * 50
    assert planning.most_memory((exact,)) == planning.REPORT_BYTES + 4 * 50  # the bundle that is loaded to be proven
    assert describe_stage("all", {}, TrainingSpec(), costs=None, **asked).seconds is None
    slow = dataclasses.replace(costs, first=0.5, update=0.25)
    started = describe_stage("all", {}, TrainingSpec(), costs=slow, start=7.0, **asked)
    assert started.seconds == pytest.approx(tuned.seconds + 0.5 * 120 + 7 + 0.25 * started.steps)


def test_a_bottom_that_is_computed_once_takes_its_time_once() -> None:
    costs = costing.Costs(step=0.3, answer=0.1, bottom=0.1)
    found = describe_stage(
        "top", {}, TrainingSpec(), rows=100, epochs=3, rate=1e-3, trainable=10, total=50, precision=Precision(),
        costs=costs, validated=20,
    )  # fmt: skip
    # Once for each row, beside the steps and the answers, which start from it.
    assert found.seconds == pytest.approx((100 + 20) * 0.1 + 3 * (100 * 0.3 + 20 * 0.1) + 20 * 0.1)


def test_the_bottom_is_timed_as_answers_are_and_steps_start_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second a row here, and the passes above it none of that."""
    loop, seen, passed, now = make_loop([], "text"), [], [], [0.0]

    def bottom(batch: Batch) -> Batch:
        assert not torch.is_grad_enabled()
        seen.append(len(batch))
        now[0] += len(batch)
        return batch.replace(origin=batch.origin + 7)

    forward = loop.model.forward

    def passing(batch: Batch) -> object:
        passed.append(bool((batch.origin == 7).all()))
        return forward(batch)

    monkeypatch.setattr(loop.model, "forward", passing)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(costing, "TIMED_ROWS", 2)
    costs = costing.measure(
        loop.model, loop.train_rows, loop.training, precision="fp32", backward=True, bottom=bottom
    )  # fmt: skip
    assert costs.bottom == pytest.approx(1.0) and costs.step == costs.answer == 0
    assert passed and all(passed)
    assert {2, loop.training.batch_size} == set(seen)


@pytest.mark.parametrize(
    ("whole", "apart", "expected"), [(3.0, True, 1 / 16), (2.1, True, 2.1 / 32), (3.0, False, 3 / 32)]
)
def test_steps_that_are_cut_are_planned_so(
    whole: float, apart: bool, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 rows cost `whole` at once, and 16 one second, of which two take 2."""
    loop = make_loop([], "image")

    def run(model: object, rows: object, index: np.ndarray, **options: bool) -> tuple[float, float, int]:
        return 0.0, whole if len(index) == 32 else 1.0, 0

    monkeypatch.setattr(costing, "batches", lambda *_, **more: [np.arange(32) % len(loop.train_rows)])
    monkeypatch.setattr(costing, "once", run)
    costs = costing.measure(loop.model, loop.train_rows, loop.training, precision="fp32", backward=True, apart=apart)
    assert costs.step == pytest.approx(expected)


def test_a_small_part_of_a_batch_of_inference_stands_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop([], "text")
    lengths = loop.train_rows.prepared.lengths
    taken: list[int] = []

    def run(model: object, rows: object, index: np.ndarray, **options: bool) -> tuple[float, float, int]:
        taken.append(len(index))
        return float(len(index)), float(len(index)), 0

    monkeypatch.setattr(costing, "once", run)
    monkeypatch.setattr(costing, "TIMED_TOKENS", 2 * int(lengths.max()))
    costs = costing.measure(loop.model, loop.train_rows, loop.training, precision="fp32", backward=False)
    assert max(taken) < len(lengths)
    assert costs.answer == pytest.approx(1.0)
    assert costs.first >= 0


def test_a_stage_says_what_learns_how_often_and_in_which_order() -> None:
    methods = {name: make_method(name) for name in ("mixup", "pgd", "l2sp")}
    stage = describe_stage(
        "all", methods, TrainingSpec(batch_size=10, accumulate=2), rows=95, epochs=3, rate=1e-3, trainable=500,
        total=1000, precision=Precision(), costs=costing.Costs(0.01, 0.0),
    )  # fmt: skip
    assert stage.steps == 15
    assert stage.passes_per_step == methods["pgd"].passes()
    assert stage.seconds == pytest.approx(0.01 * 95 * 3 * stage.passes_per_step)
    assert stage.memory_bytes == 4 * 1000 + 12 * 500
    assert stage.hooks["transform"] == ("mixup",)
    assert stage.hooks["prior"] == ("l2sp",)
    rows = {"read": 100, "trained": 95, "validated": 0, "tested": 0, "unlabelled": 0, "dropped": {"empty text": 5}}
    text = str(Plan("classification", "text", "tiny", 3, rows, (stage,)))
    assert "100 read = 95 to train + 0 to validate + 0 to test + 0 unlabelled + dropped (5 empty text)" in text
    assert "learns 500 of 1,000 parameters (50.0 %)" in text


def test_passes_of_several_methods_multiply() -> None:
    methods = {name: make_method(name) for name in ("pgd", "rdrop")}
    stage = describe_stage(
        "main", methods, TrainingSpec(), rows=95, epochs=3, rate=1e-4, trainable=1, total=1, costs=None,
        precision=Precision(),
    )  # fmt: skip
    assert stage.passes_per_step == methods["pgd"].passes() * 2


def test_rows_learned_are_those_of_every_stage_that_is_not_solved_exactly() -> None:
    stages = [TrainingSpec(optimizer="lbfgs"), TrainingSpec(epochs=3), TrainingSpec(epochs=2)]
    assert planning.rows_learned(stages, 40) == 200


@pytest.mark.parametrize(("same", "timed"), [(True, 1), (False, costing.TIMED)])
def test_rows_of_one_length_are_timed_once(same: bool, timed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, seen, once = make_small(batch_size=8), [], costing.once

    def listening(*args: Any, **options: Any) -> Any:
        seen.append(len(args[2]))
        return once(*args, **options)

    monkeypatch.setattr(costing, "once", listening)
    rows = make_rows(60, same_length=same)
    costing.measure(loop.model, rows, loop.training, precision="fp32", backward=True)
    assert len(seen) == 1 + timed  # one to warm up
