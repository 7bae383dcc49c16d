"""Compiled blocks: the numbers of plain ones, only where they pay, and plain ones where the compiler cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from headstart.steps import compiling
from headstart.steps.compiling import Compiled
from headstart.steps.ways import Ways
from headstart.values import Choice
from method_runs import make_loop, train, weights
from tiny import make_loop as make_small

compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler (g++)")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch.compile that hands the function back and counts its calls."""
    calls: list[int] = []

    def compile_(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        assert options["options"]["fallback_random"]

        def run(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


@compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("again", [False, True])
def test_the_weights_are_those_of_the_plain_run(again: bool) -> None:
    """Dropout draws the same numbers, so whole runs can be compared, with gradient checkpointing too."""
    found = []
    for compile_ in ("off", "on"):
        loop = make_small(epochs=2, batch_size=16)
        loop.ways = Ways(compile=compile_, recompute=again)
        result = train(loop)
        assert not result.notes
        found.append(weights(result))
    assert not torch._dynamo.utils.counters["graph_break"]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


@compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lora_inside_compiled_blocks_gets_the_same_weights() -> None:
    found = []
    for compile_ in ("off", "on"):
        loop = make_loop(["lora"], "text", epochs=1)
        loop.ways = Ways(compile=compile_)
        result = train(loop)
        assert not result.notes
        found.append(weights(result))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


def test_only_what_learns_is_compiled_and_only_in_training(eager: list[int]) -> None:
    loop = make_small(epochs=1, batch_size=16)
    model, batch = loop.model, loop.train_rows.batch(range(8))
    model.backbone.network.layers[0].requires_grad_(False)
    compiled = compiling.all_of(model.backbone.blocks)
    assert len(compiled.forwards) == 2
    with compiled.within():
        model(batch)
        assert len(eager) == 2
        with torch.no_grad():
            model(batch)
    model(batch)
    assert len(eager) == 2


def test_a_block_that_is_looked_into_runs_plainly(eager: list[int]) -> None:
    loop = make_small()
    layers = loop.model.backbone.network.layers
    seen: list[int] = []
    layers[0].linear.register_forward_hook(lambda *args: seen.append(1))
    with compiling.all_of(layers).within():
        loop.model(loop.train_rows.batch(range(8)))
    assert len(eager) == 2 and len(seen) == 1


def test_a_compiler_that_fails_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(function: object, **options: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no working C++ compiler\nwas found")

        return run

    expected = weights(train(make_small(epochs=1)))
    monkeypatch.setattr(torch, "compile", compile_)
    loop = make_small(epochs=1)
    loop.ways = Ways(compile="on")
    result = train(loop)
    assert all(torch.equal(value, expected[name]) for name, value in weights(result).items())
    said = "the compiler was given up, and steps were computed without it: no working C++ compiler was found"
    assert said in result.notes
    loop.ways = Ways(compile="auto", seconds=1e6)
    assert "blocks cannot be compiled here: no working" in loop.ways.settled(loop.model, lambda: [one(loop)])[1].why


def one(loop: Any) -> Any:
    return loop.train_rows.batch(range(8))


@pytest.mark.parametrize(
    ("ratio", "on", "said"),
    [(2.0, True, "2.00 times as fast"), (1.02, False, "1.02 times as fast"), (0.5, False, "0.50 times as fast")],
)
def test_auto_takes_what_measured_faster(
    ratio: float, on: bool, said: str, eager: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(model: object, batch: object, around: object) -> float:
        return 1.0 / ratio if "forward" in vars(loop.model.backbone.network.layers[0]) else 1.0

    monkeypatch.setattr(compiling, "_step", step)
    loop = make_small()
    loop.model.requires_grad_(True)
    ways, choice = Ways(compile="auto", seconds=1e6).settled(loop.model, lambda: [one(loop)] * 3)
    assert choice.on is on and said in choice.why and "compiling took" in choice.why
    assert (ways.compiled is not None) is on


def test_auto_spends_nothing_on_a_short_run(eager: list[int]) -> None:
    loop = make_small(epochs=1)
    for seconds in (None, compiling.LONG - 1):
        loop.ways = Ways(compile="auto", seconds=seconds)
        assert loop.ways.settled(loop.model, lambda: [one(loop)]) == (loop.ways, Choice(False))
    assert not eager


def test_compiling_for_too_long_is_given_up(eager: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "SHARE", 0.0)
    loop = make_small()
    found, choice = compiling.choose(loop.model, [one(loop)], 1e6, lambda: loop.ways.pass_(loop.model))
    assert found is None and "was given up" in choice.why and len(eager) == 1


def test_measuring_leaves_the_model_as_it_was(eager: list[int]) -> None:
    loop = make_loop([], "image", like="prune")
    loop.model.train()
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    state = torch.random.get_rng_state()
    loop.ways.settled(loop.model, lambda: [one(loop)])
    compiling.choose(loop.model, [one(loop)] * 3, 1e6, lambda: loop.ways.pass_(loop.model))
    assert eager
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in loop.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())


def test_a_run_that_was_begun_compiled_ends_so(eager: list[int], tmp_path: Any) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = make_small(checkpoint=checkpoint, checkpoint_every=1e-9, epochs=1)
    first.ways = Ways(compile="on")
    first.train()
    assert first.result.compiled == Choice(True, "as asked")
    again = make_small(checkpoint=checkpoint, epochs=1)
    again.train(resume=True)
    assert isinstance(again.ways.compiled, Compiled)
