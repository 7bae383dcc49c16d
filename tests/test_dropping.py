"""Dropout with fewer random numbers: rates, means, gradients, draws by the seed, and what it leaves to torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headstart import dropping


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_numbers_are_dropped_at_the_rate_and_the_mean_stays(kind: torch.dtype, rate: float) -> None:
    torch.manual_seed(0)
    size = 1_000_003  # no multiple of four
    made = dropping.dropped(torch.ones(size, dtype=kind), rate)
    share = float((made == 0).float().mean())
    assert abs(share - rate) < 4 * (rate * (1 - rate) / size) ** 0.5 + 2**-16
    assert made.dtype == kind
    assert float(made.max()) == pytest.approx(1 / (1 - rate), rel=1e-4 if kind == torch.float32 else 1e-2)
    assert len(made.unique()) == 2


def test_neighbours_are_dropped_independently() -> None:
    """Four numbers share a draw of 64 bits."""
    torch.manual_seed(0)
    gone = (dropping.kept((250_000, 4), 0.3) == 0).double()
    crossed = torch.corrcoef(gone.T)
    assert float((crossed - torch.eye(4)).abs().max()) < 0.01
    ahead = torch.corrcoef(torch.stack([gone.flatten()[:-1], gone.flatten()[1:]]))
    assert abs(float(ahead[0, 1])) < 0.01


def test_gradients_pass_where_numbers_did() -> None:
    torch.manual_seed(0)
    states = torch.randn(40, 50, dtype=torch.float64).float().requires_grad_()
    made = dropping.dropped(states, 0.25)
    (slope,) = torch.autograd.grad(made.sum(), states)
    assert torch.equal(slope != 0, made != 0)
    torch.testing.assert_close(made, slope * states)


def test_second_derivatives_pass_too() -> None:
    states = torch.randn(64, requires_grad=True)
    torch.manual_seed(1)
    made = dropping.dropped(states.square(), 0.5)
    (first,) = torch.autograd.grad(made.sum(), states, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), states)
    torch.testing.assert_close(second * states.detach(), first.detach())


def test_a_seed_drops_the_same_and_another_otherwise() -> None:
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(dropping.dropped(torch.ones(1000), 0.5))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_states_of_any_layout_and_size() -> None:
    turned = torch.randn(6, 5, 4).transpose(0, 2)
    made = dropping.dropped(turned, 0.4)
    assert made.shape == turned.shape
    torch.testing.assert_close(made[made != 0] * (1 - 0.4), turned[made != 0], rtol=1e-4, atol=0)
    assert dropping.dropped(torch.ones(0, 3), 0.4).shape == (0, 3)
    assert dropping.dropped(torch.ones(()), 0.4).shape == ()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_nothing_or_all_is_dropped(rate: float) -> None:
    assert torch.equal(dropping.dropped(torch.ones(9), rate), torch.full((9,), 1 - rate))


def test_numbers_of_eight_bytes_are_left_to_torch() -> None:
    states = torch.ones(100, dtype=torch.float64)
    torch.manual_seed(0)
    expected = nn.functional.dropout(states, 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropping.dropped(states, 0.5), expected)


def test_a_network_gets_it_in_the_place_of_torchs_modules() -> None:
    class Own(nn.Dropout):
        pass

    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.3)), Own(0.4), nn.Dropout1d())
    network[2].eval()
    names = list(network.state_dict())
    dropping.lighten(network)
    kinds = [type(module).__name__ for module in network.modules() if "Drop" in type(module).__name__ or
             type(module) is Own]  # fmt: skip
    assert kinds == ["Dropout", "Dropout", "Own", "Dropout1d"]
    assert type(network[1]) is dropping.Dropout and network[1].p == 0.2 and network[1].training
    assert not network[2][0].training
    assert list(network.state_dict()) == names
    states = torch.randn(4, 3)
    assert torch.equal(network[1].eval()(states), states)
