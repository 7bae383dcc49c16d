"""Passes as CUDA graphs: the numbers of plain ones, only where they can be had and where they pay."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from headstart.errors import Interrupted, SpecError
from headstart.spec import TrainingSpec
from headstart.steps import graphing, packing
from headstart.steps.graphing import Graphed
from headstart.steps.precision import Precision
from headstart.steps.ways import Settled, Ways
from headstart.values import Choice
from method_runs import make_loop, train
from tiny import make_loop as make_small
from tiny import make_rows

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU with CUDA")


def weights(result: Any) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in result.model.state_dict().items()}


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float = 1e-4) -> None:
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=tolerance, atol=tolerance)


def test_without_a_gpu_there_are_none() -> None:
    loop, ways = make_small(), Ways()
    assert graphing._why_not(loop.model, ways, ()) == "it needs a GPU with CUDA, and this run is on 'cpu'"
    for setting in ("auto", "off"):
        training = TrainingSpec(cuda_graphs=setting)
        assert graphing.choose(loop.model, loop.train_rows, training, ways, epochs=1, passes=()) == Choice(False)
    with pytest.raises(SpecError, match=r"training.cuda_graphs = 'on' cannot be had here: it needs a GPU with CUDA"):
        graphing.choose(loop.model, loop.train_rows, TrainingSpec(cuda_graphs="on"), ways, epochs=1, passes=())


@pytest.mark.parametrize(
    ("ways", "passes", "reason"),
    [
        (Ways(), ["rdrop"], "'rdrop' makes passes of its own"),
        (Ways(pack=True), [], "packed rows have a size of their own in each batch"),
        (Ways(recompute=True), [], "gradient checkpointing runs blocks a second time"),
        (Ways("bf16_weights"), [], "bf16 weights are made anew for each pass"),
    ],
)
def test_what_cannot_be_recorded_is_named(
    ways: Ways, passes: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Placed(nn.Module):
        def parameters(self, recurse: bool = True) -> Any:
            place = type("Parameter", (), {"device": torch.device("cuda")})
            return iter([place()])

    assert graphing._why_not(Placed(), ways, passes) == reason


def test_a_pass_that_is_not_the_networks_own_runs_plainly() -> None:
    """Without gradients, with something added or with somebody inside; nothing is recorded, so no GPU is needed."""
    loop, graphed = make_small(dropout=0.0), Graphed()
    batch = loop.train_rows.batch(range(8))
    plain = loop.model(batch)[1]
    with graphed.within(loop.model):
        with torch.no_grad():
            torch.testing.assert_close(loop.model(batch)[1], plain)
        shifted = batch.replace(shift=loop.model.backbone.zero_shift(batch))
        torch.testing.assert_close(loop.model(shifted)[1], plain)
        handle = loop.model.backbone.network.layers[0].register_forward_hook(lambda *args: None)
        torch.testing.assert_close(loop.model(batch)[1], plain)
        handle.remove()
    assert not graphed.made and not graphed.failed
    assert "forward" not in vars(loop.model)


def test_a_recording_that_fails_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    expected = weights(train(make_small(epochs=1)))
    monkeypatch.setattr(Graphed, "_record", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)
    loop = make_small(epochs=1)
    loop.ways = Ways(graphed=Graphed())
    result = train(loop)
    assert all(torch.equal(value, expected[name]) for name, value in weights(result).items())
    said = "CUDA graphs were given up, and steps were computed without them: operation not permitted when stream is"
    assert any(note.startswith(said) for note in result.notes)


def test_a_refusal_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once recording was tried; where there is no GPU to try it on nothing is."""
    loop = make_small()
    monkeypatch.setattr(graphing, "_why_not", lambda *args: None)
    monkeypatch.setattr(graphing, "measured", lambda *args, **options: (Choice(False), "it draws"))
    arguments: Any = (loop.model, loop.train_rows, TrainingSpec(batch_size=8), Ways())
    found = graphing.choose(*arguments, epochs=100, passes=())
    assert found == Choice(False, "passes cannot be CUDA graphs: it draws")


def test_a_clear_gain_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, counted = make_small(), []

    def step(model: nn.Module, batch: Any, precision: str, *, keep: bool = False) -> float:
        counted.append(batch)
        return 0.25 if "forward" in vars(model) else 1.0

    monkeypatch.setattr(graphing, "_step", step)
    monkeypatch.setattr(graphing, "_differs", lambda *args: False)
    monkeypatch.setattr(graphing, "Graphed", lambda: Graphed(made={("a shape",): None}))  # type: ignore[dict-item]
    assert graphing.measured(loop.model, [loop.train_rows.batch(range(8))], Ways(), steps=99, shapes=1)[0].on
    assert len(counted) == 4  # one of each to warm up, one of each that counts


