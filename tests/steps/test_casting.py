"""bf16 copies of the weights: the loss and the steps of float32 within its rounding, and float32 masters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from headstart import backbones
from headstart.backbones._structure import unlabelled
from headstart.model import Model
from headstart.spec import BackboneSpec
from headstart.steps import casting
from headstart.steps.ways import Ways
from headstart.values import Batch
from method_runs import make_loop, train
from tiny import make_loop as make_small


def convolutional() -> tuple[Model, Batch]:
    """A small network of timm with BatchNorm, and pictures."""
    spec = BackboneSpec(ref="timm:test_efficientnet", pretrained=False, image_size=32)
    backbone = backbones.load(spec, "image")
    inputs = {"pixels": torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    torch.manual_seed(0)
    return Model(backbone, nn.Linear(backbone.width, 3)), unlabelled(inputs)


def transformer() -> tuple[Model, Batch]:
    loop = make_loop([], "text")
    return loop.model, loop.train_rows.batch(range(8))


@pytest.mark.parametrize("make", [transformer, convolutional])
def test_gradients_reach_the_float32_weights(make: Callable[[], tuple[Model, Batch]]) -> None:
    """Of every parameter, and within 4 % of the largest of its tensor: bf16 has 8 bits, and there are few blocks."""
    model, batch = make()
    model.eval()
    found = {}
    for way in ("fp32", "bf16_weights"):
        model.zero_grad()
        with casting.running(model, way):
            inside = next(model.backbone.blocks[0].parameters()).dtype
            loss = model(batch)[1].square().mean()
        loss.backward()
        assert inside == (torch.float32 if way == "fp32" else torch.bfloat16)
        found[way] = (float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None])
    (plain, ours), (half, theirs) = found["fp32"], found["bf16_weights"]
    assert half == pytest.approx(plain, rel=0.02) and half != plain
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert b.dtype == torch.float32
        assert float((a - b).abs().max()) <= 0.04 * max(1e-6, float(a.abs().max()))


def test_the_parameters_are_themselves_again_even_after_an_error() -> None:
    model = make_loop([], "text").model
    before = [id(p) for p in model.parameters()]
    with pytest.raises(ValueError, match="stop"), casting.running(model, "bf16_weights"):
        raise ValueError("stop")
    assert [id(p) for p in model.parameters()] == before
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_shared_weight_is_one_weight_and_batchnorm_keeps_float32() -> None:
    model = make_small().model
    model.backbone.network.layers[1].linear.weight = model.backbone.network.layers[0].linear.weight
    model.backbone.network.extra = torch.nn.BatchNorm1d(4)
    with casting.running(model, "bf16_weights"):
        first, second = (layer.linear.weight for layer in model.backbone.network.layers[:2])
        assert first is second and first.dtype == torch.bfloat16
        assert model.backbone.network.extra.weight.dtype == torch.float32
        assert model.head.weight.dtype == torch.float32


def test_a_run_ends_near_that_of_float32() -> None:
    losses = {}
    for way in ("fp32", "bf16_weights"):
        loop = make_small(dropout=0.0, epochs=3)
        loop.ways = Ways(way)
        losses[way] = [record["loss"] for record in train(loop).history]
        assert all(p.dtype == torch.float32 for p in loop.model.parameters())
    assert losses["bf16_weights"] == pytest.approx(losses["fp32"], rel=0.05)
    assert not np.array_equal(losses["bf16_weights"], losses["fp32"])
