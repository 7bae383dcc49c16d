from __future__ import annotations

import pytest
import torch
from method_helpers import TextBackbone, make_context, make_model
from torch import nn

from headstart.errors import MethodError
from headstart.methods.freeze import Freeze
from headstart.model import Model
from headstart.values import Progress


def scales(method: Freeze, model: Model, epoch: int = 0) -> dict[str, float]:
    """Rate by parameter name, from the groups."""
    names = {id(p): name for name, p in model.backbone.named_parameters()}
    groups = method.groups(model, make_context(progress=Progress(0, 10, epoch, 9)))
    found: dict[str, float] = {}
    for group in groups:
        for p in group.parameters:
            assert names[id(p)] not in found, "a parameter learns twice"
            found[names[id(p)]] = group.lr_scale
    return found


def of(part: nn.Module, model: Model) -> set[str]:
    own = {id(p) for p in part.parameters()}
    return {name for name, p in model.backbone.named_parameters() if id(p) in own}


@pytest.fixture(params=["text", "image"])
def model(request: pytest.FixtureRequest) -> Model:
    return make_model(request.param)


def test_probe_and_no_option_train_the_head_alone(model: Model) -> None:
    assert scales(Freeze(probe=True), model) == {}
    assert Freeze() == Freeze(probe=True)
    assert Freeze(probe=True).learning_rate("text") == 1e-3


def test_top_trains_the_topmost_blocks_and_the_tail(model: Model) -> None:
    backbone = model.backbone
    expected = of(backbone.blocks[1], model) | of(backbone.blocks[2], model) | of(backbone.tail[0], model)  # type: ignore[arg-type]
    assert scales(Freeze(top=2), model) == dict.fromkeys(expected, 1.0)


def test_bottom_is_the_complement(model: Model) -> None:
    everything = {name for name, _ in model.backbone.named_parameters()}
    stem = of(model.backbone.stem[0], model)  # type: ignore[arg-type]
    lowest = of(model.backbone.blocks[0], model)
    assert set(scales(Freeze(bottom=1), model)) == everything - stem - lowest
    assert set(scales(Freeze(bottom=0), model)) == everything - stem
    assert set(scales(Freeze(bottom=3), model)) == of(model.backbone.tail[0], model)  # type: ignore[arg-type]


def test_tables_leaves_every_lookup_table_frozen_and_nothing_else() -> None:
    model = make_model("text")
    tables = {f"{name}.weight" for name, module in model.backbone.named_modules() if isinstance(module, nn.Embedding)}
    everything = {name for name, _ in model.backbone.named_parameters()}
    assert tables
    assert set(scales(Freeze(tables=True), model)) == everything - tables
    assert set(scales(Freeze(tables=True, top=1), model)) == set(scales(Freeze(top=1), model))


@pytest.mark.parametrize("option", ["top", "bottom"])
def test_more_blocks_than_there_are_is_refused_with_the_number(option: str, model: Model) -> None:
    with pytest.raises(MethodError, match=rf"freeze:{option} to be at most 3.*received 4"):
        Freeze(**{option: 4}).groups(model, make_context())


def test_decay_follows_the_equation(model: Model) -> None:
    """Howard and Ruder: the rate of each layer is that of the layer above times a constant."""
    found = scales(Freeze(decay=0.5), model)
    backbone = model.backbone
    expected = {name: 1.0 for name in of(backbone.tail[0], model)}  # type: ignore[arg-type]
    rate = 1.0
    for block in reversed(backbone.blocks):
        expected |= dict.fromkeys(of(block, model), rate)
        rate *= 0.5
    expected |= dict.fromkeys(of(backbone.stem[0], model), rate)  # type: ignore[arg-type]
    assert found == expected
    assert set(found.values()) == {1.0, 0.5, 0.25, 0.125}


