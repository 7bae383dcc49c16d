"""What tried passes leave behind, and when two ways count as different."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headstart.steps.untouched import apart, untouched

LARGE = torch.tensor([1.0, -2.0])


@pytest.mark.parametrize(
    ("ones", "others", "differs"),
    [
        ([LARGE], [LARGE * 1.0005], False),
        ([LARGE], [LARGE * 1.002], True),
        ([LARGE, 1e-3 * LARGE], [LARGE, 1.01e-3 * LARGE], True),
        ([LARGE, 1e-7 * LARGE], [LARGE, -1e-7 * LARGE], False),
        ([1e-6 * LARGE], [-1e-6 * LARGE], True),
        ([LARGE, None], [LARGE, None], False),
        ([LARGE, None], [LARGE, LARGE], True),
        ([LARGE, LARGE], [LARGE, None], True),
        ([LARGE], [LARGE * float("nan")], True),
        ([], [], False),
    ],
    ids=["equal", "larger", "small", "rounding", "nothing else", "both none", "one none", "other none", "nan", "empty"],
)
def test_what_counts_as_different(ones: list[Tensor | None], others: list[Tensor | None], differs: bool) -> None:
    """By a thousandth of a tensor's largest number, or of a thousandth of the largest of all."""
    assert apart(ones, others, 1e-3) is differs


def test_passes_leave_no_trace() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    drawn = torch.rand(2)
    torch.manual_seed(0)
    with untouched(model):
        model(torch.randn(8, 3)).sum().backward()
    assert torch.equal(torch.rand(2), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
