from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_helpers import CLS, MASK, PAD, SEP, TinyModality, make_batch, make_context, make_model
from torch import Tensor

from headstart.errors import MethodError
from headstart.methods.augment import Augment
from headstart.values import Batch

OFF = {"drop": 0, "delete": 0, "swap": 0, "insert": 0, "synonym": 0, "share": 1.0}
SPECIAL = {0, 1, 2, 3, 4}


def only(**rates: Any) -> Augment:
    return Augment(**{**OFF, **rates})


def run(method: Augment, batch: Batch, kind: str = "text", seed: int = 0) -> Batch:
    method.adapt(make_model(kind), make_context(kind))
    return method.transform(batch, make_context(kind, seed))


def rows(batch: Batch) -> list[list[int]]:
    return [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True)
    ]


@pytest.mark.parametrize("operation", ["drop", "delete", "swap", "insert", "synonym"])
def test_rows_stay_well_formed(operation: str) -> None:
    for seed in range(20):
        batch = make_batch(rows=12, seed=seed)
        found = run(only(**{operation: 0.4}), batch, seed=seed)
        ids, mask, types = (found.inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids"))
        assert ids.shape == mask.shape == types.shape
        assert ids.dtype == mask.dtype == torch.int64
        assert torch.equal(mask, mask.sort(dim=1, descending=True).values), "padding is at the end"
        assert torch.equal(ids == PAD, mask == 0)
        assert torch.equal(types, mask), "token types follow their positions"
        assert int(mask.sum(1).max()) == ids.shape[1], "no column of nothing but padding"
        for row in rows(found):
            assert row[0] == CLS and row[-1] == SEP
            assert not {PAD, CLS, SEP} & set(row[1:-1])
            assert len(row) > 2
        for key in ("labels", "weight", "origin", "row"):
            assert torch.equal(getattr(found, key), getattr(batch, key))


def test_deletion_is_a_subsequence_at_the_rate() -> None:
    batch = make_batch(rows=400)
    found = run(only(delete=0.3), batch)
    kept = total = 0
    for before, after in zip(rows(batch), rows(found), strict=True):
        walk = iter(before)
        assert all(token in walk for token in after), "an order was changed"
        kept, total = kept + len(after) - 2, total + len(before) - 2
    # One token of a row always stays, which keeps a little more than 70 %.
    assert 0.69 < kept / total < 0.76


def test_dropout_hides_tokens_at_the_rate() -> None:
    batch = make_batch(rows=400)
    found = run(only(drop=0.3), batch)
    hidden = [token == MASK for row in rows(found) for token in row[1:-1]]
    assert np.mean(hidden) == pytest.approx(0.3, abs=0.04)
    for before, after in zip(rows(batch), rows(found), strict=True):
        assert all(a in (b, MASK) for b, a in zip(before, after, strict=True))


def test_swap_exchanges_exactly_two_places() -> None:
    batch = make_batch(rows=60)
    for before, after in zip(rows(batch), rows(run(only(swap=0.1), batch)), strict=True):
        assert Counter(before) == Counter(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) in (0, 2)


def neighbours(model: Any, token: int, count: int) -> set[int]:
    """The obvious search: cosine with every ordinary token of the same kind."""
    table: Tensor = model.backbone.network.embedding.weight.detach()
    near = [
        (float(F.cosine_similarity(table[token], table[i], dim=0)), i)
        for i in range(5, 40)
        if i != token and (i >= 30) == (token >= 30)
    ]
    return {i for _, i in sorted(near)[-count:]}


def test_synonyms_are_nearest_neighbours_of_the_same_kind() -> None:
    batch, model = make_batch(rows=60), make_model()
    found = run(only(synonym=0.1, neighbours=3), batch)
    seen: dict[int, set[int]] = {}
    for before, after in zip(rows(batch), rows(found), strict=True):
        changed = [(b, a) for b, a in zip(before, after, strict=True) if a != b]
        assert len(changed) == 1
        assert changed[0][1] in neighbours(model, changed[0][0], 3)
        seen.setdefault(changed[0][0], set()).add(changed[0][1])
    assert any(len(options) > 1 for options in seen.values()), "always the same neighbour"


def test_insertion_adds_a_neighbour_and_respects_the_limit() -> None:
    batch, model = make_batch(rows=60), make_model()
    for before, after in zip(rows(batch), rows(run(only(insert=0.1, neighbours=3), batch)), strict=True):
        assert len(after) == len(before) + 1
        extra = Counter(after) - Counter(before)
        assert sum(extra.values()) == 1
        assert any(next(iter(extra)) in neighbours(model, token, 3) for token in before[1:-1])
    full = rows(run(only(insert=0.9), batch))
    assert max(map(len, full)) == 12, "the backbone's limit is 12 tokens"


def test_neighbours_are_those_of_the_start() -> None:
    """Training moves the embeddings; a resumed run, which starts from moved ones, must find the same neighbours."""
    batch, model, moved = make_batch(rows=30), make_model(), make_model()
    weight = moved.backbone.network.embedding.weight
    start = {weight: weight.detach().clone()}
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight, generator=None).flip(0))
    found = []
    for m, s in ((model, {}), (moved, start)):
        method = only(synonym=0.3)
        method.adapt(m, make_context(start=s))
        with torch.no_grad():
            m.backbone.network.embedding.weight.mul_(-1)
        found.append(rows(method.transform(batch, make_context(seed=1))))
    assert found[0] == found[1]


