"""Every method in the catalogue, on texts, pictures and sounds, through the real loop: a new file is born tested."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from headstart.catalog import entries, name_of
from headstart.errors import MethodError
from headstart.hooks import Hooks
from headstart.protocols import Method, overrides
from method_runs import DEVICE, make_loop, make_method, make_rows, same, train, weights

NAMES = sorted(entries("methods"))
KINDS = ("text", "image", "audio")
ONLY = {
    "cutmix": "image", "cutoff": "text", "rdrop": ("text", "audio"), "smallloss": ("text", "audio"),
    "stochnorm": "image",
}  # fmt: skip
"""Methods that only some of the tiny networks can show: the one for pictures draws no dropout, the others have no
BatchNorm. Pictures are best after the first epoch, whose weights are kept; `smallloss` acts from the second on."""
BEFORE = {name for name in NAMES if overrides(make_method(name), "rows")}
"""Methods that work on raw rows, before the loop with which these runs start: their own tests train with them."""
RUNS = [(name, kind) for name in NAMES for kind in KINDS if name not in BEFORE and kind in ONLY.get(name, KINDS)]


def test_the_first_ten_are_there() -> None:
    wanted = {"freeze", "lora", "adapter", "l2sp", "mixup", "cutmix", "augment", "fgm", "pgd", "ema", "soup"}
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_plain_and_come_back(name: str) -> None:
    method = make_method(name)
    record = json.loads(json.dumps(method.options()))
    again = type(method)(**record)
    assert dataclasses.asdict(again) == dataclasses.asdict(method)
    assert name_of("methods", type(method)) == name


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_what_is_asked_of_it(name: str) -> None:
    doc = entries("methods")[name].doc
    for heading in ("Equation:", "Source:", "Requires:", "Shapes:", "Neighbours:", "Example:", "Defaults:"):
        assert heading in doc, f"{name} lacks {heading}"
    positions = [doc.index(h) for h in ("Equation:", "Source:", "Requires:", "Shapes:", "Neighbours:", "Example:")]
    assert positions == sorted(positions)
    for option in type(make_method(name)).__dataclass_fields__:
        assert re.search(rf"\b{option}\b", doc), f"{name} does not explain its option {option}"


@pytest.mark.parametrize("name", NAMES)
def test_a_method_overrides_at_least_one_hook(name: str) -> None:
    hooks = [h for h, v in vars(Method).items() if callable(v) and not h.startswith("_")]
    assert any(overrides(make_method(name), hook) for hook in hooks)


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_it_trains_repeats_and_is_not_idle(name: str, kind: str) -> None:
    first, second = train(make_loop([name], kind)), train(make_loop([name], kind))
    assert same(weights(first), weights(second))
    assert first.notes == []
    assert first.best is not None
    plain = weights(train(make_loop([], kind, like=name)))
    # A soup falls back to the best weights where the average validates worse; its own tests look closer.
    if name != "soup":
        assert not same(weights(first), plain), "a run with the method ends where a run without it ends"
    for parameter in first.model.parameters():
        assert bool(torch.isfinite(parameter).all())


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_a_cut_off_run_resumes_with_identical_weights(name: str, kind: str, tmp_path: Path) -> None:
    expected = weights(train(make_loop([name], kind)))
    checkpoint = tmp_path / "state.safetensors"

    class Cut(Exception):
        pass

    def cut(event: str, figures: object) -> None:
        if event == "step" and figures["step"] == 6:  # type: ignore[index]
            raise Cut

    with pytest.raises(Cut):
        train(make_loop([name], kind, checkpoint=checkpoint), cut)
    assert same(weights(train(make_loop([name], kind, checkpoint=checkpoint), resume=True)), expected)


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_surgery_that_stays_can_be_repeated_for_the_saved_weights(name: str, kind: str) -> None:
    loop = make_loop([name], kind)
    result = train(loop)
    trained = loop.hooks.methods[name]
    method = type(trained)(**json.loads(json.dumps(trained.options())))
    fresh = make_loop([], kind, like=name).model.to(DEVICE)
    if method.remains():
        fresh = Hooks({name: method}, loop.hooks.task, loop.hooks.modality, seed=0).adapt(fresh)
    fresh.load_state_dict(result.model.state_dict(), strict=True)
    batch = make_rows(kind, 1).batch(range(8)).to(DEVICE)
    fresh.eval()
    result.model.eval()
    with torch.no_grad():
        assert torch.allclose(fresh(batch)[1], result.model(batch)[1], atol=1e-6 if DEVICE.type == "cpu" else 1e-5)


def test_cutmix_is_refused_on_text_with_the_reason() -> None:
    with pytest.raises(MethodError, match="'cutmix' cannot be used here"):
        make_loop(["cutmix"], "text")
