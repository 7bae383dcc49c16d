"""Gradient checkpointing: the numbers of the plain step, less memory, refused where it cannot be had."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headstart import planning
from headstart.errors import SpecError
from headstart.inside import plain, replaced
from headstart.protocols import Context, Method
from headstart.spec import Spec, TrainingSpec
from headstart.steps import memory, recompute
from headstart.steps.precision import Precision
from headstart.steps.ways import Ways
from headstart.values import Batch, Choice
from method_runs import make_loop, make_prunable, same, train, weights
from tiny import make_loop as make_small
from tiny import make_rows as make_small_rows


def run(names: list[str], kind: str, *, again: bool, like: str | None = None) -> dict[str, Tensor]:
    loop = make_loop(names, kind, like=like, epochs=2)
    loop.ways = Ways(recompute=again)
    return weights(train(loop))


@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_the_weights_are_those_of_the_plain_run(kind: str) -> None:
    """With dropout, and with moving statistics of BatchNorm, which a second pass must leave alone."""
    assert same(run([], kind, again=True), run([], kind, again=False))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_so_are_those_of_blocks_that_answer_with_tuples_and_of_convolutions(kind: str) -> None:
    """Blocks of timm: attention for texts, inverted residuals with BatchNorm for pictures."""
    assert same(run([], kind, again=True, like="prune"), run([], kind, again=False, like="prune"))


@pytest.mark.parametrize("name", ["lora", "mixout", "rdrop", "fgm", "sam", "depth", "dropout", "vat", "manifold"])
def test_methods_get_the_same_numbers(name: str) -> None:
    """They swap weights, make passes of their own, draw inside blocks, or mix what blocks receive."""
    assert same(run([name], "text", again=True), run([name], "text", again=False))


@pytest.mark.parametrize("name", ["stochnorm", "depth"])
def test_methods_on_pictures_get_the_same_numbers(name: str) -> None:
    found = (run([name], "image", again=again, like="prune") for again in (True, False))
    assert same(*found)


def test_blocks_run_twice_and_keep_only_what_enters_them() -> None:
    loop = make_small()
    model, batch = loop.model, loop.train_rows.batch(range(8))
    counts: list[int] = []
    layer = model.backbone.network.layers[1]
    inner = layer.linear.forward
    layer.linear.forward = lambda x: (counts.append(1), inner(x))[1]
    whole, less = recompute.kept_bytes(model, batch)
    assert 0 < less < 0.8 * whole
    counts.clear()
    with recompute.within(model.backbone):
        model(batch)[1].sum().backward()
    assert len(counts) == 2
    assert "forward" not in vars(layer)


def test_what_someone_looks_into_runs_once() -> None:
    loop = make_small()
    model, batch = loop.model, loop.train_rows.batch(range(8))
    seen: list[int] = []
    model.backbone.network.layers[1].linear.register_forward_hook(lambda *args: seen.append(1))
    assert not plain(list(model.backbone.network.layers[1].modules()))
    with recompute.within(model.backbone):
        model(batch)[1].sum().backward()
    assert len(seen) == 1


def test_a_tensor_in_a_modules_own_attributes_is_seen() -> None:
    layer = nn.Linear(2, 2)
    assert plain([layer])
    layer.__dict__["weight"] = torch.zeros(2, 2)
    assert not plain([layer])


def test_forwards_are_put_back_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    layer.forward = own = lambda x: x  # type: ignore[method-assign,assignment]
    with pytest.raises(ValueError, match="stop"), replaced([layer], lambda block, forward: forward):
        raise ValueError("stop")
    assert layer.forward is own


class Drawing(nn.Module):
    """A block that draws from a generator of its own, so that it never answers twice alike."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x)) * torch.rand(16, generator=self.generator)


def drawing() -> Any:
    model = make_small().model
    model.backbone.network.layers = nn.ModuleList(Drawing() for _ in range(3))
    return model


def test_a_network_whose_blocks_draw_is_refused() -> None:
    rows, training = make_small_rows(), TrainingSpec(batch_size=8, gradient_checkpointing="on")
    assert "answer otherwise" in (recompute.differs(drawing(), rows.batch(range(4))) or "")
    with pytest.raises(SpecError, match=r"training.gradient_checkpointing = 'on' cannot be had .* answer otherwise"):
        memory.choose(drawing(), rows, training, "fp32")


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "at_hand", lambda device, limit: 1000)