def test_share_leaves_rows_as_they_are() -> None:
    batch = make_batch(rows=500)
    found = run(only(swap=0.5, share=0.25), batch)
    changed = [a != b for a, b in zip(rows(batch), rows(found), strict=True)]
    assert 0.15 < np.mean(changed) <= 0.3


def test_a_row_of_special_tokens_survives() -> None:
    inputs = {"input_ids": torch.tensor([[CLS, SEP]]), "attention_mask": torch.ones(1, 2, dtype=torch.int64)}
    batch = Batch(inputs, None, torch.ones(1), torch.zeros(1), torch.zeros(1))
    for operation in ("drop", "delete", "swap", "insert", "synonym"):
        assert rows(run(only(**{operation: 0.9}), batch)) == [[CLS, SEP]]


def test_padding_in_front_stays_in_front() -> None:
    batch = make_batch(rows=4)
    flipped = batch.replace(inputs={key: value.flip(1) for key, value in batch.inputs.items()})
    model = make_model()
    model.backbone.tokenizer.padding_side = "left"
    method = only(delete=0.5)
    method.adapt(model, make_context())
    mask = method.transform(flipped, make_context()).inputs["attention_mask"]
    assert torch.equal(mask, mask.sort(dim=1).values)


def test_pictures_stay_in_range_and_differ_by_row() -> None:
    one = make_batch("image").inputs["pixels"][:1]
    batch = make_batch("image").replace(inputs={"pixels": one.expand(6, 3, 8, 8)})
    method = Augment(crop=0.3, flip=0.5, rotate=20, colour=0.4, randaugment=2)
    found = run(method, batch, "image").inputs["pixels"]
    assert found.shape == (6, 3, 8, 8) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    assert len({tuple(row.flatten().tolist()) for row in found}) > 1, "one draw for the whole batch"


def test_flip_alone_is_a_flip() -> None:
    batch = make_batch("image", rows=200)
    found = run(Augment(flip=0.25, crop=1.0), batch, "image").inputs["pixels"]
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(found, batch.inputs["pixels"], strict=True)]
    same = [torch.equal(a, b) for a, b in zip(found, batch.inputs["pixels"], strict=True)]
    assert all(a or b for a, b in zip(flipped, same, strict=True))
    assert np.mean(flipped) == pytest.approx(0.25, abs=0.08)


def test_a_crop_of_a_gradient_is_a_part_of_it() -> None:
    ramp = torch.linspace(0, 1, 32).expand(4, 3, 32, 32)
    batch = make_batch("image", rows=4).replace(inputs={"pixels": ramp})
    found = run(Augment(flip=0, crop=0.2), batch, "image").inputs["pixels"]
    spread = found.amax((1, 2, 3)) - found.amin((1, 2, 3))
    assert (spread < 1).any() and (spread > 0.1).all()
    # A part of a ramp, stretched, is a ramp still.
    assert (found.diff(dim=-1) >= -1e-5).all()


