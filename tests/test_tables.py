"""Tables moved in the rows that batches touch: what comes out is what Adam over the whole table gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from headstart import tables
from headstart.errors import Interrupted
from headstart.loop import Loop
from headstart.methods.contrast import Contrast
from headstart.methods.ema import EMA
from headstart.methods.fgm import FGM
from headstart.methods.l2sp import L2SP
from headstart.methods.manifold import Manifold
from headstart.methods.mixup import Mixup
from headstart.methods.rdrop import RDrop
from headstart.methods.smart import Smart
from headstart.methods.vat import VAT
from headstart.optimiser import Optimiser
from headstart.protocols import Method
from headstart.spec import TrainingSpec
from headstart.steps.ways import Ways
from headstart.values import Group
from tiny import make_loop, make_rows

ROWS, WIDTH = 400, 8


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small tables of these tests count as large."""
    monkeypatch.setattr(tables, "LEAST", 1)


def optimiser_of(table: nn.Embedding, found: list[tables.Table], **options: Any) -> Optimiser:
    training = TrainingSpec(**{"optimizer": "adamw", "weight_decay": 0.1, "warmup": 0.0, **options})
    optimiser = Optimiser(training, 0.02)
    optimiser.set_groups([Group((table.weight,), 1.0)], found)
    return optimiser


def steps(
    optimiser: Optimiser, table: nn.Embedding, count: int, *, start: int = 0, ids: int = 6, top: int = ROWS
) -> None:
    for number in range(start, start + count):
        draws = torch.Generator().manual_seed(number)
        tokens = torch.randint(top, (2, ids), generator=draws)
        wanted = torch.randn(2, ids, WIDTH, generator=draws)
        with tables.within(optimiser.tables):
            for part in (0, 1):  # two micro-batches
                (table(tokens[part]) - wanted[part]).square().sum().backward()
        optimiser.clip(1.0)
        optimiser.step(number / 100)


def pair(**options: Any) -> tuple[nn.Embedding, nn.Embedding, Optimiser, Optimiser]:
    torch.manual_seed(0)
    whole = nn.Embedding(ROWS, WIDTH)
    rows = nn.Embedding.from_pretrained(whole.weight.detach().clone(), freeze=False)
    return whole, rows, optimiser_of(whole, [], **options), optimiser_of(rows, tables.find(rows), **options)


@pytest.mark.parametrize("options", [{}, {"schedule": "one_cycle"}, {"optimizer": "adam", "weight_decay": 0.0}])
def test_rows_end_where_the_whole_table_does(small: None, options: dict[str, Any]) -> None:
    whole, rows, plain, lazy = pair(**options)
    steps(plain, whole, 15, ids=3)
    steps(lazy, rows, 15, ids=3)
    (table,) = lazy.tables
    assert 0 < int(table.live.sum()) < ROWS / 2
    assert (table.pending < 1) is (plain.training.weight_decay > 0)
    lazy.settle()
    torch.testing.assert_close(rows.weight, whole.weight, rtol=1e-5, atol=1e-7)
    for name, value in plain.torch.state[whole.weight].items():  # type: ignore[union-attr]
        torch.testing.assert_close(lazy.torch.state[rows.weight][name], value, rtol=1e-5, atol=1e-8)  # type: ignore[union-attr]


def test_rows_that_were_not_read_wait_for_their_decay(small: None) -> None:
    _, rows, _, lazy = pair()
    before = rows.weight.detach().clone()
    steps(lazy, rows, 3)
    (table,) = lazy.tables
    dormant = ~table.live
    assert torch.equal(rows.weight[dormant], before[dormant])
    lazy.settle()
    expected = before[dormant]
    for number in range(3):
        expected = expected * (1 - lazy.learning_rate * _factor(lazy, number / 100) * 0.1)
    torch.testing.assert_close(rows.weight[dormant], expected, rtol=1e-6, atol=0)


def _factor(optimiser: Optimiser, fraction: float) -> float:
    from headstart.optimiser import schedule

    return schedule(optimiser.training.schedule, optimiser.training.warmup, fraction)


def test_a_row_that_is_read_late_is_read_as_it_should_be(small: None) -> None:
    whole, rows, plain, lazy = pair(weight_decay=2.0)
    steps(plain, whole, 5, top=50)
    steps(lazy, rows, 5, top=50)
    ids = torch.tensor([[60, 60, 61]])
    with tables.within(lazy.tables):
        torch.testing.assert_close(rows(ids), whole(ids), rtol=1e-6, atol=0)
        assert not torch.equal(rows.weight[70], whole.weight[70])
    lazy.settle()
    torch.testing.assert_close(rows.weight, whole.weight, rtol=1e-5, atol=1e-7)


def test_a_table_of_which_much_is_read_is_moved_whole(small: None) -> None:
    whole, rows, plain, lazy = pair()
    steps(plain, whole, 8, ids=60)
    steps(lazy, rows, 8, ids=60)
    (table,) = lazy.tables
    assert table.whole and table.pending == 1.0
    torch.testing.assert_close(rows.weight, whole.weight, rtol=1e-5, atol=1e-7)


