from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import CLS, MASK, PAD, SEP, UNK, make_batch, make_context, make_model, outputs

from headstart.errors import MethodError
from headstart.hooks import Hooks
from headstart.methods.cutoff import Cutoff
from headstart.values import Batch

SPECIAL = {PAD, CLS, SEP, MASK, UNK}


def run(batch: Batch, seed: int = 0, **options: Any) -> Batch:
    method = Cutoff(**{"share": 1.0, **options})
    method.adapt(make_model(), make_context())
    return method.transform(batch, make_context(seed=seed))


def holes(before: Batch, after: Batch) -> list[tuple[list[int], list[int]]]:
    """Of each row: places of its ordinary tokens, and those that were cut."""
    found = []
    masks = before.inputs["attention_mask"], after.inputs["attention_mask"]
    for ids, old, new in zip(before.inputs["input_ids"].tolist(), masks[0].tolist(), masks[1].tolist(), strict=True):
        free = [i for i, token in enumerate(ids) if old[i] and token not in SPECIAL]
        cut = [i for i in range(len(ids)) if old[i] != new[i]]
        assert set(cut) <= set(free), "a special token or padding changed"
        found.append((free, cut))
    return found


@pytest.mark.parametrize("kind", ["token", "span"])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.9])
def test_the_papers_number_of_tokens_is_cut(kind: str, ratio: float) -> None:
    batch = make_batch(rows=40)
    after = run(batch, kind=kind, ratio=ratio)
    for free, cut in holes(batch, after):
        assert len(cut) == min(len(free) - 1, max(1, round(ratio * len(free))))
        if kind == "span":
            assert cut == free[free.index(cut[0]) :][: len(cut)], "a span has no gaps"
    for key in ("input_ids", "token_type_ids"):
        assert after.inputs[key] is batch.inputs[key]
    assert after.labels is batch.labels and after.weight is batch.weight
    assert after.inputs["attention_mask"].dtype == torch.int64


@pytest.mark.parametrize("kind", ["token", "span"])
def test_every_place_is_cut_sometimes(kind: str) -> None:
    batch = make_batch(rows=1)
    batch.inputs["input_ids"][:] = 7
    batch.inputs["attention_mask"][:] = 1
    counts = np.zeros(9)
    for seed in range(300):
        ((_, cut),) = holes(batch, run(batch, seed, kind=kind, ratio=0.2))
        counts[cut] += 1
    assert counts.min() > 20
    # Inner places of a span of two are covered by two starts out of eight, the ends by one.
    expected = np.array([1, *[2] * 7, 1]) / 8 if kind == "span" else np.full(9, 2 / 9)
    np.testing.assert_allclose(counts / 300, expected, atol=0.08)


def test_a_cut_token_has_no_say() -> None:
    """The network answers the same whatever stands in the hole."""
    batch = make_batch(rows=6)
    after = run(batch, ratio=0.3)
    model = make_model()
    expected = outputs(model, after)
    ids = batch.inputs["input_ids"].clone()
    for row, (_, cut) in enumerate(holes(batch, after)):
        ids[row, cut] = 33
    changed = after.replace(inputs={**after.inputs, "input_ids": ids})
    assert not torch.equal(ids, batch.inputs["input_ids"])
    # The tiny network mixes tokens by their mean over all places, from which hidden ones are left out by zeros.
    torch.testing.assert_close(outputs(model, changed), expected)
    assert not torch.allclose(outputs(model, batch), expected, atol=1e-4)


def test_share_is_of_rows_and_a_rows_fate_is_its_own() -> None:
    batch = make_batch(rows=400)
    cut = [bool(cut) for _, cut in holes(batch, run(batch, share=0.25))]
    assert np.mean(cut) == pytest.approx(0.25, abs=0.06)
    head = Batch(
        {k: v[:9] for k, v in batch.inputs.items()}, None, batch.weight[:9], batch.origin[:9], batch.row[:9]
    )  # fmt: skip
    other = head.replace(inputs={**head.inputs, "input_ids": head.inputs["input_ids"].clone()})
    other.inputs["input_ids"][0] = torch.tensor([CLS, 9, SEP, *[PAD] * 6])
    masks = [run(b, seed=4, ratio=0.4).inputs["attention_mask"][1:] for b in (head, other)]
    assert torch.equal(*masks)


def test_a_single_word_is_left_alone() -> None:
    inputs = {"input_ids": torch.tensor([[CLS, 9, SEP], [CLS, SEP, PAD]]), "attention_mask": torch.ones(2, 3).long()}
    batch = Batch(inputs, None, torch.ones(2), torch.zeros(2), torch.zeros(2))
    assert torch.equal(run(batch, ratio=0.9).inputs["attention_mask"], inputs["attention_mask"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "feature"}, "cutoff:kind to be 'token' or 'span'"),
        ({"ratio": 0}, "cutoff:ratio"),
        ({"ratio": 1.0}, "cutoff:ratio"),
        ({"share": 0}, "cutoff:share"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        Cutoff(**options)


def test_pictures_are_refused_and_adapt_comes_first() -> None:
    with pytest.raises(MethodError, match="cuts tokens out of texts"):
        ctx = make_context("image")
        Hooks({"cutoff": Cutoff()}, ctx.task, ctx.modality, 0)
    with pytest.raises(MethodError, match="adapt"):
        Cutoff().transform(make_batch(), make_context())
    assert not Cutoff().remains()
