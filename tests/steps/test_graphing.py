"""Passes as CUDA graphs: the numbers of plain ones, only where they can be had and where they pay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headstart.errors import SpecError
from headstart.spec import TrainingSpec
from headstart.steps import graphing
from headstart.steps.graphing import Graphed
from headstart.steps.ways import Ways
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


def on_gpu(loop: Any) -> Any:
    loop.device = torch.device("cuda")
    return loop


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


@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_weights_are_those_of_the_plain_run(precision: str) -> None:
    """Dropout draws the same numbers, so whole runs can be compared."""
    found, made = [], 0
    for graphed in (None, Graphed()):
        loop = on_gpu(make_small(epochs=3, batch_size=16))
        loop.ways = Ways(precision, graphed=graphed)
        result = train(loop)
        assert not result.notes
        found.append(weights(result))
        made = len(graphed.made) if graphed else 0
    assert made
    assert_same(*found, tolerance=1e-4 if precision == "fp32" else 2e-2)


@gpu
@pytest.mark.parametrize(
    "training", [{"accumulate": 3}, {"max_tokens": 40}, {"optimizer": "sgd"}], ids=["accumulate", "parts", "sgd"]
)
def test_gradients_add_up_as_plain_ones_do(training: dict[str, Any]) -> None:
    found = []
    for graphed in (None, Graphed()):
        loop = on_gpu(make_small(epochs=2, **training))
        loop.ways = Ways(graphed=graphed)
        found.append(weights(train(loop)))
    assert graphed is not None and graphed.made
    assert_same(*found)


@gpu
@pytest.mark.parametrize(
    "names", [["freeze"], ["lora"], ["l2sp"], ["mixup"], ["ema"], ["sam"], ["rdrop"], ["fgm"], ["pcgrad"]]
)
def test_methods_get_the_weights_of_the_plain_run(names: list[str]) -> None:
    """Those that make passes of their own are kept from graphs by `choose`, and get right ones all the same."""
    found = []
    for graphed in (None, Graphed()):
        loop = on_gpu(make_loop(names, "text", epochs=2))
        loop.ways = Ways(graphed=graphed if names not in (["sam"], ["rdrop"], ["fgm"], ["pcgrad"]) else None)
        found.append(weights(train(loop)))
    assert_same(*found)


@gpu
def test_a_second_pass_before_the_first_is_done_runs_plainly() -> None:
    loop, graphed = on_gpu(make_small(dropout=0.0)), Graphed()
    model = loop.model.cuda()
    one, two = (loop.train_rows.batch(range(n, n + 8)).to("cuda") for n in (0, 8))
    (model(one)[1].square().sum() + model(two)[1].square().sum()).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with graphed.within(model):
        for _ in range(2):
            model.zero_grad()
            (model(one)[1].square().sum() + model(two)[1].square().sum()).backward()
    assert len(graphed.made) == 1
    assert_same(expected, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


@gpu
def test_random_numbers_of_the_processor_are_not_recorded() -> None:
    class Skipping(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x if torch.rand([]) < 0.5 else self.inner(x)

    loop, graphed = on_gpu(make_small()), Graphed()
    model = loop.model.cuda()
    layers = model.backbone.network.layers
    layers[1] = Skipping(layers[1])
    with graphed.within(model):
        model(loop.train_rows.batch(range(8)).to("cuda"))[1].sum().backward()
    assert graphed.failed == "the network draws random numbers on the processor" and not graphed.made


@gpu
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    from headstart.errors import Interrupted

    whole = weights(train(graphs(make_small(epochs=3))))
    checkpoint = tmp_path / "state"
    loop = graphs(make_small(epochs=3, checkpoint=checkpoint))

    def stop(event: str, figures: Mapping[str, Any]) -> None:
        if event == "step" and figures["step"] == 10:
            loop.interrupted.set()

    with pytest.raises(Interrupted):
        train(loop, stop)
    again = on_gpu(make_small(epochs=3, checkpoint=checkpoint))
    assert_same(whole, weights(train(again, resume=True)), tolerance=1e-5)
    assert again.ways.graphed is not None and again.ways.graphed.made


def graphs(loop: Any) -> Any:
    on_gpu(loop).ways = Ways(graphed=Graphed())
    return loop


@gpu
def test_a_long_run_of_a_small_network_is_given_graphs() -> None:
    loop = make_small(batch_size=16)
    model, rows = loop.model.cuda(), make_rows(256, same_length=True)
    choice = graphing.choose(model, rows, TrainingSpec(batch_size=16), Ways(), epochs=500, passes=())
    assert choice.on and "times as fast as CUDA graphs" in choice.why
    short = graphing.choose(model, replace(rows), TrainingSpec(batch_size=256), Ways(), epochs=1, passes=())
    assert not short.on