def test_a_gradient_from_elsewhere_moves_the_whole_table(small: None) -> None:
    """In the one step that shows it, rows are read that wait for their decay."""
    whole, rows, plain, lazy = pair(weight_decay=1e-4)
    for optimiser, table in ((plain, whole), (lazy, rows)):
        steps(optimiser, table, 3)
        with tables.within(optimiser.tables):
            (table(torch.tensor([1, 2])).sum() + table.weight.square().sum()).backward()
        optimiser.clip(1.0)
        optimiser.step(0.5)
        steps(optimiser, table, 3, start=4)
        optimiser.settle()
    assert lazy.tables[0].whole
    torch.testing.assert_close(rows.weight, whole.weight, rtol=1e-5, atol=1e-7)


def test_moments_are_followed_when_groups_change(small: None) -> None:
    whole, rows, plain, lazy = pair()
    for optimiser, table in ((plain, whole), (lazy, rows)):
        steps(optimiser, table, 4)
        optimiser.set_groups([Group((table.weight,), 0.5)], tables.find(table) if optimiser is lazy else [])
        steps(optimiser, table, 4, start=4)
        optimiser.settle()
    torch.testing.assert_close(rows.weight, whole.weight, rtol=1e-5, atol=1e-7)


def test_what_is_found() -> None:
    def found(module: nn.Module) -> int:
        return len(tables.find(nn.Sequential(module)))

    large = 2**18
    assert found(nn.Embedding(large, 4)) == 1
    assert found(nn.Embedding(large - 1, 4)) == 0
    assert found(nn.Embedding(large, 4).requires_grad_(False)) == 0
    assert found(nn.Embedding(large, 4, max_norm=1.0)) == 0
    assert found(nn.Embedding(large, 4, scale_grad_by_freq=True)) == 0
    assert found(nn.Embedding(large, 4, padding_idx=0)) == 1
    tied = nn.Sequential(nn.Embedding(large, 4), nn.Linear(4, large, bias=False))
    tied[1].weight = tied[0].weight
    assert tables.find(tied) == []
    watched = nn.Embedding(large, 4)
    watched.register_forward_hook(lambda *args: None)
    assert found(watched) == 0


def trained(monkeypatch: pytest.MonkeyPatch, *, rows: bool, **given: Any) -> tuple[Loop, dict[str, torch.Tensor]]:
    monkeypatch.setattr(tables, "LEAST", 1 if rows else 10**9)
    monkeypatch.setattr(tables, "MOST", 0.99)
    loop = make_loop(rows=make_rows(40), validation=make_rows(24, seed=1), **given)
    few = [[token % 30 for token in row] for row in loop.train_rows.prepared.rows]
    loop.train_rows.prepared.rows[:] = few
    states = loop.train().model.state_dict()
    return loop, {name: value.clone() for name, value in states.items()}


@pytest.mark.parametrize("given", [{}, {"accumulate": 3}, {"weights": "last"}, {"ways": "bf16_weights"}], ids=str)
def test_a_run_ends_where_it_would_with_whole_tables(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> None:
    kind = given.pop("ways", "fp32")
    ends = []
    for rows in (True, False):
        monkeypatch.setattr(Loop, "ways", Ways(kind), raising=False)
        loop, states = trained(monkeypatch, rows=rows, weight_decay=0.1, epochs=3, **given)
        ends.append((loop.result.history, states))
        assert len(loop.optimiser.tables) == int(rows)
        if rows:
            assert 0 < int(loop.optimiser.tables[0].live.sum()) <= 30
    tolerance = 1e-5 if kind == "fp32" else 2e-2  # lookups in bf16 add up in float32, copies of tables in bf16
    for name, value in ends[0][1].items():
        torch.testing.assert_close(ends[1][1][name], value, rtol=tolerance, atol=tolerance, msg=name)
    if kind == "fp32":
        assert [one["accuracy"] for one in ends[0][0]] == [one["accuracy"] for one in ends[1][0]]


@pytest.mark.parametrize("method", [EMA(), FGM(), L2SP(), Smart()], ids=lambda method: type(method).__name__)
def test_methods_that_look_at_gradients_or_weights_get_whole_tables(
    monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    monkeypatch.setattr(tables, "LEAST", 1)
    loop = make_loop({"own": method})
    loop.train()
    assert loop.optimiser.tables == []


@pytest.mark.parametrize("kind", [Contrast, Manifold, Mixup, RDrop, VAT])
def test_methods_that_do_not_keep_rows(monkeypatch: pytest.MonkeyPatch, kind: type[Method]) -> None:
    ends = []
    for rows in (True, False):
        loop, states = trained(monkeypatch, rows=rows, methods={"own": kind()})
        assert len(loop.optimiser.tables) == int(rows)
        ends.append(states)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_resumed_run_ends_as_the_whole_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "LEAST", 1)
    monkeypatch.setattr(tables, "MOST", 0.99)
    given: dict[str, Any] = {"epochs": 3, "weight_decay": 0.1, "checkpoint_every": 1e9, "patience": None}
    expected = make_loop(rows=make_rows(40), **given).train().model.state_dict()
    first = make_loop(rows=make_rows(40), checkpoint=tmp_path / "state.safetensors", **given)
    first.listen = lambda event, figures: first.interrupted.set() if figures.get("step") == 7 else None
    with pytest.raises(Interrupted):
        first.train()
    found = make_loop(rows=make_rows(40), checkpoint=tmp_path / "state.safetensors", **given).train(resume=True)
    for name, value in found.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7, msg=name)
