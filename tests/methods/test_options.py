"""What all methods have in common: bad options, neutral hooks, docstrings, randomness from the context alone."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import make_batch, make_context, make_model, same_batch

from headstart import methods
from headstart.catalog import entries
from headstart.errors import MethodError
from headstart.protocols import Method, overrides

NAMES = ("freeze", "lora", "adapter", "l2sp", "mixup", "cutmix", "augment", "fgm", "pgd", "ema", "soup")
HOOKS = {
    "freeze": {"groups"},
    "lora": {"adapt", "groups", "finish"},
    "adapter": {"adapt", "groups"},
    "l2sp": {"prior"},
    "mixup": {"transform"},
    "cutmix": {"transform"},
    "augment": {"adapt", "transform"},
    "fgm": {"adapt", "backward"},
    "pgd": {"adapt", "backward"},
    "ema": {"after_step", "weights"},
    "soup": {"after_validation", "finish"},
}
ALL_HOOKS = (
    "adapt", "groups", "stream", "transform", "penalty", "prior", "backward", "gradients", "after_step",
    "after_validation", "weights", "finish",
)  # fmt: skip


def make(name: str, **options: Any) -> Method:
    return entries("methods")[name].load()(**options)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("freeze", {"top": 0}, "freeze:probe"),
        ("freeze", {"top": 2.5}, "whole number"),
        ("freeze", {"top": True}, "whole number"),
        ("freeze", {"bottom": -1}, "at least 0"),
        ("freeze", {"decay": 0}, "above 0"),
        ("freeze", {"decay": 1.5}, "at most 1"),
        ("freeze", {"gradual": -1}, "at least 0"),
        ("freeze", {"bitfit": "yes"}, "true or false"),
        ("freeze", {"probe": True, "top": 2}, "freeze:top"),
        ("freeze", {"probe": True, "decay": 0.9}, "freeze:decay"),
        ("freeze", {"top": 2, "bottom": 1}, "freeze:bottom=1"),
        ("freeze", {"bitfit": True, "norms": True}, "keep one"),
        ("freeze", {"biases": True, "norms": True}, "keep one"),
        ("lora", {"r": 0}, "at least 1"),
        ("lora", {"alpha": -1.0}, "above 0"),
        ("lora", {"dropout": 1.0}, "at most 0.99"),
        ("lora", {"merge": 1}, "true or false"),
        ("lora", {"targets": []}, "a list of layer names"),
        ("lora", {"targets": [3]}, "a list of layer names"),
        ("lora", {"init": "x", "r": 4}, "leave r out"),
        ("lora", {"init": 3}, "a folder that PEFT wrote"),
        ("adapter", {"reduction": 0}, "at least 1"),
        ("adapter", {"width": 0}, "at least 1"),
        ("adapter", {"activation": "rel"}, "did you mean 'relu'"),
        ("l2sp", {"weight": 0}, "above 0"),
        ("l2sp", {"weight": float("nan")}, "above 0"),
        ("l2sp", {"beta": -1}, "at least 0"),
        ("l2sp", {"weight": "much"}, "received 'much'"),
        ("mixup", {"alpha": 0}, "above 0"),
        ("mixup", {"probability": 2}, "at most 1"),
        ("cutmix", {"alpha": -1}, "above 0"),
        ("cutmix", {"probability": 0}, "above 0"),
        ("augment", {"flip": 1.5}, "at most 1"),
        ("augment", {"crop": 0}, "above 0"),
        ("augment", {"rotate": 200}, "at most 180"),
        ("augment", {"magnitude": 31}, "from 0 to 30"),
        ("augment", {"swap": -0.1}, "at least 0"),
        ("augment", {"share": 0}, "above 0"),
        ("augment", {"neighbours": 0}, "at least 1"),
        ("fgm", {"eps": 0}, "above 0"),
        ("fgm", {"weight": float("inf")}, "above 0"),
        ("pgd", {"steps": 0}, "at least 1"),
        ("pgd", {"norm": "l1"}, "'auto' or 'l2' or 'linf'"),
        ("pgd", {"clean": 1.0}, "at most 0.99"),
        ("pgd", {"step": 0}, "above 0"),
        ("pgd", {"random": 0}, "true or false"),
        ("ema", {"decay": 1.0}, "received 1.0"),
        ("soup", {"k": 1}, "at least 2"),
        ("soup", {"mix": "greed"}, "did you mean 'greedy'"),
    ],
)
def test_a_bad_option_is_refused_with_the_way_out(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError) as caught:
        make(name, **options)
    message = str(caught.value)
    assert says in message
    assert f"{name}:" in message


def test_classes_are_reached_from_the_package() -> None:
    assert methods.Freeze(top=2).top == 2
    assert methods.L2SP(0.05).weight == 0.05
    for name in ("LoRA", "Adapter", "Mixup", "CutMix", "Augment", "FGM", "PGD", "EMA", "Soup"):
        assert issubclass(getattr(methods, name), Method)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_overrides_the_hooks_it_is_known_for_and_no_other(name: str) -> None:
    method = make(name)
    assert {hook for hook in ALL_HOOKS if overrides(method, hook)} == HOOKS[name]


@pytest.mark.parametrize("name", NAMES)
def test_hooks_that_are_not_overridden_are_neutral(name: str) -> None:
    method, model, batch, ctx = make(name), make_model(), make_batch(), make_context()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if "adapt" not in HOOKS[name]:
        assert method.adapt(model, ctx) is model
    if "transform" not in HOOKS[name]:
        assert method.transform(batch, ctx) is batch
    if "prior" not in HOOKS[name]:
        assert method.prior(model, ctx) == {}
    if "weights" not in HOOKS[name]:
        assert method.weights() is None
    if "finish" not in HOOKS[name]:
        assert method.finish(model, ctx) is model
    assert list(method.stream([batch], ctx)) == [batch]
    assert method.penalty(None, ctx) == {}  # type: ignore[arg-type]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_has_every_part_in_order(name: str) -> None:
    text = inspect.getdoc(entries("methods")[name].load()) or ""
    parts = ["Equation:", "Source:", "Requires:", "Shapes:", "Neighbours:", "Example:", "Defaults:"]
    places = [text.find(f"\n\n{part}") for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    first = text.split("\n", 1)[0]
    assert first.endswith(".") and len(first) < 120
    assert f"--method {name}" in text and "hs.methods." in text
    for option in entries("methods")[name].load()().options():
        assert option in text, f"the option {option} is not explained"


@pytest.mark.parametrize("name", NAMES)
def test_options_make_the_same_method_again(name: str) -> None:
    method = make(name)
    again = make(name, **method.options())
    assert again.options() == method.options()


@pytest.mark.parametrize(("name", "kind"), [
    ("mixup", "text"), ("mixup", "image"), ("cutmix", "image"), ("augment", "text"), ("augment", "image"),
])  # fmt: skip
def test_transforms_draw_from_the_context_alone(name: str, kind: str) -> None:
    def run(seed: int, disturb: int) -> Any:
        torch.manual_seed(disturb)
        np.random.seed(disturb)
        method = make(name)
        method.adapt(make_model(kind), make_context(kind))
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        found = method.transform(make_batch(kind), make_context(kind, seed))
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == np.random.get_state()[1].tolist()
        return found

    assert same_batch(run(3, 1), run(3, 2))
    assert not same_batch(run(3, 1), run(4, 1))
    original = make_batch(kind)
    method = make(name)
    method.adapt(make_model(kind), make_context(kind))
    method.transform(original, make_context(kind))
    assert same_batch(original, make_batch(kind)), "the given batch was changed in place"
