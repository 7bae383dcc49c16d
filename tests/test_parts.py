"""A step's rows in parts: the same step, only where rows do not meet, and only where it measured faster."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from headstart import parts
from headstart.loop import Loop
from headstart.parts import Parts
from headstart.spec import TrainingSpec
from headstart.values import Batch
from method_runs import make_loop, make_rows, train, weights


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is moved by hand; parts of four rows."""
    now = [0.0]
    monkeypatch.setattr(parts.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(parts, "ROWS", 4)
    return now


def batch(rows: int = 8, kind: str = "image") -> Batch:
    return make_rows(kind).batch(list(range(rows)))


def steps(found: Parts, clock: list[float], whole: float, cut: float, count: int = 8) -> list[list[int]]:
    """The rows of the parts of each step; a step takes `whole` or `cut` seconds."""
    seen = []
    for _ in range(count):
        window = found.cut(nn.Linear(1, 1), [batch()])
        with found.timed(window, cut=len(window) > 1):
            clock[0] += whole if len(window) == 1 else cut
        seen.append([len(part) for part in window])
    return seen


@pytest.mark.parametrize(("cut", "after"), [(0.5, [4, 4]), (0.95, [8]), (2.0, [8])])
def test_both_ways_take_turns_and_the_faster_stays(clock: list[float], cut: float, after: list[int]) -> None:
    found = Parts(apart=True)
    assert steps(found, clock, 1.0, cut) == [[8], [4, 4]] * 4
    assert found.on is (after == [4, 4]) and f"{1 / cut:.2f} times as fast" in found.why
    assert steps(found, clock, 1.0, cut, 2) == [after, after]


def test_the_rows_stay_the_same(clock: list[float]) -> None:
    cut = Parts(apart=True, on=True).cut(nn.Linear(1, 1), [batch(7)])
    assert [len(part) for part in cut] == [4, 3]
    assert torch.equal(torch.cat([part.inputs["pixels"] for part in cut]), batch(7).inputs["pixels"])


@pytest.mark.parametrize("found", [Parts("off", apart=True), Parts(apart=False)])
def test_nothing_is_tried_where_it_may_not(found: Parts, clock: list[float]) -> None:
    assert steps(found, clock, 1.0, 0.1) == [[8]] * 8 and not found.why


def test_small_batches_and_texts_are_left_alone(clock: list[float]) -> None:
    found = Parts(apart=True)
    for window in ([batch(4)], [batch(8, "text")]):
        for _ in range(3):
            assert found.cut(nn.Linear(1, 1), window) == window
            with found.timed(window, cut=False):
                clock[0] += 1
    assert found.paces == ([], [])


def test_statistics_of_the_batch_are_of_the_whole_batch(clock: list[float]) -> None:
    found, norm = Parts(apart=True, on=True), nn.Sequential(nn.BatchNorm2d(3))
    assert len(found.cut(norm, [batch()])) == 1
    assert len(found.cut(norm.eval(), [batch()])) == 2


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), DropPath(0.1)])
def test_what_draws_sees_the_whole_batch(layer: nn.Module, clock: list[float]) -> None:
    found = Parts(apart=True, on=True)
    assert len(found.cut(nn.Sequential(layer), [batch()])) == 1
    assert len(found.cut(nn.Sequential(layer).eval(), [batch()])) == 2


def test_a_network_that_draws_is_left_alone(clock: list[float]) -> None:
    found = Parts(apart=True)
    window = found.cut(nn.Linear(1, 1), [batch()])
    with found.timed(window, cut=False):
        torch.rand(1)
    assert steps(found, clock, 1.0, 0.1) == [[8]] * 8


def still(loop: Loop) -> Loop:
    """Without dropout."""
    for module in loop.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    loop.training = TrainingSpec(**{**loop.training.model_dump(), "running_stats": "keep"})
    return loop


def test_a_run_in_parts_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS", 3)
    plain = train(still(make_loop([], "image")))
    assert not plain.parts.on
    monkeypatch.setattr(parts, "FASTER", 0.0)
    cut = train(still(make_loop([], "image")))
    assert cut.parts.on and "3 at a time" in cut.parts.why
    for one, other in zip(weights(plain).values(), weights(cut).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


APART = ("augment", "mixup", "ia3", "ema", "l2sp")


@pytest.mark.parametrize("name", [*APART, "manifold", "contrast", "sam", "rdrop", "pgd"])
def test_a_run_with_a_method_is_the_same_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed and mixed rows are cut afterwards; where rows meet in the network or in a method, nothing is."""
    monkeypatch.setattr(parts, "ROWS", 3)
    monkeypatch.setattr(parts, "FASTER", 0.0)
    cut, whole = still(make_loop([name], "image")), still(make_loop([name], "image"))
    whole.training = whole.training.model_copy(update={"parts": "off"})
    found = train(cut)
    assert found.parts.on is (name in APART)
    for one, other in zip(weights(train(whole)).values(), weights(found).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
