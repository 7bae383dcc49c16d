"""Laws that hold for every backbone: Hugging Face text, vision and audio families, timm networks."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headstart import backbones
from headstart.errors import BackboneError
from headstart.protocols import Backbone
from headstart.spec import BackboneSpec
from headstart.values import Batch

TEXT = ("bert", "roberta", "distilbert", "mpnet", "deberta", "deberta-v2", "deberta-v2-conv", "modernbert")
TEXT += ("electra", "albert")
IMAGE = ("vit", "deit", "dinov2", "beit", "swin", "convnext", "resnet")
AUDIO = ("whisper", "wav2vec2", "wav2vec2-stable", "hubert", "wavlm", "ast")
TIMM = ("timm:resnet18", "timm:tf_efficientnet_lite0", "timm:vit_tiny_patch16_224")
TIMM += ("timm:swin_tiny_patch4_window7_224", "timm:convnext_atto", "timm:densenet121", "timm:mobilenetv3_small_050")
TIMM_SIZE = {"timm:vit_tiny_patch16_224": 32, "timm:swin_tiny_patch4_window7_224": 64}
BLOCKS = {"albert": 1, "swin": 2, "convnext": 2, "resnet": 2}
BLOCKS |= {"timm:resnet18": 4, "timm:tf_efficientnet_lite0": 7, "timm:vit_tiny_patch16_224": 12}
BLOCKS |= {"timm:swin_tiny_patch4_window7_224": 4, "timm:convnext_atto": 4}
WIDTH = {"swin": 32, "convnext": 16, "resnet": 16}
WIDTH |= {"timm:resnet18": 512, "timm:tf_efficientnet_lite0": 1280, "timm:vit_tiny_patch16_224": 192}
EVERY = (*TEXT, *IMAGE, *AUDIO, *TIMM)


def batch_of(inputs: dict[str, Tensor]) -> Batch:
    n = len(next(iter(inputs.values())))
    return Batch(inputs, None, torch.ones(n), torch.zeros(n, dtype=torch.int64), torch.arange(n))


def texts() -> Batch:
    """Rows of 7, 4 and 9 tokens, padded with 0."""
    rows = [[2, 5, 7, 9, 8, 11, 3], [2, 12, 13, 3], [2, 5, 6, 7, 8, 9, 10, 11, 3]]
    ids, mask = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.int64)
    for n, row in enumerate(rows):
        ids[n, : len(row)], mask[n, : len(row)] = torch.tensor(row), 1
    return batch_of({"input_ids": ids, "attention_mask": mask})


def pictures(size: int) -> Batch:
    return batch_of({"pixels": torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))})


def sounds() -> Batch:
    """Rows of 8000, 5010 and 9650 samples, padded with zeros."""
    lengths = torch.tensor([8000, 5010, 9650])
    wave = 0.1 * torch.randn(3, 9650, generator=torch.Generator().manual_seed(1))
    return batch_of({"wave": wave * (torch.arange(9650) < lengths[:, None]), "lengths": lengths})


def spec_of(name: str, hub: Callable[[str], Path], **more: Any) -> tuple[BackboneSpec, str]:
    if name.startswith("timm:"):
        return BackboneSpec(ref=name, pretrained=False, image_size=TIMM_SIZE.get(name, 64), **more), "image"
    return BackboneSpec(
        ref=f"file:{hub(name)}", **more
    ), "text" if name in TEXT else "audio" if name in AUDIO else "image"


@pytest.fixture(scope="module")
def loaded(hub: Callable[[str], Path]) -> Callable[[str], Backbone]:
    made: dict[str, Backbone] = {}

    def get(name: str) -> Backbone:
        if name not in made:
            spec, modality = spec_of(name, hub)
            made[name] = backbones.load(spec, modality)
        return made[name]

    return get


def example(backbone: Backbone) -> Batch:
    if backbone.modality == "image":
        return pictures(backbone.preprocessing["image_size"])
    return texts() if backbone.modality == "text" else sounds()


def parameters_of(parts: Any) -> list[nn.Parameter]:
    found: list[nn.Parameter] = []
    for part in parts:
        found.extend([part] if isinstance(part, nn.Parameter) else part.parameters())
    return found


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_is_in_exactly_one_part(name: str, loaded: Callable[[str], Backbone]) -> None:
    backbone = loaded(name)
    listed = [id(p) for p in parameters_of([*backbone.stem, *backbone.blocks, *backbone.tail])]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in backbone.parameters()}
    assert parameters_of(backbone.stem), "something lies below the blocks"
    assert len(backbone.blocks) == BLOCKS.get(name, len(backbone.blocks) if name in TIMM else 3)


@pytest.mark.parametrize("name", EVERY)
def test_parts_run_in_order_and_nothing_is_dead(name: str, loaded: Callable[[str], Backbone]) -> None:
    backbone = loaded(name)
    order: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: order.append(i))  # type: ignore[misc]
        for i, block in enumerate(backbone.blocks)
    ]
    try:
        pooled = backbone(example(backbone)).pooled
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(set(order), key=order.index) == list(range(len(backbone.blocks)))
    gradients = torch.autograd.grad(
        (pooled * torch.randn_like(pooled)).sum(), list(backbone.parameters()), allow_unused=True
    )
    dead = [n for (n, _), g in zip(backbone.named_parameters(), gradients, strict=True) if g is None]
    assert not dead


@pytest.mark.parametrize("name", EVERY)
def test_the_tail_is_above_and_the_stem_below(name: str, loaded: Callable[[str], Backbone]) -> None:
    """What the first block receives changes with every stem (of one block or below it) and with no tail."""
    backbone = loaded(name)
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.extend(v for v in [*args, *kwargs.values()] if isinstance(v, Tensor) and v.requires_grad)

    handle = backbone.blocks[-1].register_forward_pre_hook(watch, with_kwargs=True)
    try:
        backbone(example(backbone))
    finally:
        handle.remove()
    total = sum(value.float().sum() for value in seen)
    assert isinstance(total, Tensor)
    for part, reached in ((backbone.stem, True), (backbone.tail, False)):
        held = parameters_of(part)
        if held:
            gradients = torch.autograd.grad(total, held, allow_unused=True, retain_graph=True)
            assert all((g is not None) == reached for g in gradients)


@pytest.mark.parametrize("name", EVERY)
def test_features_have_the_declared_shapes(name: str, loaded: Callable[[str], Backbone]) -> None:
    backbone = loaded(name)
    assert not any(module.training for module in backbone.modules())
    batch = example(backbone)
    features = backbone(batch)
    assert features.pooled.shape == (3, backbone.width)
    assert features.pooled.dtype == torch.float32
    assert backbone.width == WIDTH.get(name, backbone.width if name in TIMM else 32)
    if features.map is not None:
        assert features.map.ndim == 4 and features.map.shape[0] == 3
        assert features.tokens is None
    else:
        assert features.tokens is not None and features.mask is not None
        assert features.tokens.shape[:2] == features.mask.shape
    if backbone.modality == "text":
        assert features.mask is not None
        assert torch.equal(features.mask, batch.inputs["attention_mask"])
    json.dumps(backbone.describe())
    json.dumps(dict(backbone.preprocessing))


@pytest.mark.parametrize("name", TEXT)
def test_padding_changes_nothing(name: str, loaded: Callable[[str], Backbone]) -> None:
    backbone, batch = loaded(name), texts()
    together = backbone(batch).pooled
    for row in range(3):
        length = int(batch.inputs["attention_mask"][row].sum())
        alone = batch_of({key: value[row : row + 1, :length] for key, value in batch.inputs.items()})
        torch.testing.assert_close(backbone(alone).pooled[0], together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", AUDIO)
def test_the_sounds_beside_a_row_change_nothing(name: str, loaded: Callable[[str], Backbone]) -> None:
    backbone, batch = loaded(name), sounds()
    together = backbone(batch)
    assert together.tokens is not None and together.mask is not None
    for row, length in enumerate(batch.inputs["lengths"].tolist()):
        inputs = {"wave": batch.inputs["wave"][row : row + 1, :length], "lengths": torch.tensor([length])}
        alone = backbone(batch_of(inputs))
        assert alone.mask is not None
        assert int(alone.mask.sum()) == int(together.mask[row].sum())
        torch.testing.assert_close(alone.pooled[0], together.pooled[row], atol=2e-5, rtol=0)
    noisy = batch.inputs["wave"] + (batch.inputs["wave"] == 0) * 0.3
    beyond = backbone(batch.replace(inputs={**batch.inputs, "wave": noisy}))
    torch.testing.assert_close(beyond.pooled, together.pooled, atol=0, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_shift_is_added_to_the_input(name: str, loaded: Callable[[str], Backbone]) -> None:
    backbone = loaded(name)
    batch = example(backbone)
    plain = backbone(batch).pooled
    zero = backbone.zero_shift(batch)
    assert torch.equal(backbone(batch.replace(shift=zero)).pooled, plain)
    shift = (0.01 * torch.randn(zero.shape, generator=torch.Generator().manual_seed(3))).requires_grad_()
    moved = backbone(batch.replace(shift=shift)).pooled
    assert not torch.allclose(moved, plain, atol=1e-7)
    (gradient,) = torch.autograd.grad((moved * torch.randn_like(moved)).sum(), shift)
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(backbone(batch).pooled, plain)  # nothing of the shift stays behind


@pytest.mark.parametrize("name", TEXT)
def test_a_text_shift_equals_another_word(name: str, loaded: Callable[[str], Backbone]) -> None:
    """Replacing a word is the same as adding the difference of the two embeddings: the shift is below positions."""
    backbone: Any = loaded(name)
    batch = texts()
    table = backbone.words().weight
    other = batch.inputs["input_ids"].clone()
    other[0, 2] = 14
    shift = backbone.zero_shift(batch)
    shift[0, 2] = (table[14] - table[batch.inputs["input_ids"][0, 2]]).detach()
    expected = backbone(batch.replace(inputs={**batch.inputs, "input_ids": other})).pooled
    torch.testing.assert_close(backbone(batch.replace(shift=shift)).pooled, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_rebuilding_gives_the_same_features(name: str, loaded: Callable[[str], Backbone], tmp_path: Path) -> None:
    backbone = loaded(name)
    backbone.save_files(tmp_path)
    record = json.loads(json.dumps(backbone.describe()))
    again = backbones.rebuild(record, tmp_path)
    assert set(again.state_dict()) == set(backbone.state_dict())
    again.load_state_dict(backbone.state_dict(), strict=True)
    again.eval()
    batch = example(backbone)
    torch.testing.assert_close(again(batch).pooled, backbone(batch).pooled, atol=0, rtol=0)
    assert again.describe() == record
    assert [type(b) for b in again.blocks] == [type(b) for b in backbone.blocks]
    assert not any(path.suffix in (".safetensors", ".bin") for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ("bert", "roberta", "dinov2", "swin", "whisper", "wavlm", "ast", "timm:resnet18"))
def test_random_weights_depend_on_the_seed_alone(name: str, hub: Callable[[str], Path]) -> None:
    spec, modality = spec_of(name, hub)
    spec = spec.model_copy(update={"pretrained": False})
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (backbones.load(spec, modality, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before), "the global random state is left alone"
    other = backbones.load(spec, modality, seed=6)
    assert first.digest == second.digest != other.digest
    batch = example(first)
    assert torch.equal(first(batch).pooled, second(batch).pooled)
    assert first.source["pretrained"] is False


@pytest.mark.parametrize("name", ("bert", "vit", "resnet", "whisper", "wavlm", "ast"))
def test_pretrained_weights_are_those_of_the_file(name: str, hub: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file

    spec, modality = spec_of(name, hub)
    backbone = backbones.load(spec, modality)
    stored = {(tuple(v.shape), v.numpy().tobytes()) for v in load_file(hub(name) / "model.safetensors").values()}
    for key, value in backbone.state_dict().items():
        assert (tuple(value.shape), value.numpy().tobytes()) in stored, key


def test_digest_is_the_hash_of_names_types_shapes_and_bytes(hub: Callable[[str], Path]) -> None:
    spec, modality = spec_of("bert", hub)
    backbone = backbones.load(spec, modality)
    total = hashlib.sha256()
    for name in sorted(backbone.state_dict()):
        value = backbone.state_dict()[name]
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode() + value.numpy().tobytes())
    assert backbone.digest == total.hexdigest()


@pytest.mark.parametrize("name", ("bert", "vit", "resnet", "timm:vit_tiny_patch16_224", "timm:resnet18"))
@pytest.mark.parametrize("pooling", ("cls", "mean", "attention"))
def test_poolings_are_what_they_say(name: str, pooling: Any, hub: Callable[[str], Path]) -> None:
    spec, modality = spec_of(name, hub, pooling=pooling)
    if pooling == "cls" and "resnet" in name:
        with pytest.raises(BackboneError, match="no class token"):
            backbones.load(spec, modality)
        return
    backbone: Any = backbones.load(spec, modality)
    features = backbone(example(backbone))
    if features.map is not None:
        wanted = features.map.mean((2, 3))
    elif pooling == "cls":
        wanted = features.tokens[:, 0]
    elif modality == "image" and pooling == "mean":
        wanted = features.tokens[:, 1:].mean(1)
    else:  # a query of zeros weighs all tokens alike
        share = features.mask[:, :, None].float()
        wanted = (features.tokens * share).sum(1) / share.sum(1)
    torch.testing.assert_close(features.pooled, wanted, atol=1e-5, rtol=0)
    if pooling == "attention":
        assert any(p is backbone.pool.query for p in parameters_of(backbone.tail))
        backbone.pool.query.data.normal_(std=3)
        assert not torch.allclose(backbone(example(backbone)).pooled, wanted, atol=1e-3)


def test_vision_transformers_pool_as_they_were_trained(loaded: Callable[[str], Backbone]) -> None:
    for name in ("vit", "deit", "dinov2"):
        features = loaded(name)(example(loaded(name)))
        assert features.tokens is not None
        assert torch.equal(features.pooled, features.tokens[:, 0])


def test_parts_follow_layers_that_are_replaced(hub: Callable[[str], Path]) -> None:
    """Surgery may wrap a layer; the wrapped one is found, with what it brings along."""
    spec, modality = spec_of("bert", hub)
    backbone: Any = backbones.load(spec, modality)

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.extra = inner, nn.Parameter(torch.ones(1))

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs) * self.extra

    backbone.network.encoder.layer[1] = Wrapped(backbone.network.encoder.layer[1])
    backbone.network.embeddings.word_embeddings = Wrapped(backbone.network.embeddings.word_embeddings)
    listed = [id(p) for p in parameters_of([*backbone.stem, *backbone.blocks, *backbone.tail])]
    assert sorted(listed) == sorted(id(p) for p in backbone.parameters())
    assert isinstance(backbone.blocks[1], Wrapped)
    assert torch.equal(backbone(texts().replace(shift=backbone.zero_shift(texts()))).pooled, backbone(texts()).pooled)


@pytest.mark.parametrize("name", ("bert", "vit", "whisper", "hubert", "timm:resnet18"))
def test_copies_stand_alone(name: str, loaded: Callable[[str], Backbone]) -> None:
    """Averaging of weights works on a copy; changing it leaves the original as it was."""
    backbone = loaded(name)
    batch = example(backbone)
    before = backbone(batch).pooled
    other = copy.deepcopy(backbone)
    assert torch.equal(other(batch).pooled, before)
    assert {id(p) for p in parameters_of(other.blocks)} <= {id(p) for p in other.parameters()}
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert torch.equal(backbone(batch).pooled, before)
    assert not torch.allclose(other(batch).pooled, before)


def test_another_picture_size_is_interpolated(hub: Callable[[str], Path]) -> None:
    for name in ("vit", "dinov2"):
        spec, modality = spec_of(name, hub, image_size=48)
        backbone = backbones.load(spec, modality)
        features = backbone(pictures(48))
        assert features.tokens is not None
        assert features.tokens.shape == (3, 1 + 36, 32)
        assert backbone.preprocessing["resize"] == 54  # 48 / (32 / 36)
    spec, modality = spec_of("vit", hub, image_size=50)
    with pytest.raises(BackboneError, match=r"multiple of the patches .*8 pixels.* 48"):
        backbones.load(spec, modality)


def test_normalisation_happens_inside(hub: Callable[[str], Path]) -> None:
    """The network sees (pixels - mean) / std; the buffers are no part of the weights."""
    spec, modality = spec_of("resnet", hub)
    backbone: Any = backbones.load(spec, modality)
    batch = pictures(32)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    pixels = (batch.inputs["pixels"] - mean[:, None, None]) / std[:, None, None]
    expected = backbone.network(pixel_values=pixels).pooler_output.flatten(1)
    torch.testing.assert_close(backbone(batch).pooled, expected)
    assert not {"mean", "std"} & set(backbone.state_dict())