@pytest.mark.parametrize(
    ("gain", "steps", "on"), [(4.0, 1000, True), (1.05, 1000, False), (4.0, 2, False)], ids=["pays", "slow", "short"]
)
def test_auto_takes_what_measured_faster(gain: float, steps: int, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By steps of one second plainly; the first recorded step of a batch takes ten."""
    loop, seen = make_small(), set()

    def step(model: nn.Module, batch: Any, precision: str, *, keep: bool = False) -> float:
        if "forward" not in vars(model):
            return 1.0
        first = id(batch) not in seen
        seen.add(id(batch))
        return 10.0 if first else 1.0 / gain

    def recorded() -> Graphed:
        return Graphed(made={("a shape",): None})  # type: ignore[dict-item]

    monkeypatch.setattr(graphing, "_step", step)
    monkeypatch.setattr(graphing, "_differs", lambda *args: False)
    monkeypatch.setattr(graphing, "Graphed", recorded)
    batches = [loop.train_rows.batch(range(8 * n, 8 * n + 8)) for n in range(3)]
    choice, reason = graphing.measured(loop.model, batches, Ways(), steps=steps, shapes=2)
    assert reason is None and choice.on is on
    assert choice.why == f"both passes are {gain:.1f} times as fast as CUDA graphs, recorded in 20.0 s"


@pytest.mark.parametrize(
    ("asked", "graphs", "packed", "ways"),
    [
        ("auto", Choice(True, "graphs", 3.0), 2.0, (False, True)),
        ("auto", Choice(True, "graphs", 1.2), 2.0, (True, False)),
        ("auto", Choice(False, "graphs", 0.9), 2.0, (True, False)),
        ("on", Choice(True, "as asked", 1.2), 2.0, (False, True)),
    ],
    ids=["graphs win", "packing wins", "no graphs", "graphs asked for"],
)
def test_graphs_and_packing_stand_against_each_other(
    asked: Literal["auto", "on"],
    graphs: Choice,
    packed: float,
    ways: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Packed rows cannot be recorded, so what is faster is taken, and what is asked for."""

    def packing_of(*args: Any, beyond: float, **options: Any) -> Choice:
        return Choice(packed > beyond, "packing", packed)

    monkeypatch.setattr(graphing, "choose", lambda *args, **options: graphs)
    monkeypatch.setattr(packing, "choose", packing_of)
    loop = make_small()
    settled = Settled.of(loop.model, loop.train_rows, TrainingSpec(batch_size=8, cuda_graphs=asked), Precision())
    assert (settled.ways.pack, settled.ways.graphed is not None) == ways
    assert all(why in " ".join(settled.said()) for why in (graphs.why, "packing"))


class Again:
    """What stands in for a graph where there is no GPU: the work itself, done again."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        work()  # what Python does in a pass is done while it is recorded

    def replay(self) -> None:
        with torch.enable_grad():
            self.work()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where runs learn. On a CPU everything but the recording itself is what it is on a GPU."""
    if request.param == "cpu":
        monkeypatch.setattr(Graphed, "_captured", lambda self, work: Again(work))
        monkeypatch.setattr(graphing, "_aside", nullcontext)
        monkeypatch.setattr(graphing, "_uncached", nullcontext)
        monkeypatch.setattr(graphing, "_drawn", random.getstate)  # here dropout draws on the processor
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: None)
    return torch.device(request.param)


