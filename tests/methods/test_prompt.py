"""Prompts on tiny backbones and on real, tiny networks of transformers and timm."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import learn, make_batch, make_context, make_model, outputs
from test_lora import bert_model
from torch import Tensor, nn

import headstart as hs
from headstart import backbones
from headstart.errors import MethodError
from headstart.methods.prompt import CHILD, Prompt, Tokens
from headstart.model import Model
from headstart.spec import BackboneSpec
from headstart.values import Batch
from method_runs import make_attentive

BOTH = pytest.mark.parametrize("deep", [False, True])


def tokens(model: Model) -> list[Tokens]:
    return [module for module in model.modules() if isinstance(module, Tokens)]


def loud(model: Model) -> Model:
    """Prompts of unit size, so that a random network shows them."""
    torch.manual_seed(3)
    with torch.no_grad():
        for held in tokens(model):
            if held.vectors is not None:
                held.vectors.copy_(torch.randn_like(held.vectors))
    return model


def prompted(model: Model, **options: Any) -> Model:
    Prompt(**options).adapt(model, make_context())
    return loud(model)


@BOTH
def test_the_blocks_see_the_prompt_and_nothing_else_does(deep: bool) -> None:
    """The equation by hand: blocks of a bare BERT over joined tokens, pooled without the prompt."""
    model, batch = bert_model(), make_batch()
    prompted(model, length=4, deep=deep)
    plain = bert_model()
    vectors = [held.vectors for held in tokens(model)]
    assert [v is not None for v in vectors] == [True, deep]
    model.eval(), plain.eval()
    with torch.no_grad():
        answer = model.backbone.features(batch).tokens
        for row in range(len(batch)):
            length = int(batch.inputs["attention_mask"][row].sum())
            network = plain.backbone.network
            inputs = {name: batch.inputs[name][row : row + 1, :length] for name in ("input_ids", "token_type_ids")}
            x = network.embeddings(**inputs)
            p = vectors[0][None]
            for number, block in enumerate(network.encoder.layer):
                p = vectors[number][None] if vectors[number] is not None else p
                joined = block(torch.cat([x, p], 1))
                joined = joined[0] if isinstance(joined, tuple) else joined
                x, p = joined[:, :length], joined[:, length:]
            torch.testing.assert_close(answer[row, :length], x[0], atol=1e-5, rtol=1e-4)
    assert answer.shape == (6, 9, 16)
    assert not torch.allclose(answer, plain.backbone.features(batch).tokens, atol=1e-3), "the prompt is not seen"


@BOTH
def test_only_the_prompt_learns(deep: bool) -> None:
    model, batch, method = bert_model(), make_batch(), Prompt(length=4, deep=deep)
    method.adapt(model, make_context())
    before = {name: value.clone() for name, value in model.backbone.named_parameters()}
    learn(model, method, make_context(), batch)
    for name, value in model.backbone.named_parameters():
        assert torch.equal(before[name], value) == (CHILD not in name), name
    assert [tuple(p.shape) for g in method.groups(model, make_context()) for p in g.parameters] == [(4, 16)] * (
        1 + deep
    )


PICTURES = ("vit", "deit", "dinov2", "beit", "swin", "convnext")


def test_the_prompt_learns_faster_than_the_head() -> None:
    model, method = bert_model(), Prompt(speed=7)
    method.adapt(model, make_context())
    assert [group.lr_scale for group in method.groups(model, make_context())] == [7]


def test_bad_options_are_refused() -> None:
    for options in ({"length": 0}, {"deep": 1}, {"speed": 0}):
        with pytest.raises(MethodError, match=f"prompt:{next(iter(options))}"):
            Prompt(**options)  # type: ignore[arg-type]


def load(hub: Callable[[str], Path], family: str) -> Model:
    backbone = backbones.load(BackboneSpec(ref=f"file:{hub(family)}"), "image" if family in PICTURES else "text")
    return Model(backbone, nn.Linear(backbone.width, 3))


def rows_for(model: Model) -> Batch:
    if model.backbone.modality == "image":
        batch = make_batch("image")
        return batch.replace(inputs={"pixels": torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))})
    batch = make_batch("text")
    return batch.replace(inputs={name: value % 20 for name, value in batch.inputs.items()})


@BOTH
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "mpnet", "vit", "deit", "dinov2"])
def test_transformers_take_one(hub: Callable[[str], Path], family: str, deep: bool) -> None:
    model = load(hub, family)
    batch = rows_for(model)
    before, shape = outputs(model, batch), model.backbone.features(batch).tokens.shape
    prompted(model, length=3, deep=deep)
    after = outputs(model, batch)
    assert not torch.allclose(before, after, atol=1e-4)
    assert model.backbone.features(batch).tokens.shape == shape
    if model.backbone.modality == "text":
        alone = batch.replace(inputs={name: value[:1, :5] for name, value in batch.inputs.items()})
        torch.testing.assert_close(outputs(model, alone), after[:1], atol=1e-5, rtol=1e-4)
    method = Prompt(length=3, deep=deep)
    learn(model, method, make_context(), batch)
    assert all(
        p.grad is not None and bool(p.grad.any()) for g in method.groups(model, make_context()) for p in g.parameters
    )


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_pooling_sees_no_prompt(hub: Callable[[str], Path], mode: str) -> None:
    backbone = backbones.load(BackboneSpec(ref=f"file:{hub('bert')}", pooling=mode), "text")
    model = Model(backbone, nn.Linear(backbone.width, 3))
    batch = rows_for(model)
    prompted(model, length=3)
    model.eval()
    features = backbone.features(batch)
    mask = batch.inputs["attention_mask"][..., None].float()
    mean = (features.tokens * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(features.pooled, features.tokens[:, 0] if mode == "cls" else mean)


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2", "beit", "swin"])
def test_positions_inside_the_blocks_are_refused(hub: Callable[[str], Path], family: str) -> None:
    with pytest.raises(MethodError, match="cannot take more tokens"):
        prompted(load(hub, family), length=3)


def test_convolutions_are_refused_with_the_reason(hub: Callable[[str], Path]) -> None:
    for model, kind in ((make_model("image"), "image"), (load(hub, "convnext"), "image")):
        with pytest.raises(MethodError, match=r"work on maps.*use adapter"):
            Prompt().adapt(model, make_context(kind))


def test_a_block_that_runs_several_times_needs_deep(hub: Callable[[str], Path]) -> None:
    with pytest.raises(MethodError, match=r"3 times.*deep=true"):
        prompted(load(hub, "albert"), length=3)
    prompted(load(hub, "albert"), length=3, deep=True)


def test_masks_that_are_widened_wrongly_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import headstart.methods.prompt as file

    right = file._seen
    monkeypatch.setattr(file, "_seen", lambda *args: torch.ones_like(right(*args)))
    with pytest.raises(MethodError, match="padding would change"):
        Prompt(length=3).adapt(bert_model(), make_context())


@BOTH
@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_second_adapt_and_the_saved_weights_give_the_same_model(kind: str, deep: bool) -> None:
    model, batch, method = make_attentive(kind), make_batch(kind), Prompt(length=4, deep=deep)
    method.adapt(model, make_context(kind))
    learn(model, method, make_context(kind), batch)
    loaded = make_attentive(kind)
    Prompt(**method.options()).adapt(loaded, make_context(kind, seed=9))
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(outputs(loaded, batch), outputs(model, batch))
    assert method.remains() and method.finish(model, make_context(kind)) is model


@BOTH
def test_a_copy_has_its_own_prompt(deep: bool) -> None:
    model, batch = prompted(bert_model(), length=4, deep=deep), make_batch()
    copy, before = deepcopy(model), outputs(model, batch)
    assert torch.equal(outputs(copy, batch), before)
    with torch.no_grad():
        tokens(copy)[0].vectors.zero_()
    assert torch.equal(outputs(model, batch), before)
    assert not torch.allclose(outputs(copy, batch), before, atol=1e-4)


def test_a_prompt_that_is_there_is_kept_or_refused() -> None:
    model, batch = prompted(bert_model(), length=4), make_batch()
    before = outputs(model, batch)
    Prompt(length=4).adapt(model, make_context(seed=3))
    assert torch.equal(outputs(model, batch), before)
    for options in ({"length": 5}, {"length": 4, "deep": True}):
        with pytest.raises(MethodError, match="length 4 with deep=false already"):
            Prompt(**options).adapt(model, make_context())


def test_blocks_are_claimed_and_draws_come_from_the_context() -> None:
    def first(seed: int) -> Tensor:
        model, claims, state = bert_model(), {}, torch.get_rng_state()  # type: ignore[var-annotated]
        Prompt().adapt(model, make_context(seed=seed, claims=claims, owner="prompt"))
        assert torch.equal(state, torch.get_rng_state())
        assert set(claims) == {id(block) for block in model.backbone.blocks}
        return tokens(model)[0].vectors.detach()  # type: ignore[union-attr]

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


@BOTH
def test_a_bundle_keeps_it(tiny_bert: Path, tmp_path: Path, deep: bool) -> None:
    texts = [f"{a} {b}" for a in ("where is my parcel", "refund please", "password lost") for b in ("today", "now")]
    model = hs.fit(
        texts, ["a", "a", "b", "b", "c", "c"], backbone=f"file:{tiny_bert}", methods=[Prompt(length=4, deep=deep)],
        epochs=2, learning_rate=0.1,
    )  # fmt: skip
    folder = model.save(tmp_path / "bundle")
    assert np.array_equal(hs.load(folder).outputs(texts), model.outputs(texts))
    assert any(CHILD in name for name in hs.load(folder).model.state_dict())


def test_a_bundle_of_pictures_keeps_it(hub: Callable[[str], Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (36, 36, 3)).astype(np.uint8) for _ in range(6)]
    model = hs.fit(
        pictures, ["a", "a", "b", "b", "c", "c"], backbone=f"file:{hub('vit')}", methods=[Prompt(length=4, deep=True)],
        epochs=2, learning_rate=0.1,
    )  # fmt: skip
    folder = model.save(tmp_path / "bundle")
    assert np.array_equal(hs.load(folder).outputs(pictures), model.outputs(pictures))
