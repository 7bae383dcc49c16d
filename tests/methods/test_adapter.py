from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from method_helpers import ImageBackbone, learn, make_batch, make_context, make_model, outputs
from test_lora import bert_model
from torch import nn

import headstart as hs
from headstart.errors import MethodError
from headstart.methods.adapter import CHILD, Adapter, Bottleneck
from headstart.methods.freeze import Freeze
from headstart.model import Model
from method_runs import make_prunable


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_start_equals_the_backbone(kind: str) -> None:
    model, batch = make_model(kind), make_batch(kind)
    names, before = set(model.state_dict()), outputs(model, batch)
    adapted = Adapter(width=4).adapt(model, make_context(kind))
    assert adapted is model
    assert torch.equal(outputs(model, batch), before)
    added = set(model.state_dict()) - names
    assert names < set(model.state_dict()), "a name of the backbone was lost"
    assert len(added) == 12 and all(f".{CHILD}." in name for name in added)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_bottleneck_is_houlsbys(activation: str, scale: float) -> None:
    layer = Bottleneck(6, 6, 2, activation, scale, False, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    f = F.relu if activation == "relu" else F.gelu
    tokens = torch.randn(3, 5, 6)
    expected = torch.stack(
        [
            torch.stack([h + scale * (layer.up @ f(layer.down @ h + layer.down_bias) + layer.up_bias) for h in row])
            for row in tokens
        ]
    )
    torch.testing.assert_close(layer(tokens), expected)
    maps = tokens.movedim(-1, 1)[..., None]
    torch.testing.assert_close(layer(maps), expected.movedim(-1, 1)[..., None])
    last = tokens[:, :, None]
    torch.testing.assert_close(layer(last), expected[:, :, None])
    # Six rows high, six channels wide: only `last` tells which axis is which.
    square = torch.randn(2, 6, 4, 6)
    layer.last = True
    torch.testing.assert_close(layer(square)[:, 2], layer(square[:, 2]))
    layer.last = False
    torch.testing.assert_close(layer(square)[..., 2], layer(square[..., 2].transpose(1, 2)).transpose(1, 2))
    with pytest.raises(MethodError, match="6 channels"):
        layer(torch.randn(3, 5))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_only_adapters_learn_and_every_one_acts(kind: str) -> None:
    model, batch, method = make_model(kind), make_batch(kind), Adapter(width=4)
    method.adapt(model, make_context(kind))
    group, *others = method.groups(model, make_context(kind))
    assert not others
    expected = {id(p) for block in model.backbone.blocks for p in getattr(block, CHILD).parameters()}
    assert {id(p) for p in group.parameters} == expected
    before = {name: value.clone() for name, value in model.backbone.named_parameters()}
    learn(model, method, make_context(kind), batch)
    for name, value in model.backbone.named_parameters():
        assert torch.equal(before[name], value) == (CHILD not in name), name


def test_width_follows_the_reduction_and_each_block() -> None:
    model = make_model("image")
    Adapter(reduction=4).adapt(model, make_context("image"))
    found = [tuple(getattr(block, CHILD).up.shape) for block in model.backbone.blocks]
    assert found == [(8, 2), (12, 3), (16, 4)]
    model = make_model("image")
    Adapter(reduction=100).adapt(model, make_context("image"))
    assert getattr(model.backbone.blocks[0], CHILD).down.shape == (1, 8)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_second_adapt_and_the_saved_weights_give_the_same_model(kind: str) -> None:
    model, batch, method = make_model(kind), make_batch(kind), Adapter(width=4)
    method.adapt(model, make_context(kind))
    learn(model, method, make_context(kind), batch)
    loaded = make_model(kind, seed=9)
    Adapter(**method.options()).adapt(loaded, make_context(kind, seed=9))
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(outputs(loaded, batch), outputs(model, batch))
    assert torch.equal(outputs(deepcopy(model), batch), outputs(model, batch))
    assert method.remains() and method.finish(model, make_context(kind)) is model


def test_a_sequential_block_runs_its_adapter_once() -> None:
    model, batch = make_model("image"), make_batch("image")
    Adapter(width=4).adapt(model, make_context("image"))
    block = model.backbone.blocks[2]
    assert isinstance(block, nn.Sequential)
    calls = []
    getattr(block, CHILD).register_forward_hook(lambda *_: calls.append(1))
    outputs(model, batch)
    assert len(calls) == 1


def test_adapters_that_are_there_are_kept_or_refused() -> None:
    model, batch = make_model(), make_batch()
    Adapter(width=4).adapt(model, make_context())
    learn(model, Adapter(width=4), make_context(), batch)
    before, names = outputs(model, batch), set(model.state_dict())
    Adapter(width=4).adapt(model, make_context(seed=3))
    assert torch.equal(outputs(model, batch), before) and set(model.state_dict()) == names
    with pytest.raises(MethodError, match="width 4"):
        Adapter(width=8).adapt(model, make_context())


def test_blocks_are_claimed() -> None:
    model, claims = make_model(), {}  # type: ignore[var-annotated]
    Adapter().adapt(model, make_context(claims=claims, owner="adapter"))
    assert set(claims) == {id(block) for block in model.backbone.blocks}
    with pytest.raises(MethodError, match="'adapter' and 'other'"):
        make_context(claims=claims, owner="other").claim(model.backbone.blocks[0])


@pytest.mark.parametrize("block", [nn.PReLU(), nn.ModuleDict({"a": nn.Linear(2, 2)})])
def test_a_block_that_cannot_take_one_is_refused(block: nn.Module) -> None:
    class Odd(ImageBackbone):
        @property
        def blocks(self) -> list[nn.Module]:
            return [block]

    with pytest.raises(MethodError, match=f"{type(block).__name__}.*lora"):
        Adapter().adapt(Model(Odd(), nn.Linear(16, 3)), make_context("image"))


def test_the_width_of_tokens_is_seen_rather_than_read_from_the_layers() -> None:
    """A block may hold a layer that it runs last in neither order nor effect, such as the merging of patches."""
    model = make_model()
    model.backbone.blocks[0].add_module("aside", nn.Linear(3, 5))
    before = outputs(model, make_batch())
    Adapter(width=4).adapt(model, make_context())
    assert getattr(model.backbone.blocks[0], CHILD).up.shape == (16, 4)
    assert torch.equal(outputs(model, make_batch()), before)


def test_measuring_leaves_no_trace() -> None:
    model = make_model("image").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Adapter(width=4).adapt(model, make_context("image"))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(module.training for module in model.modules())


def test_the_start_is_drawn_from_the_context() -> None:
    def first(seed: int) -> torch.Tensor:
        model, state = make_model(), torch.get_rng_state()
        Adapter().adapt(model, make_context(seed=seed))
        assert torch.equal(state, torch.get_rng_state())
        return getattr(model.backbone.blocks[0], CHILD).down.detach()  # type: ignore[no-any-return]

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_other_methods_do_not_take_adapters_for_norms() -> None:
    model = make_model()
    Adapter().adapt(model, make_context())
    names = {id(p): name for name, p in model.named_parameters()}
    learning = {names[id(p)] for group in Freeze(norms=True).groups(model, make_context()) for p in group.parameters}
    assert not any(CHILD in name for name in learning)


def loud(model: Model) -> Model:
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Bottleneck):
                for p in module.parameters():
                    p.copy_(torch.randn_like(p))
    return model