def test_gradual_thaws_one_block_at_a_time_then_the_stem(model: Model) -> None:
    backbone = model.backbone
    thawed = of(backbone.tail[0], model)  # type: ignore[arg-type]
    for epoch, part in enumerate([None, *reversed(backbone.blocks), backbone.stem[0]]):
        thawed |= set() if part is None else of(part, model)  # type: ignore[arg-type]
        assert set(scales(Freeze(gradual=1), model, epoch)) == thawed
        assert set(scales(Freeze(gradual=True), model, epoch)) == thawed  # type: ignore[arg-type]
        assert set(scales(Freeze(gradual=2), model, 2 * epoch + 1)) == thawed
    assert set(scales(Freeze(gradual=1), model, 100)) == {name for name, _ in backbone.named_parameters()}


def test_gradual_stays_within_top_and_keeps_decay(model: Model) -> None:
    late = scales(Freeze(gradual=1, top=2, decay=0.5), model, 50)
    assert late == scales(Freeze(top=2, decay=0.5), model)
    assert set(late.values()) == {1.0, 0.5}


def test_bitfit_is_biases_and_norms() -> None:
    model = make_model("text")
    found = set(scales(Freeze(bitfit=True), model))
    expected = {n for n, _ in model.backbone.named_parameters() if n.endswith("bias") or "norm" in n or "top" in n}
    assert found == expected
    assert all("mixer.weight" not in name and "embedding" not in name for name in found)
    assert set(scales(Freeze(norms=True), model)) == {n for n in expected if "mixer" not in n}
    assert set(scales(Freeze(bitfit=True, top=1), model)) == {n for n in expected if "layers.2" in n or "top" in n}


def test_biases_are_the_papers_bitfit() -> None:
    """Every parameter called bias that is a vector, and no scale of a norm."""
    for kind in ("text", "image"):
        model = make_model(kind)
        expected = {n for n, p in model.backbone.named_parameters() if n.endswith(".bias") and p.ndim == 1}
        found = set(scales(Freeze(biases=True), model))
        assert found == expected and found < set(scales(Freeze(bitfit=True), model))
        assert Freeze(biases=True).learning_rate(kind) == 5e-4


def test_bitfit_knows_batch_norm() -> None:
    found = set(scales(Freeze(norms=True), make_model("image")))
    assert {"network.layers.0.bn1.weight", "network.top.bias"} <= found
    assert not any("depth" in name or "point" in name for name in found)


def test_bitfit_without_any_bias_is_refused() -> None:
    class Bare(TextBackbone):
        @property
        def tail(self) -> list[nn.Module]:
            return []

        @property
        def blocks(self) -> list[nn.Module]:
            return [nn.Linear(2, 2, bias=False)]

        @property
        def stem(self) -> list[nn.Module]:
            return []

    with pytest.raises(MethodError, match="biases or norms"):
        Freeze(bitfit=True).groups(Model(Bare(), nn.Linear(16, 3)), make_context())


def test_bare_parameters_and_shared_ones_are_found_by_identity() -> None:
    class Shared(TextBackbone):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1))
            self.network.layers[0].mixer.weight = self.network.layers[2].mixer.weight

        @property
        def stem(self) -> list[nn.Module | nn.Parameter]:  # type: ignore[override]
            return [self.token, self.network.embedding]

    model = Model(Shared(), nn.Linear(16, 3))
    found = scales(Freeze(decay=0.5), model)
    assert found["token"] == 0.125
    assert found["network.layers.0.mixer.weight"] == 1.0, "shared with the top block, so it learns at its rate"
    assert found["network.layers.0.mixer.bias"] == 0.25


def test_norms_that_hold_their_activation_are_norms() -> None:
    """timm's BatchNormAct2d has children without parameters."""
    layers = pytest.importorskip("timm.layers")
    model = make_model("image")
    model.backbone.tail[0].add_module("act_norm", layers.BatchNormAct2d(4))
    found = scales(Freeze(norms=True), model)
    assert {name.rsplit(".", 1)[-1] for name in found if "act_norm" in name} == {"weight", "bias"}