def test_what_does_not_fit_the_run_is_refused() -> None:
    with pytest.raises(MethodError, match=r"augment:rotate.*'text'"):
        Augment(rotate=10).adapt(make_model(), make_context())
    with pytest.raises(MethodError, match=r"augment:swap.*'image'"):
        Augment(swap=0.3).adapt(make_model("image"), make_context("image"))
    with pytest.raises(MethodError, match="switched off"):
        only().adapt(make_model(), make_context())
    with pytest.raises(MethodError, match="switched off"):
        Augment(flip=0, crop=1).adapt(make_model("image"), make_context("image"))
    with pytest.raises(MethodError, match="adapt"):
        Augment().transform(make_batch(), make_context())

    class Video(TinyModality):
        name = "video"

    with pytest.raises(MethodError, match="video"):
        Augment().adapt(make_model(), make_context(modality=Video()))
    assert not Augment().remains()


def test_erasing_greys_one_rectangle_of_the_papers_sizes_at_its_rate() -> None:
    pixels = torch.rand(300, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.4
    batch = make_batch("image", rows=300).replace(inputs={"pixels": pixels})
    found = run(Augment(flip=0, crop=1, erasing=0.4), batch, "image").inputs["pixels"]
    erased = 0
    for before, after in zip(pixels, found, strict=True):
        hole = (before != after).any(0)
        assert torch.equal(before[:, ~hole], after[:, ~hole])
        if not hole.any():
            continue
        erased += 1
        assert (after[:, hole] == 0.5).all()
        ys, xs = hole.nonzero().unbind(1)
        height, width = int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1
        assert height * width == int(hole.sum()), "the hole is no rectangle"
        # Sides are rounded to whole pixels.
        assert 0.01 < height * width / 1024 < 0.43 and 0.2 < height / width < 5
    assert erased / 300 == pytest.approx(0.4, abs=0.1)


def test_trivial_is_one_operation_of_the_library_drawn_anew_for_each_picture() -> None:
    from torchvision.transforms import v2

    from headstart.methods._draws import seeded

    one = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = make_batch("image", rows=40).replace(inputs={"pixels": one.expand(40, 3, 16, 16)})
    found = run(Augment(flip=0, crop=1, trivial=True), batch, "image").inputs["pixels"]
    with seeded(make_context("image").generator):
        expected = torch.stack([v2.TrivialAugmentWide()(one[0]).clamp(0, 1) for _ in range(40)])
    assert torch.equal(found, expected)
    assert len({tuple(row.flatten().tolist()) for row in found}) > 10
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_fixed_number_of_views_comes_back_epoch_by_epoch(kind: str) -> None:
    method = Augment(views=2, share=1.0 if kind == "text" else 0.5)
    method.adapt(make_model(kind), make_context(kind))
    batch = make_batch(kind, rows=6)

    def seen(batch: Batch, epoch: int, seed: int) -> list[Any]:
        context = make_context(kind, seed)
        context = dataclasses.replace(context, progress=dataclasses.replace(context.progress, epoch=epoch))
        changed = method.transform(batch, context)
        return rows(changed) if kind == "text" else changed.inputs["pixels"].tolist()

    first, second = seen(batch, 0, seed=1), seen(batch, 1, seed=1)
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 3
    assert seen(batch, 2, seed=7) == first, "whatever the step draws"
    assert seen(batch.part(slice(2, 4)), 3, seed=8) == second[2:4], "whoever stands in the batch"
    strangers = batch.replace(row=torch.full_like(batch.row, -1))
    assert seen(strangers, 0, seed=1) != seen(strangers, 0, seed=2), "rows of no split have no views"


def test_bad_options_of_pictures_are_refused() -> None:
    with pytest.raises(MethodError, match="augment:trivial draws what augment:randaugment sets"):
        Augment(trivial=True, randaugment=2)
    with pytest.raises(MethodError, match="augment:trivial"):
        Augment(trivial=1)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="augment:erasing"):
        Augment(erasing=1.5)
    with pytest.raises(MethodError, match="augment:views"):
        Augment(views=-1)
    with pytest.raises(MethodError, match=r"augment:views.*'audio'"):
        Augment(views=2).adapt(make_model("audio"), make_context("audio"))
    with pytest.raises(MethodError, match=r"augment:erasing.*'text'"):
        Augment(erasing=0.5).adapt(make_model(), make_context())