def on(place: torch.device, loop: Any, graphed: Graphed | None = None, precision: str = "fp32") -> Any:
    loop.device, loop.ways = place, Ways(precision, graphed=graphed)
    return loop


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=gpu)])
def test_the_weights_are_those_of_the_plain_run(precision: str, place: torch.device) -> None:
    """Dropout draws the same numbers, so whole runs can be compared."""
    found, graphed = [], Graphed()
    for ways in (None, graphed):
        result = train(on(place, make_small(epochs=3, batch_size=16), ways, precision))
        assert not result.notes
        found.append(weights(result))
    assert graphed.made
    assert_same(*found, tolerance=1e-4 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize(
    "training", [{"accumulate": 3}, {"max_tokens": 40}, {"optimizer": "sgd"}], ids=["accumulate", "parts", "sgd"]
)
def test_gradients_add_up_as_plain_ones_do(training: dict[str, Any], place: torch.device) -> None:
    found, graphed = [], Graphed()
    for ways in (None, graphed):
        found.append(weights(train(on(place, make_small(epochs=2, **training), ways))))
    assert graphed.made
    assert_same(*found)


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize(
    "name", ["freeze", "lora", "l2sp", "mixup", "ema", "contrast", "bss", "uncertainty", "smallloss", "rdrop", "vat"]
)
def test_methods_get_the_weights_of_the_plain_run(name: str, kind: str, place: torch.device) -> None:
    """Also those that make passes of their own, though `choose` keeps them from graphs: those passes run plainly."""
    found, graphed = [], Graphed()
    for ways in (None, graphed):
        found.append(weights(train(on(place, make_loop([name], kind, epochs=2), ways))))
    mixes_inside = (name, kind) == ("mixup", "text")
    assert bool(graphed.made) is not mixes_inside and not graphed.failed
    assert_same(*found)


def test_a_second_pass_before_the_first_is_done_runs_plainly(place: torch.device) -> None:
    loop, graphed = make_small(dropout=0.0), Graphed()
    model = loop.model.to(place)
    one, two = (loop.train_rows.batch(range(n, n + 8)).to(place) for n in (0, 8))
    (model(one)[1].square().sum() + model(two)[1].square().sum()).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with graphed.within(model):
        for _ in range(2):
            model.zero_grad()
            (model(one)[1].square().sum() + model(two)[1].square().sum()).backward()
    assert len(graphed.made) == 1
    assert_same(expected, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def test_gradients_come_back_through_features(place: torch.device) -> None:
    """A penalty may be made of pooled features or of those of the tokens."""
    loop, graphed = make_small(dropout=0.0), Graphed()
    model, batch = loop.model.to(place), loop.train_rows.batch(range(8)).to(place)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        features, outputs = model(batch)
        assert torch.equal(features.mask, batch.inputs["attention_mask"])
        (features.pooled.square().sum() + features.tokens[:, 0].sum() + outputs.square().mean()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients()
    with graphed.within(model):
        assert_same(expected, gradients())
        assert_same(expected, gradients())
    assert graphed.made


def test_random_numbers_of_the_processor_are_not_recorded(place: torch.device) -> None:
    class Skipping(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x if random.random() < 0.5 else self.inner(x)

    loop, graphed = make_small(), Graphed()
    model = loop.model.to(place)
    layers = model.backbone.network.layers
    layers[1] = Skipping(layers[1])
    with graphed.within(model):
        model(loop.train_rows.batch(range(8)).to(place))[1].sum().backward()
    assert graphed.failed == "the network draws random numbers on the processor" and not graphed.made


def test_no_more_shapes_are_recorded_than_there_is_room_for(
    place: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphing, "MOST", 2)
    found, graphed = [], Graphed()
    for ways in (None, graphed):
        found.append(weights(train(on(place, make_small(epochs=2), ways))))
    assert len(graphed.made) == 2
    assert_same(*found)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, place: torch.device) -> None:
    whole = weights(train(on(place, make_small(epochs=3), Graphed())))
    checkpoint = tmp_path / "state"
    loop = on(place, make_small(epochs=3, checkpoint=checkpoint), Graphed())

    def stop(event: str, figures: Mapping[str, Any]) -> None:
        if event == "step" and figures["step"] == 10:
            loop.interrupted.set()

    with pytest.raises(Interrupted):
        train(loop, stop)
    again = on(place, make_small(epochs=3, checkpoint=checkpoint))
    assert_same(whole, weights(train(again, resume=True)), tolerance=1e-5)
    assert again.ways.graphed is not None and again.ways.graphed.made


def test_gradients_that_differ_are_seen(place: torch.device) -> None:
    """What a network does on the processor in each pass cannot be recorded, and shows when gradients are compared."""

    class Counting(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.count = inner, 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.inner(x) * self.count

    loop, graphed = make_small(dropout=0.0), Graphed()
    model, batch = loop.model.to(place), loop.train_rows.batch(range(8)).to(place)
    assert not graphing._differs(model, batch, Ways(), graphed)
    layers = model.backbone.network.layers
    layers[1] = Counting(layers[1])
    assert graphing._differs(model, batch, Ways(), Graphed())


@gpu
def test_a_long_run_of_a_small_network_is_given_graphs() -> None:
    loop = make_small(batch_size=16)
    model, rows = loop.model.cuda(), make_rows(256, same_length=True)
    choice = graphing.choose(model, rows, TrainingSpec(batch_size=16), Ways(), epochs=500, passes=())
    assert choice.on and "times as fast as CUDA graphs" in choice.why
    short = graphing.choose(model, replace(rows), TrainingSpec(batch_size=256), Ways(), epochs=1, passes=())
    assert not short.on