def test_auto_takes_it_where_memory_is_short_and_says_so(scarce: None) -> None:
    loop = make_small(batch_size=8)
    found = memory.choose(loop.model, loop.train_rows, loop.training, "fp32")
    assert found.choice.on and "a step needs about" in found.choice.why and "at hand" in found.choice.why
    off = loop.training.model_copy(update={"gradient_checkpointing": "off"})
    plain_ = memory.choose(loop.model, loop.train_rows, off, "fp32")
    assert not plain_.choice.on and found.kept < plain_.kept


def test_auto_leaves_it_where_it_cannot_be_had(scarce: None) -> None:
    found = memory.choose(drawing(), make_small_rows(), TrainingSpec(batch_size=8), "fp32")
    assert not found.choice.on and "cannot be had: its blocks answer otherwise" in found.choice.why


def test_auto_leaves_it_where_memory_is_plenty() -> None:
    loop = make_small(batch_size=8)
    assert memory.choose(loop.model, loop.train_rows, loop.training, "fp32").choice == Choice(False)


def test_the_longest_batch_is_what_counts() -> None:
    """Weighed on four rows: twice the rows a batch keep twice the bytes, rows of one length given."""
    rows = make_small_rows(64, same_length=True)
    sizes = []
    for size in (8, 16):
        loop = make_small(rows=rows, batch_size=size)
        sizes.append(memory.choose(loop.model, rows, loop.training, "fp32").kept)
    assert sizes[1] == 2 * sizes[0]


def test_memory_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 100 kB\nMemAvailable:  50 kB\n")
    assert memory._free(info, tmp_path) == 50 * 1024
    (tmp_path / "memory.max").write_text("40000\n")
    (tmp_path / "memory.current").write_text("10000\n")
    assert memory._free(info, tmp_path) == 30000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free(info, tmp_path) == 50 * 1024
    assert memory._free(tmp_path / "none", tmp_path / "none") is None
    monkeypatch.setattr(memory, "_free", lambda: 10**9)
    monkeypatch.setattr(memory, "resident", lambda: 4 * 10**8)
    device = torch.device("cpu")
    assert memory.at_hand(device, None) == 10**9
    assert memory.at_hand(device, "500MB") == 10**8
    assert memory.at_hand(device, "100MB") == 0
    assert memory.at_hand(device, "100GB") == 10**9


def test_a_bad_limit_is_named() -> None:
    with pytest.raises(SpecError, match=r"training.memory_limit: expected a size such as 500MB or 6GB, received 'all'"):
        Spec.make(training__memory_limit="all")


def test_the_plan_says_what_was_chosen() -> None:
    asked: Mapping[str, Any] = dict(
        rows=100, epochs=3, rate=1e-3, trainable=10, total=50, precision=Precision(), costs=None
    )
    stage = planning.describe_stage("all", {}, TrainingSpec(), ways=["gradient checkpointing (because)"], **asked)
    assert any("gradient checkpointing (because)" in line for line in planning._stage_lines(stage))
    plain_ = planning.describe_stage("all", {}, TrainingSpec(), **asked)
    assert not any("checkpointing" in line for line in planning._stage_lines(plain_))


def test_a_pass_without_dropout_is_recomputed_without_it() -> None:
    """The backward pass comes after the modes have changed again."""
    model, batch = make_small(dropout=0.5).model, make_small_rows().batch(range(8))
    found = []
    for again in (False, True):
        model.zero_grad()
        model.eval()
        with Ways(recompute=again).step(model):
            loss = model(batch)[1].square().mean()
            model.train()
            loss.backward()
        found.append(model.backbone.network.embedding.weight.grad.clone())
    assert torch.equal(*found)


@dataclass
class Reaching(Method):
    """Counts the passes that it sees of a block."""

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        self.seen = 0

        def count(*args: Any) -> None:
            self.seen += 1

        model.backbone.blocks[1].register_forward_hook(count)
        return model


def test_hooks_on_a_block_are_called_once_a_pass() -> None:
    method = Reaching()
    loop = make_small({"reaching": method}, epochs=1, batch_size=8)
    loop.ways = Ways(recompute=True)
    train(loop)
    assert method.seen == loop.steps_done


def test_prunable_blocks_stand_for_real_ones() -> None:
    batch: Batch = make_loop([], "image").train_rows.batch(range(4))
    model = make_prunable("image").train()
    assert recompute.differs(model, batch) is None
    whole, less = recompute.kept_bytes(model, batch)
    assert less < whole


def test_a_network_that_was_weighed_is_freed() -> None:
    """Also where an operation keeps its own output, as most activations do."""
    loop = make_small()
    model, batch = loop.model, loop.train_rows.batch(range(8))
    model.head = nn.Sequential(model.head, nn.Tanh())
    recompute.kept_bytes(model, batch)
    parameter = weakref.ref(next(model.parameters()))
    del model, loop
    gc.collect()
    assert parameter() is None
