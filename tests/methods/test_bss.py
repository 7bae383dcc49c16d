from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import make_batch, make_context, make_model

from headstart.errors import MethodError
from headstart.methods.bss import BSS
from headstart.values import Features, View


def penalty(pooled: torch.Tensor, **options: Any) -> torch.Tensor:
    view = View(make_batch(), Features(pooled), pooled, pooled.sum(1), make_model())
    return BSS(**options).penalty(view, make_context())["bss"]


@pytest.mark.parametrize("shape", [(6, 16), (20, 4)])
@pytest.mark.parametrize("k", [1, 3])
def test_value_and_gradient_are_those_of_the_smallest_eigenvalues(shape: tuple[int, int], k: int) -> None:
    pooled = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = penalty(pooled, weight=0.5, k=k)
    f = pooled.detach().double().numpy()
    # s_i^2 are the eigenvalues of F^T F and its eigenvectors v_i give the gradient 2 F v_i v_i^T of each.
    values, vectors = np.linalg.eigh(f.T @ f)
    chosen = np.argsort(values)[max(0, shape[1] - shape[0]) :][:k]
    assert float(found.detach()) == pytest.approx(0.5 * values[chosen].sum(), rel=1e-4)
    found.backward()
    expected = sum(2 * 0.5 * f @ np.outer(vectors[:, i], vectors[:, i]) for i in chosen)
    np.testing.assert_allclose(pooled.grad.numpy(), expected, atol=1e-4)


def test_the_largest_value_is_left_alone() -> None:
    row = torch.randn(1, 16).requires_grad_()
    found = penalty(row)
    found.backward()
    assert float(found.detach()) == 0 and float(row.grad.abs().sum()) == 0
    two = torch.randn(2, 16)
    assert float(penalty(two, weight=1.0, k=9)) == pytest.approx(float(torch.linalg.svdvals(two)[1] ** 2), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"weight": -1}, "expected bss:weight to be a number above 0"), ({"k": 0}, "expected bss:k to be a whole number")],
)
def test_a_bad_option_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        BSS(**options)
