"""mixup and cutmix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from method_helpers import CLASSES, make_batch, make_context, make_model

from headstart.errors import MethodError
from headstart.methods._mixing import draw
from headstart.methods.cutmix import CutMix
from headstart.methods.mixup import Mixup


def test_mixup_of_pictures_is_the_papers_equation() -> None:
    batch = make_batch("image", rows=7)
    found = Mixup(alpha=1.0).transform(batch, make_context("image", 5))
    x, mixed = batch.inputs["pixels"], found.inputs["pixels"]
    y, hot = found.labels, F.one_hot(batch.labels, CLASSES).float()  # type: ignore[arg-type]
    assert y is not None
    # Each row must be s * x_i + (1 - s) * x_j for one j; s is found from the pixels and must explain label and weight.
    for i in range(7):
        fits = []
        for j in range(7):
            d = (x[i] - x[j]).flatten()
            s = 1.0 if i == j else float(((mixed[i] - x[j]).flatten() @ d) / (d @ d))
            if torch.allclose(mixed[i], s * x[i] + (1 - s) * x[j], atol=1e-5):
                fits.append((j, s))
        assert fits, "the row is no combination of two rows"
        assert any(
            0 <= s <= 1 + 1e-5
            and torch.allclose(y[i], s * hot[i] + (1 - s) * hot[j], atol=1e-4)
            and torch.isclose(found.weight[i], s * batch.weight[i] + (1 - s) * batch.weight[j], atol=1e-4)
            for j, s in fits
        )
    assert not torch.equal(mixed, x)
    assert torch.equal(found.row, batch.row) and torch.equal(found.origin, batch.origin)


def test_mixup_of_texts_mixes_pooled_features() -> None:
    model, batch = make_model().eval(), make_batch()
    found = Mixup(alpha=1.0).transform(batch, make_context(seed=5))
    assert found.mix is not None and found.inputs is batch.inputs
    share, partner = found.mix.share, found.mix.partner
    pooled = model.backbone(batch).pooled
    expected = model.head(share[:, None] * pooled + (1 - share[:, None]) * pooled[partner])
    torch.testing.assert_close(model(found)[1], expected)
    hot = F.one_hot(batch.labels, CLASSES).float()  # type: ignore[arg-type]
    torch.testing.assert_close(found.labels, share[:, None] * hot + (1 - share[:, None]) * hot[partner])
    torch.testing.assert_close(found.weight, share * batch.weight + (1 - share) * batch.weight[partner])


def test_shares_follow_beta() -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1))."""
    for alpha in (0.2, 1.0, 4.0):
        batch = make_batch(rows=4000)
        mix = Mixup(alpha=alpha).transform(batch, make_context(seed=1)).mix
        assert mix is not None
        assert float(mix.share.mean()) == pytest.approx(0.5, abs=0.03)
        assert float(mix.share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
        assert sorted(mix.partner.tolist()) == list(range(4000))


def test_probability_leaves_rows_alone() -> None:
    batch = make_batch(rows=2000)
    mix = Mixup(alpha=1.0, probability=0.3).transform(batch, make_context(seed=2)).mix
    assert mix is not None
    assert float((mix.share < 1).float().mean()) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("method", [Mixup(alpha=1.0), CutMix()])
def test_rows_of_different_origin_are_never_mixed(method: Mixup | CutMix) -> None:
    batch = make_batch("image", rows=40)
    origin = torch.arange(40) % 2
    # Origin 0 is black, origin 1 is white: any mixture would be grey or spotted.
    batch = batch.replace(origin=origin, inputs={"pixels": origin.float()[:, None, None, None].expand(40, 3, 8, 8)})
    found = method.transform(batch, make_context("image"))
    torch.testing.assert_close(found.inputs["pixels"], batch.inputs["pixels"])
    assert torch.equal(found.origin, origin)


def test_two_mixtures_of_features_are_refused() -> None:
    once = Mixup().transform(make_batch(), make_context())
    with pytest.raises(MethodError, match="mixed already"):
        Mixup().transform(once, make_context())


def test_cutmix_pastes_one_rectangle_and_labels_follow_its_area() -> None:
    # Row i is filled with the value i, so every pixel tells where it came from.
    rows = 30
    pixels = (torch.arange(rows).float() / rows)[:, None, None, None].expand(rows, 3, 8, 10).contiguous()
    batch = replace(make_batch("image", rows=rows), inputs={"pixels": pixels})
    found = CutMix().transform(batch, make_context("image", 3))
    source = (found.inputs["pixels"] * rows).round().long()
    hot = F.one_hot(batch.labels, CLASSES).float()  # type: ignore[arg-type]
    pasted = 0
    for i in range(rows):
        assert torch.equal(source[i, 0], source[i, 1]), "all channels are cut alike"
        foreign = source[i, 0] != i
        j = int(source[i, 0][foreign][0]) if foreign.any() else i
        assert set(source[i, 0][foreign].tolist()) <= {j}
        if foreign.any():
            pasted += 1
            ys, xs = foreign.nonzero().unbind(1)
            box = foreign[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            assert box.all(), "the pasted region is no rectangle"
        share = 1 - float(foreign.float().mean())
        assert found.labels is not None
        torch.testing.assert_close(found.labels[i], share * hot[i] + (1 - share) * hot[j], atol=1e-5, rtol=0)
        expected = share * batch.weight[i] + (1 - share) * batch.weight[j]
        torch.testing.assert_close(found.weight[i], expected, atol=1e-5, rtol=0)
    assert pasted > rows / 3


def test_cutmix_areas_follow_the_papers_sizes() -> None:
    """Away from the border, the area is (floor(H sqrt(1-l)) floor(W sqrt(1-l))) / HW; a uniform l gives about 1 - l."""
    batch = replace(make_batch("image", rows=300), inputs={"pixels": torch.rand(300, 1, 64, 64)})
    plain = CutMix(alpha=1.0).transform(batch.replace(labels=None), make_context("image", 1))
    changed = (plain.inputs["pixels"] != batch.inputs["pixels"]).float().mean((1, 2, 3))
    # E[1 - l] = 1/2 with nothing cut off; cutting at the border takes a good part of the larger ones.
    assert 0.2 < float(changed.mean()) < 0.5
    assert float(changed.max()) > 0.7
    assert plain.labels is None


def test_both_compose_in_order() -> None:
    batch = make_batch("image")
    found = CutMix().transform(Mixup(alpha=1.0).transform(batch, make_context("image", 1)), make_context("image", 2))
    assert found.labels is not None and found.labels.shape == (6, CLASSES)
    torch.testing.assert_close(found.labels.sum(1), torch.ones(6))


def test_what_they_require() -> None:
    assert set(Mixup().requires()) == {"task.mix"}
    assert set(CutMix().requires()) == {"task.mix", "modality.image"}
    with pytest.raises(MethodError, match="pictures"):
        CutMix().transform(make_batch(), make_context())


def test_mixed_sounds_are_as_long_as_the_longer_one() -> None:
    batch = make_batch("audio")
    found = Mixup(alpha=1.0, probability=0.5).transform(batch, make_context("audio", 1))
    partner, share = draw(batch, make_context("audio", 1), 1.0, 0.5)
    assert 0 < int((share == 1).sum()) < 6
    wave, lengths = batch.inputs["wave"], batch.inputs["lengths"]
    for row in range(6):
        s, j = share[row], int(partner[row])
        torch.testing.assert_close(found.inputs["wave"][row], s * wave[row] + (1 - s) * wave[j])
        longer = max(int(lengths[row]), int(lengths[j])) if s < 1 else int(lengths[row])
        assert int(found.inputs["lengths"][row]) == longer
    assert found.mix is None
