"""Weights kept, copied and swapped in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headstart import aside
from headstart.running import copied, swapped, twin


def make() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    return model


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=["memory", "file"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(aside, "FEW", {"memory": aside.FEW, "file": 0}[request.param])
    return str(request.param)


def test_a_copy_keeps_what_the_model_was(where: str) -> None:
    model = make()
    before, kept = values(model), copied(model)
    model[0].weight.data += 1
    model[1].running_mean += 1
    assert same(kept, before)
    model.load_state_dict(kept)
    assert same(values(model), before)


def test_a_twin_goes_its_own_way(where: str) -> None:
    model = make()
    other, before = twin(model), values(model)
    assert same(values(other), before)
    assert other[2].weight is other[0].weight
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
    model[0].weight.data += 1
    assert same(values(other), before)
    other(torch.randn(3, 4)).sum().backward()
    torch.optim.SGD([p for p in other.parameters() if p.requires_grad], 0.1).step()
    assert not torch.equal(other[0].weight, before["0.weight"])
    assert torch.equal(model[0].weight, before["0.weight"] + 1)


def test_weights_are_swapped_in_for_a_while() -> None:
    model = make()
    before = values(model)
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    other = {"2.weight": torch.ones(4, 4), "1.running_var": torch.full((4,), 3.0)}
    with pytest.raises(KeyError), swapped(model, other):
        assert same({name: model.state_dict()[name] for name in other}, other)
        assert torch.equal(model[0].weight, before["0.weight"])
        raise KeyError
    assert same(values(model), before)


def test_what_is_the_models_own_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    loaded: list[set[str]] = []
    usual = model.load_state_dict
    monkeypatch.setattr(model, "load_state_dict", lambda given, **how: (loaded.append(set(given)), usual(given, **how)))
    with swapped(model, {**model.state_dict(), "1.bias": torch.ones(4)}):
        assert model[1].bias.tolist() == [1.0] * 4
    assert loaded == [{"1.bias"}, {"1.bias"}]
    with swapped(model, None):
        assert len(loaded) == 2
