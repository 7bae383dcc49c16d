from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from method_helpers import make_batch, make_context, make_model, outputs
from torch import nn

from headstart.errors import MethodError
from headstart.methods.depth import Depth
from headstart.model import Model
from headstart.protocols import Context


def prepared(kind: str, rate: float, seed: int = 0) -> tuple[Depth, Model, Context]:
    method, model, ctx = Depth(rate), make_model(kind), make_context(kind, seed)
    assert method.adapt(model, ctx) is model
    return method, model, ctx


def test_a_row_skips_a_block_or_takes_its_enlarged_residual_at_the_linear_rate() -> None:
    _, model, _ = prepared("text", 0.6)
    batch = make_batch(rows=300)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in model.backbone.network.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output[0])))
    model.train()(batch)
    plain = make_model().eval().backbone.network.layers
    for number, (before, after) in enumerate(seen, start=1):
        rate = 0.6 * number / 3
        full = plain[number - 1](before)[0]
        enlarged = before + (full - before) / (1 - rate)
        for row in range(len(batch)):
            skipped = torch.equal(after[row], before[row])
            assert skipped or torch.allclose(after[row], enlarged[row], atol=1e-5)
        share = (after == before).flatten(1).all(1).double().mean()
        assert float(share) == pytest.approx(rate, abs=0.09)


def test_blocks_that_change_the_shape_are_left_alone() -> None:
    method, model, ctx = prepared("image", 0.5)
    layers = model.backbone.network.layers
    seen: list[torch.Tensor] = []
    layers[1].register_forward_hook(lambda module, args, output: seen.append(module.forward(args[0]) - output))
    model.train()(make_batch("image"))
    assert float(seen[0].detach().abs().max()) == pytest.approx(0, abs=1e-6)
    assert method.skippable_ == {0}
    method.after_step(model, ctx)


def test_a_backbone_of_which_no_block_can_be_skipped_is_refused() -> None:
    method, model, ctx = Depth(), make_model("image"), make_context("image")
    model.backbone.network.layers = model.backbone.network.layers[1:]
    model.backbone.network.first = nn.Conv2d(3, 8, 3, padding=1)
    method.adapt(model, ctx)
    model.train()(make_batch("image"))
    with pytest.raises(MethodError, match="no block that keeps the shape of its input"):
        method.after_step(model, ctx)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_without_training_all_blocks_run_and_finish_leaves_nothing(kind: str) -> None:
    method, model, ctx = prepared(kind, 0.9)
    batch = make_batch(kind)
    expected = outputs(make_model(kind), batch)
    assert torch.equal(outputs(model, batch), expected)
    model.train()
    with ctx.quiet(model):
        assert torch.equal(model(batch)[1], expected)
    copy = deepcopy(model).eval()
    assert torch.equal(copy(batch)[1], expected)
    method.finish(model, ctx)
    assert not method.remains() and not any(m._forward_hooks for m in model.modules())


def test_a_tiny_rate_is_a_plain_pass() -> None:
    _, model, _ = prepared("image", 1e-9)
    torch.testing.assert_close(
        model.train()(make_batch("image"))[1], make_model("image").train()(make_batch("image"))[1]
    )


def test_stages_are_taken_by_their_blocks() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("convnext_atto", num_classes=0)
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.blocks = network.stages
    method = Depth(0.5)
    method.adapt(model, make_context("image"))
    network.train()(torch.rand(2, 3, 32, 32))
    assert len(method.handles_) == len(method.skippable_) == sum(len(stage.blocks) for stage in network.stages)


@pytest.mark.parametrize("family", ["BertConfig", "ModernBertConfig", "DistilBertConfig"])
def test_blocks_of_real_text_networks_are_skipped(family: str) -> None:
    import transformers as hf

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    if family == "DistilBertConfig":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    network = hf.AutoModel.from_config(getattr(hf, family)(vocab_size=30, **sizes, pad_token_id=0))
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.blocks = next(m for m in network.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    method = Depth(0.5)
    method.adapt(model, make_context())
    ids = torch.arange(2, 14).view(2, 6)
    network.train()(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert method.skippable_ == {0, 1}


def test_draws_come_from_the_context_and_its_state_alone() -> None:
    batch = make_batch("image")

    def second(seed: int, disturb: int, *, resume: bool = False) -> torch.Tensor:
        torch.manual_seed(disturb)
        method, model, _ = prepared("image", 0.5, seed)
        model.train()(batch)
        if resume:
            again, other, _ = prepared("image", 0.5, 99)
            again.load_state(method.state(), other)
            other.load_state_dict(model.state_dict())
            model = other
        return model.train()(batch)[1].detach()

    assert torch.equal(second(3, 1), second(3, 2))
    assert not torch.equal(second(3, 1), second(4, 1))
    assert torch.equal(second(3, 1), second(3, 1, resume=True))


@pytest.mark.parametrize("rate", [0, 1.0, None])
def test_a_bad_rate_is_refused(rate: Any) -> None:
    with pytest.raises(MethodError, match=r"expected depth:rate to be a number above 0 and at most 0\.99"):
        Depth(rate)
