"""ema and soup."""

from __future__ import annotations

import pytest
import torch
from method_helpers import TinyTask, make_context, make_model
from torch import Tensor, nn

from headstart.methods.ema import EMA
from headstart.methods.soup import Soup, average


def wander(model: nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=g))
        for b in model.buffers():
            if b.is_floating_point():
                b.add_(torch.rand(b.shape, generator=g))


def test_ema_follows_the_recursion() -> None:
    model, method = make_model("image"), EMA(decay=0.3)
    expected: dict[str, Tensor] = {}
    for t in range(1, 6):
        wander(model, t)
        method.after_step(model, make_context("image"))
        d = min(0.3, (1 + t) / (10 + t))
        for name, p in model.named_parameters():
            value = p.detach().clone()
            expected[name] = value if t == 1 else d * expected[name] + (1 - d) * value
    found = method.weights()
    assert found is not None and found.keys() == model.state_dict().keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)
    for name, buffer in model.named_buffers():
        assert torch.equal(found[name], buffer), "buffers are copied as they are"
    assert not torch.allclose(found["head.weight"], model.head.weight)


def test_ema_does_not_move_with_the_model() -> None:
    model, method = make_model("image"), EMA()
    method.after_step(model, make_context("image"))
    before = {name: value.clone() for name, value in (method.weights() or {}).items()}
    wander(model, 1)
    after = method.weights() or {}
    assert before and all(torch.equal(before[name], after[name]) for name in before)


def test_ema_before_any_step_has_no_weights() -> None:
    assert EMA().weights() is None
    assert EMA().state() == {}


def test_ema_holds_frozen_weights_by_reference_and_takes_them_in_when_they_thaw() -> None:
    model, method = make_model(), EMA(decay=0.5)
    frozen = model.backbone.network.embedding.weight.requires_grad_(False)
    for step in range(3):
        wander(model, step)
        method.after_step(model, make_context())
    assert "backbone.network.embedding.weight" not in method.shadow_
    assert torch.equal((method.weights() or {})["backbone.network.embedding.weight"], frozen)
    thawed = frozen.detach().clone()
    frozen.requires_grad_(True)
    method.after_step(model, make_context())
    with torch.no_grad():
        frozen.add_(1.0)
    method.after_step(model, make_context())
    decay = min(0.5, 6 / 15)
    torch.testing.assert_close((method.weights() or {})["backbone.network.embedding.weight"], thawed + (1 - decay))


def test_ema_of_tied_weights_loads_the_average_under_both_names() -> None:
    model, method = make_model(), EMA(decay=0.5)
    model.backbone.network.layers[0].mixer.weight = model.backbone.network.layers[1].mixer.weight
    for step in range(3):
        wander(model, step)
        method.after_step(model, make_context())
    found = dict(method.weights() or {})
    names = [f"backbone.network.layers.{i}.mixer.weight" for i in (0, 1)]
    assert torch.equal(found[names[0]], found[names[1]])
    model.load_state_dict(found)
    assert torch.equal(model.state_dict()[names[0]], found[names[0]])


def test_ema_state_is_exact() -> None:
    straight, halted = EMA(0.4), EMA(0.4)
    model = make_model("image")
    for step in range(6):
        wander(model, step)
        straight.after_step(model, make_context())
        if step == 3:
            resumed = EMA(0.4)
            resumed.load_state(halted.state(), model)
            halted = resumed
        halted.after_step(model, make_context())
        if step == 4:
            state = halted.state()
            halted = EMA(0.4)
            halted.load_state(state, model)
            one, two = straight.weights(), halted.weights()
            assert one is not None and two is not None
            assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = straight.weights(), halted.weights()
    assert one is not None and two is not None
    assert all(torch.equal(one[name], two[name]) for name in one)


def checkpoints(method: Soup, scores: list[float], **changes: object) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    model, kept = make_model("image"), []
    model.backbone.network.first.weight.requires_grad_(False)
    for step, score in enumerate(scores):
        wander(model, step)
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        method.after_validation(model, score, make_context("image", **changes))
    return model, kept


