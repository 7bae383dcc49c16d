from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from method_helpers import ImageBackbone, learn, make_batch, make_context, make_model, outputs
from torch import nn

from headstart.errors import MethodError
from headstart.methods.adapter import CHILD, Adapter, Bottleneck
from headstart.methods.freeze import Freeze
from headstart.model import Model


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


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_bottleneck_is_houlsbys(activation: str) -> None:
    layer = Bottleneck(6, 2, activation, False, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    f = F.relu if activation == "relu" else F.gelu
    tokens = torch.randn(3, 5, 6)
    expected = torch.stack(
        [
            torch.stack([h + layer.up @ f(layer.down @ h + layer.down_bias) + layer.up_bias for h in row])
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
