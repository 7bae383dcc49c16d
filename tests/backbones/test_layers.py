"""Networks with some of their blocks: which stay, what they answer, that they come back, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headstart import backbones
from headstart.backbones._layers import chosen
from headstart.errors import BackboneError, SpecError
from headstart.spec import BackboneSpec, Spec

Hub = Callable[[str], Path]


@pytest.mark.parametrize(
    ("layers", "total", "kept"),
    [(3, 6, [1, 3, 5]), (6, 12, [1, 3, 5, 7, 9, 11]), (2, 3, [0, 2]), (1, 6, [5]), (6, 6, [0, 1, 2, 3, 4, 5]),
     ((0, 2, 5), 6, [0, 2, 5])],
)  # fmt: skip
def test_which_blocks_stay(layers: int | tuple[int, ...], total: int, kept: list[int]) -> None:
    assert chosen(layers, total, "x") == kept


@pytest.mark.parametrize("layers", [7, (), (1, 0), (0, 0), (-1,), (6,)])
def test_blocks_that_are_not_there_are_refused(layers: int | tuple[int, ...]) -> None:
    with pytest.raises(BackboneError, match="blocks"):
        chosen(layers, 6, "x")


@pytest.mark.parametrize(
    ("family", "modality"),
    [("bert", "text"), ("roberta", "text"), ("distilbert", "text"), ("mpnet", "text"), ("electra", "text"),
     ("deberta-v2", "text"), ("vit", "image"), ("deit", "image"), ("dinov2", "image")],
)  # fmt: skip
def test_a_shorter_encoder_is_the_pretrained_one_without_the_others(
    hub: Hub, family: str, modality: str, tmp_path: Path
) -> None:
    ref = f"file:{hub(family)}"
    whole = backbones.load(BackboneSpec(ref=ref), modality)
    short = backbones.load(BackboneSpec(ref=ref, layers=(0, 2)), modality)
    assert len(whole.blocks) == 3 and len(short.blocks) == 2 and short.source["layers"] == [0, 2]
    for mine, theirs in zip(short.blocks, (whole.blocks[0], whole.blocks[2]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    short.save_files(tmp_path)
    again = backbones.rebuild(short.describe(), tmp_path)
    again.load_state_dict(short.state_dict())
    row = short.example()  # type: ignore[attr-defined]
    row = row.replace(shift=torch.randn(short.zero_shift(row).shape, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        assert torch.equal(again.eval()(row).pooled, short.eval()(row).pooled)
        assert not torch.equal(whole.eval()(row).pooled, short(row).pooled)


def test_a_vision_transformer_of_timm() -> None:
    short = backbones.load(BackboneSpec(ref="timm:vit_tiny_patch16_224", layers=2, pretrained=False), "image")
    assert len(short.blocks) == 2 and short.source["layers"] == [5, 11]
    again = backbones.rebuild(short.describe(), Path())
    again.load_state_dict(short.state_dict())
    row = short.example()  # type: ignore[attr-defined]
    with torch.no_grad():
        assert torch.equal(again.eval()(row).pooled, short.eval()(row).pooled)


@pytest.mark.parametrize(("family", "modality"), [("albert", "text"), ("swin", "image"), ("resnet", "image")])
def test_networks_of_other_shapes_are_refused(hub: Hub, family: str, modality: str) -> None:
    with pytest.raises(BackboneError, match="cannot shorten"):
        backbones.load(BackboneSpec(ref=f"file:{hub(family)}", layers=1), modality)
    with pytest.raises(BackboneError, match="cannot shorten 'timm:resnet18'"):
        backbones.load(BackboneSpec(ref="timm:resnet18", layers=1, pretrained=False), "image")


def test_blocks_that_depend_on_their_place_are_refused(hub: Hub) -> None:
    # The first block of this one has no norm of its own.
    with pytest.raises(BackboneError, match="depend on their place"):
        backbones.load(BackboneSpec(ref=f"file:{hub('modernbert')}", layers=(1, 2)), "text")


def test_how_it_is_written() -> None:
    assert Spec.make(sets=["backbone.layers=3"]).backbone.layers == 3
    spec = Spec.make(sets=["backbone.layers=[0, 2]"])
    assert spec.backbone.layers == (0, 2) and Spec.make(spec.to_json()) == spec
    with pytest.raises(SpecError, match="layers"):
        Spec.make(sets=["backbone.layers=0"])