def test_the_parallel_adapter_is_hes() -> None:
    """LN(FFN(x) + scale * U f(D x) + x), by hand, over the two layers of BERT's feed-forward part."""
    model = bert_model()
    Adapter(width=3, parallel=True).adapt(model, make_context())
    torch.testing.assert_close(outputs(model, make_batch()), outputs(bert_model(), make_batch()))
    loud(model).eval()
    block, plain = model.backbone.blocks[1], bert_model().backbone.blocks[1]
    layer = getattr(block.intermediate, CHILD)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        inner = F.gelu(x @ plain.intermediate.dense.weight.T + plain.intermediate.dense.bias)
        answer = inner @ plain.output.dense.weight.T + plain.output.dense.bias
        beside = F.relu(x @ layer.down.T + layer.down_bias) @ layer.up.T + layer.up_bias
        expected = plain.output.LayerNorm(answer + 4 * beside + x)
        torch.testing.assert_close(block.feed_forward_chunk(x), expected)


def test_parallel_adapters_stand_beside_inverted_residuals() -> None:
    model, batch = make_prunable("image"), make_batch("image")
    before = outputs(model, batch)
    method = Adapter(width=3, parallel=True, scale=2)
    method.adapt(model, make_context("image"))
    assert torch.equal(outputs(model, batch), before)
    (group,) = method.groups(model, make_context("image"))
    assert [tuple(p.shape) for p in group.parameters if p.ndim == 2 and p.shape[1] == 3] == [(8, 3), (12, 3), (16, 3)]
    learn(model, method, make_context("image"), batch)
    assert all(bool(p.grad.any()) for p in group.parameters if p.ndim == 2 and p.shape[1] == 3)
    part = model.backbone.blocks[0]
    part.eval()
    layer, x = getattr(part, CHILD), torch.randn(2, 8, 4, 4)
    seen = []
    part.conv_pwl.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        part(x)
        inner, out = seen[0]
        beside = torch.einsum("vw,nwhx->nvhx", layer.up, F.relu(
            torch.einsum("wv,nvhx->nwhx", layer.down, x) + layer.down_bias[:, None, None]
        )) + layer.up_bias[:, None, None]  # fmt: skip
        torch.testing.assert_close(out, F.conv2d(inner, part.conv_pwl.weight) + 2 * beside)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_saved_parallel_adapters_and_copies_give_the_same_model(kind: str) -> None:
    model, batch, method = make_prunable(kind), make_batch(kind), Adapter(width=4, parallel=True)
    method.adapt(model, make_context(kind))
    learn(model, method, make_context(kind), batch)
    loaded = make_prunable(kind)
    Adapter(**method.options()).adapt(loaded, make_context(kind, seed=9))
    loaded.load_state_dict(model.state_dict())
    before = outputs(model, batch)
    assert torch.equal(outputs(loaded, batch), before)
    copy = deepcopy(model)
    assert torch.equal(outputs(copy, batch), before)
    loud(copy)
    assert torch.equal(outputs(model, batch), before) and not torch.allclose(outputs(copy, batch), before)
    with pytest.raises(MethodError, match=r"parallel=true, scale=4.*parallel=false, scale=1"):
        Adapter(width=4).adapt(copy, make_context(kind))


def test_a_backbone_without_feed_forward_parts_takes_no_parallel_one() -> None:
    with pytest.raises(MethodError, match="no feed-forward part"):
        Adapter(parallel=True).adapt(make_model(), make_context())
    with pytest.raises(MethodError, match="adapter:scale"):
        Adapter(scale=0)


def test_a_bundle_keeps_parallel_adapters(tiny_bert: Path, tmp_path: Path) -> None:
    texts = [f"{a} {b}" for a in ("where is my parcel", "refund please", "password lost") for b in ("today", "now")]
    labels = ["a", "a", "b", "b", "c", "c"]
    model = hs.fit(texts, labels, backbone=f"file:{tiny_bert}", methods=[Adapter(parallel=True)], epochs=2)
    folder = model.save(tmp_path / "bundle")
    assert (hs.load(folder).outputs(texts) == model.outputs(texts)).all()
