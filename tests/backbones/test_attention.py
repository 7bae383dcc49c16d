"""Attention step by step: what torch's kernel gives, gradients, dropout, and which networks use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headstart import backbones
from headstart.backbones import _attention
from headstart.spec import BackboneSpec
from hub_folders import IMAGE, TEXT, write_image, write_text

USUAL = ("bert", "roberta", "distilbert", "electra", "modernbert", "vit")
"""Families that use it for certain."""


def parts(kind: torch.dtype = torch.float32, tokens: int = 7, **given: Any) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, tokens, 8, generator=draws).to(kind).requires_grad_(**given) for _ in range(3)]


def masks(tokens: int = 7) -> dict[str, Tensor | None]:
    padded = (torch.arange(tokens) < torch.tensor([[7], [4], [1]]))[:, None, None]
    causal = torch.ones(tokens, tokens).tril().bool()[None, None]
    return {"none": None, "keys": padded, "expanded": padded.expand(3, 1, tokens, tokens), "causal": padded & causal}


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max())


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Attention is made step by step wherever it can be; the list grows with each time that it is."""
    seen: list[str] = []
    whole = _attention.attended

    def noted(*args: Any) -> Tensor:
        seen.append("step by step")
        return whole(*args)

    monkeypatch.setattr(_attention, "stepwise", lambda query, key, dropout: True)
    monkeypatch.setattr(_attention, "attended", noted)
    yield seen