def equal(model: nn.Module, expected: dict[str, Tensor]) -> bool:
    return all(torch.allclose(value, expected[name], atol=1e-6) for name, value in model.state_dict().items())


def mean(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The slow, obvious mean."""
    return {
        name: torch.stack([part[name].double() for part in parts]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in parts[0].items()
    }


def test_soup_averages_the_best_k() -> None:
    method = Soup(k=2)
    model, kept = checkpoints(method, [0.1, 0.7, float("nan"), 0.3, 0.9])
    assert method.finish(model, make_context("image")) is model
    assert equal(model, mean([kept[4], kept[1]]))
    assert method.mixed_ == 2


def test_soup_follows_the_tasks_direction() -> None:
    class Lower(TinyTask):
        greater_is_better = False

    method = Soup(k=2)
    model, kept = checkpoints(method, [0.1, 0.7, 0.3], task=Lower())
    method.finish(model, make_context("image", task=Lower()))
    assert equal(model, mean([kept[0], kept[2]]))


def test_soup_falls_back_to_the_best_when_the_average_is_worse() -> None:
    method = Soup(k=3)
    model, kept = checkpoints(method, [0.1, 0.7, 0.3])
    best = kept[1]

    def validate(candidate: nn.Module) -> float:
        return 0.7 if equal(candidate, best) else 0.2

    method.finish(model, make_context("image", validate=validate))
    assert equal(model, best) and method.mixed_ == 1
    method.finish(model, make_context("image", validate=lambda candidate: 0.7))
    assert method.mixed_ == 3, "an average that is as good is taken"


def test_greedy_soup_is_algorithm_1() -> None:
    method = Soup(k=3, mix="greedy")
    model, kept = checkpoints(method, [0.5, 0.7, 0.6])
    # Best is 1, then 2, then 0. Adding 2 hurts, adding 0 to {1} helps.
    good, pair = kept[1], mean([kept[1], kept[0]])

    def validate(candidate: nn.Module) -> float:
        return 0.8 if equal(candidate, pair) else 0.7 if equal(candidate, good) else 0.1

    method.finish(model, make_context("image", validate=validate))
    assert equal(model, pair) and method.mixed_ == 2
    alone = Soup(k=3, mix="greedy")
    model, kept = checkpoints(alone, [0.5, 0.7, 0.6])
    alone.finish(model, make_context("image"))
    assert equal(model, kept[1]) and alone.mixed_ == 1, "nothing to judge by: the best alone"


def test_soup_of_nothing_leaves_the_model() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Soup().finish(model, make_context())
    assert equal(model, before)


def test_soup_state_is_exact_and_holds_unchanged_tensors_once() -> None:
    method = Soup(k=3)
    model, _ = checkpoints(method, [0.5, 0.7, 0.6])
    state = method.state()
    names = len(model.state_dict())
    assert len(state["tensors"]) < 3 * names, "the frozen weight and counters are shared"
    frozen = [weights["backbone.network.first.weight"] for _, weights in method.kept_]
    assert frozen[0] is frozen[1] is frozen[2]
    again = Soup(k=3)
    again.load_state({**state, "tensors": {key: value.clone() for key, value in state["tensors"].items()}}, model)
    assert [score for score, _ in again.kept_] == [0.7, 0.6, 0.5]
    for (_, one), (_, two) in zip(method.kept_, again.kept_, strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    Soup().load_state({}, model)


def test_average_sums_in_double() -> None:
    big = torch.tensor([16777216.0, 1.0])
    found = average([{"w": big}, {"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 2.0])}])
    torch.testing.assert_close(found["w"], torch.tensor([(16777216.0 + 2) / 3, 2.0]), rtol=1e-7, atol=0)


@pytest.mark.parametrize("method", [EMA(), Soup()])
def test_no_random_numbers_are_used(method: EMA | Soup) -> None:
    state = torch.get_rng_state()
    method.after_step(make_model(), make_context())
    method.after_validation(make_model(), 0.5, make_context())
    assert torch.equal(state, torch.get_rng_state())
