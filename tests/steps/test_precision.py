"""The choice of a precision: as asked, else what measured faster, and the same to the end of a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headstart.errors import SpecError
from headstart.steps import costing, precision
from headstart.steps.precision import Precision
from method_runs import make_loop


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> None:
    """Steps that take these seconds, the first round warming up; kinds that are not named do not run."""
    left = {kind: iter(each) for kind, each in seconds.items()}

    def once(
        model: object, rows: object, index: np.ndarray, *, precision: str, backward: bool
    ) -> tuple[float, float, int]:
        assert backward and 1 <= len(index) <= 16
        if precision not in left:
            raise RuntimeError("not implemented for BFloat16")
        nonlocal now
        now += next(left[precision])
        return 0.0, 0.0, 0

    now = 0.0
    monkeypatch.setattr(costing, "once", once)
    monkeypatch.setattr(costing, "clock", lambda device: lambda: now)
    monkeypatch.setattr(precision, "product", lambda: 1.0)


@pytest.mark.parametrize(
    ("half", "chosen", "said"),
    [
        (0.5, "bf16", "bf16 is 2.0 times as fast"),
        (0.9, "fp32", "bf16 is 1.1 times as fast"),
        (3.0, "fp32", "bf16 takes 3.0 times as long"),
    ],
)
def test_bf16_must_be_clearly_faster(half: float, chosen: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"fp32": [9.0, 1.0, 1.0, 1.0], "bf16": [9.0, half, 8.0, half]})
    loop = make_loop([], "text")
    found = precision.choose(loop.model, loop.train_rows, loop.training)
    assert found.name == chosen and said in found.why


def test_what_is_clearly_slower_is_not_timed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds are all there is to draw from; one kind that may yet win keeps all of them going."""
    pretend(monkeypatch, {"fp32": [2.0, 1.0], "bf16": [3.0, 2.0], "bf16_weights": [4.0, 3.0]})
    loop = make_loop([], "text")
    found = precision.choose(loop.model, loop.train_rows, loop.training)
    assert found.name == "fp32"
    assert found.why == "bf16 takes 2.0 times as long here; bf16 with bf16 weights takes 3.0 times as long here"
    pretend(
        monkeypatch, {"fp32": [2.0, 1.0, 1.0, 1.0], "bf16": [3.0, 2.0, 2.0, 2.0], "bf16_weights": [2.0, 3.0, 0.5, 0.5]}
    )
    assert precision.choose(loop.model, loop.train_rows, loop.training).name == "bf16_weights"


def test_what_is_clearly_faster_is_not_timed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds are all there is to draw from; a gain in one of them alone is no proof."""
    pretend(monkeypatch, {"fp32": [2.0, 1.0], "bf16": [1.0, 0.5], "bf16_weights": [0.8, 0.4]})
    loop = make_loop([], "text")
    assert precision.choose(loop.model, loop.train_rows, loop.training).name == "bf16_weights"
    pretend(monkeypatch, {"fp32": [9.0, 1.0, 1.0, 1.0], "bf16": [0.9] * 4, "bf16_weights": [0.9] * 4})
    assert precision.choose(loop.model, loop.train_rows, loop.training).name == "fp32"


def test_short_steps_are_timed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy moment does not make them look long enough to gain, nor bf16 faster."""
    pretend(monkeypatch, {"fp32": [0.05, 0.03, 0.004, 0.004], "bf16": [0.005] * 4, "bf16_weights": [0.005] * 4})
    loop = make_loop([], "text")
    assert precision.choose(loop.model, loop.train_rows, loop.training).why == "steps are too short to gain by bf16"


def test_the_fastest_of_the_kinds_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"fp32": [9.0, 1.0, 1.0, 1.0], "bf16": [0.5] * 4, "bf16_weights": [0.25] * 4})
    loop = make_loop([], "text")
    found = precision.choose(loop.model, loop.train_rows, loop.training)
    assert found.name == "bf16_weights"
    assert found.why == "bf16 is 2.0 times as fast here; bf16 with bf16 weights is 4.0 times as fast here"


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
    pretend(monkeypatch, {"fp32": [1.0] * 4})
    loop = make_loop([], "text")
    assert precision.choose(loop.model, loop.train_rows, loop.training).why == "bf16 does not run on this device"


def test_a_failure_in_fp32_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"bf16": [1.0] * 4})
    loop = make_loop([], "text")
    with pytest.raises(RuntimeError, match="not implemented"):
        precision.choose(loop.model, loop.train_rows, loop.training)
    assert loop.model.training


@pytest.mark.parametrize("asked", ["fp32", "bf16", "bf16_weights"])
def test_what_is_asked_for_is_taken(asked: str) -> None:
    loop = make_loop([], "text")
    training = loop.training.model_copy(update={"precision": asked})
    assert precision.choose(loop.model, loop.train_rows, training) == Precision(asked)


def test_bf16_weights_are_refused_where_the_network_does_not_run_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"fp32": [1.0] * 4})
    loop = make_loop([], "text")
    training = loop.training.model_copy(update={"precision": "bf16_weights"})
    with pytest.raises(SpecError, match=r"'bf16_weights' is not for this backbone .* choose bf16"):
        precision.choose(loop.model, loop.train_rows, training)


def test_products_tell_whether_a_trial_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slower ones: none. Much faster ones: in a run three times as long as the trial's 48 rows."""
    pretend(monkeypatch, {"fp32": [9.0, 1.0], "bf16": [0.5] * 2, "bf16_weights": [0.25] * 2})
    loop = make_loop([], "text")
    monkeypatch.setattr(precision, "product", lambda: 0.5)
    found = precision.choose(loop.model, loop.train_rows, loop.training)
    assert found == Precision("fp32", "a product of matrices takes 2.0 times as long in bf16 here")
    monkeypatch.setattr(precision, "product", lambda: 3.0)
    assert precision.choose(loop.model, loop.train_rows, loop.training, learned=143).name == "fp32"
    assert precision.choose(loop.model, loop.train_rows, loop.training, learned=144).name == "bf16_weights"


def test_products_are_timed_once_and_draw_no_random_numbers() -> None:
    state = torch.random.get_rng_state()
    precision.product.cache_clear()
    assert 0 < precision.product() == precision.product()
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_short_run_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kinds, twice, on 8 rows are 48 rows: a run of less than ten times as many is not worth it."""
    pretend(monkeypatch, {"fp32": [9.0, 1.0, 1.0, 1.0], "bf16": [0.5] * 4, "bf16_weights": [0.25] * 4})
    loop = make_loop([], "text")
    short = precision.choose(loop.model, loop.train_rows, loop.training, learned=479)
    assert short == Precision("fp32", "the run is too short to try bf16")
    assert precision.choose(loop.model, loop.train_rows, loop.training, learned=480).name == "bf16_weights"