@pytest.mark.parametrize("kept", [0, 2**22])
@pytest.mark.parametrize("name", list(masks()))
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_gives_what_torchs_kernel_gives(
    name: str, scaling: float | None, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_attention, "KEPT", kept)
    mask, found = masks()[name], []
    for own in (True, False):
        q, k, v = parts()
        if own:
            made = _attention.attended(q, k, v, mask, 0.0, scaling)
        else:
            made = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        found.append([made, *torch.autograd.grad(made.square().sum(), (q, k, v))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 4 * 7 * 7 * 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_rows_in_parts_give_what_all_at_once_give(
    at_once: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(_attention, "KEPT", 0)
    for most in (at_once, 2**20):
        monkeypatch.setattr(_attention, "AT_ONCE", most)
        torch.manual_seed(0)
        q, k, v = parts()
        made = _attention.attended(q, k, v, masks()["expanded"], dropout, None)
        found.append([made, *torch.autograd.grad(made.square().sum(), (q, k, v))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_many_weights_are_not_kept_for_the_backward_pass(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only which of them were dropped, in two bytes each."""
    monkeypatch.setattr(_attention, "KEPT", 3 * 4 * 64 * 64 - 1)
    kept: list[int] = []
    q, k, v = parts(tokens=64)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes), lambda nothing: nothing):
        _attention.attended(q, k, v, None, dropout, None)
    assert kept == [q.nbytes] * 3 + ([2 * 3 * 4 * 64 * 64] if dropout else [])


@pytest.mark.parametrize("kept", [0, 2**22])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_of_gradients_are_those_of_small_steps(
    dropout: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_attention, "KEPT", kept)
    inputs, ways = parts(), [way.detach()[:, :, 1:] for way in parts(tokens=8)]

    def slopes(step: float) -> tuple[Tensor, Tensor]:
        """The squared length of the gradients with the inputs moved by a step, and how it grows along the ways."""
        torch.manual_seed(0)
        moved = [(part + step * way).detach().requires_grad_() for part, way in zip(inputs, ways, strict=True)]
        made = _attention.attended(moved[0], moved[1], moved[2], masks()["keys"], dropout, None)
        first = torch.autograd.grad(made.double().square().sum(), moved, create_graph=True)
        length = torch.stack([slope.double().square().sum() for slope in first]).sum()
        second = torch.autograd.grad(length, moved)
        return length.detach(), sum((slope * way).sum() for slope, way in zip(second, ways, strict=True))  # type: ignore[return-value]

    along = float((slopes(1e-3)[0] - slopes(-1e-3)[0]) / 2e-3)
    assert float(slopes(0.0)[1]) == pytest.approx(along, rel=5e-3)


@pytest.mark.parametrize("kept", [0, 2**22])
@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_are_those_of_small_steps(
    tokens: int, dropout: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By differences, in float32, of a sum along one direction; with dropout, of one draw."""
    monkeypatch.setattr(_attention, "KEPT", kept)
    inputs, ways = parts(tokens=tokens), parts(tokens=tokens + 1)
    ways = [way.detach()[:, :, 1:] for way in ways]

    def total(step: float) -> Tensor:
        torch.manual_seed(0)
        moved = [part + step * way for part, way in zip(inputs, ways, strict=True)]
        return _attention.attended(moved[0], moved[1], moved[2], None, dropout, None).double().square().sum()

    slopes = torch.autograd.grad(total(0.0), inputs)
    along = sum(float((slope * way).sum()) for slope, way in zip(slopes, ways, strict=True))
    with torch.no_grad():
        assert float(total(1e-2) - total(-1e-2)) / 2e-2 == pytest.approx(along, rel=5e-3)


def test_in_bf16_it_is_as_near_to_float32_as_the_kernel() -> None:
    mask = masks()["expanded"]
    exact = nn.functional.scaled_dot_product_attention(*parts(), attn_mask=mask)
    q, k, v = parts(torch.bfloat16)
    kernel = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    made = _attention.attended(q, k, v, mask, 0.0, None)
    assert made.dtype == torch.bfloat16
    assert apart(made, exact) < max(0.02, 2 * apart(kernel, exact))


def test_a_row_that_may_attend_to_nothing_is_a_number() -> None:
    q, k, v = parts()
    mask = torch.zeros(3, 1, 7, 7, dtype=torch.bool)
    torch.testing.assert_close(_attention.attended(q, k, v, mask, 0.0, None), v.mean(2, keepdim=True).expand_as(v))


def test_dropout_falls_on_the_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k, v = (part.detach() for part in parts())
    exact = _attention.attended(q, k, v, None, 0.0, None)
    several = torch.stack([_attention.attended(q, k, v, None, 0.3, None) for _ in range(3000)])
    assert float(several.std(0).max()) > 0.05
    torch.testing.assert_close(several.mean(0), exact, rtol=0, atol=0.1)
    torch.manual_seed(1)
    one = _attention.attended(q, k, v, None, 0.3, None)
    torch.manual_seed(1)
    assert torch.equal(one, _attention.attended(q, k, v, None, 0.3, None))


@pytest.mark.parametrize("family", TEXT)
def test_networks_of_texts_answer_as_before(family: str, tmp_path: Path, everywhere: list[str]) -> None:
    backbone: Any = backbones.load(BackboneSpec(ref=f"file:{write_text(tmp_path, family)}"), "text")
    ids = torch.randint(5, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [2]])).long()
    batch = backbone.example().replace(inputs={"input_ids": ids * mask, "attention_mask": mask})
    assert _compare(backbone, batch, everywhere) or family not in USUAL


@pytest.mark.parametrize("family", IMAGE)
def test_networks_of_pictures_answer_as_before(family: str, tmp_path: Path, everywhere: list[str]) -> None:
    backbone: Any = backbones.load(BackboneSpec(ref=f"file:{write_image(tmp_path, family)}"), "image")
    assert _compare(backbone, backbone.example(), everywhere) or family not in USUAL


def _compare(backbone: Any, batch: Any, seen: list[str]) -> int:
    """How often attention was made step by step in a pass that gives what torch's kernel gives."""
    config = backbone.network.config
    uses = config._attn_implementation == _attention.NAME
    with torch.no_grad():
        found = backbone(batch).pooled
        times = len(seen)
        assert uses or not times
        if uses:
            config._attn_implementation = "sdpa"
            seen.clear()
            torch.testing.assert_close(found, backbone(batch).pooled, rtol=1e-4, atol=1e-5)
            assert not seen
    assert uses or config._attn_implementation in (None, "eager", "sdpa")
    return times


def test_the_usual_networks_use_it(tmp_path: Path) -> None:
    for family in USUAL[:-1]:
        backbone: Any = backbones.load(BackboneSpec(ref=f"file:{write_text(tmp_path / family, family)}"), "text")
        assert backbone.network.config._attn_implementation == _attention.NAME, family
    vit: Any = backbones.load(BackboneSpec(ref=f"file:{write_image(tmp_path / 'vit', 'vit')}"), "image")
    assert vit.network.config._attn_implementation == _attention.NAME


def test_it_is_used_for_dropout_and_in_half_precision_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = parts()
    half, _, _ = parts(torch.bfloat16)
    assert _attention.stepwise(q, k, 0.1)
    assert not _attention.stepwise(q, k, 0.0)
    for quicker in (True, False):
        monkeypatch.setattr(_attention, "faster", lambda learning, quicker=quicker: learning is quicker)
        assert _attention.stepwise(half, half, 0.0) is quicker
        assert _attention.stepwise(half, half, 0.1)
        with torch.no_grad():
            assert _attention.stepwise(half, half, 0.0) is not quicker
    monkeypatch.setattr(_attention, "faster", lambda learning: True)
    long = torch.zeros(1, 1, _attention.LONGEST + 1, 8, dtype=torch.bfloat16)
    assert not _attention.stepwise(long, long, 0.0)
    assert _attention.stepwise(half, half, 0.0)


@pytest.mark.parametrize("learning", [True, False])
def test_trying_leaves_random_numbers_and_grad_mode_alone(learning: bool) -> None:
    _attention.faster.cache_clear()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.inference_mode():
        assert _attention.faster(learning) in (True, False)
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


class _Causal(nn.Module):
    is_causal = True


def test_what_it_does_not_know_is_left_to_transformers(everywhere: list[str]) -> None:
    q, k, v = parts()
    made, _ = _attention.attend(_Causal(), q, k, v, None)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(made, expected.transpose(1, 2))
    bias = torch.randn(3, 1, 7, 7)
    made, _ = _attention.attend(_Causal(), q, k, v, bias)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(made, expected.transpose(1, 2))
    fewer = torch.randn(3, 4, 7, 5)
    made, _ = _attention.attend(_Causal(), q, k, fewer, masks()["causal"])
    torch.testing.assert_close(made, nn.functional.scaled_dot_product_attention(
        q, k, fewer, attn_mask=masks()["causal"]).transpose(1, 2))  # fmt: skip
    assert not everywhere
