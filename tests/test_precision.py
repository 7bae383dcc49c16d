"""The choice between fp32 and bf16: as asked, else what measured faster, and the same to the end of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from headstart import planning, precision
from method_runs import make_loop


@pytest.mark.parametrize(
    ("half", "chosen", "said"),
    [(0.5, True, "2.0 times as fast"), (0.9, False, "1.1 times as fast"), (3.0, False, "3.0 times as long")],
)
def test_bf16_must_be_clearly_faster(half: float, chosen: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {True: iter([9.0, half, 8.0, half]), False: iter([9.0, 1.0, 1.0, 1.0])}

    def once(model: object, rows: object, index: np.ndarray, *, bf16: bool, backward: bool) -> tuple[float, float, int]:
        assert backward and 1 <= len(index) <= precision.ROWS
        return 0.0, next(seconds[bf16]), 0

    monkeypatch.setattr(planning, "once", once)
    loop = make_loop([], "text")
    found = precision.choose(loop.model, loop.train_rows, loop.training)
    assert found.bf16 is chosen and said in found.why


@pytest.mark.parametrize("kind", ["text", "image"])
def test_measuring_leaves_the_model_as_it_was(kind: str) -> None:
    loop = make_loop([], kind)
    loop.model.train()
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = precision.choose(loop.model, loop.train_rows, loop.training)
    assert found.why
    assert loop.model.training and all(p.grad is None for p in loop.model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())


def test_a_device_without_bf16_runs_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(*args: Any, bf16: bool, **options: Any) -> tuple[float, float, int]:
        if bf16:
            raise RuntimeError("not implemented for BFloat16")
        return 0.0, 1.0, 0

    monkeypatch.setattr(planning, "once", once)
    loop = make_loop([], "text")
    assert precision.choose(loop.model, loop.train_rows, loop.training).why == "bf16 does not run on this device"
