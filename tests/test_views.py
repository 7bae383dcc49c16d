"""Test-time augmentation: the mean over views, computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headstart as hs
from headstart import views
from headstart.cli import run
from headstart.encoded import Encoded, seed_of
from headstart.errors import MethodError, SpecError
from headstart.modalities.image import ImageModality
from headstart.protocols import Context
from headstart.values import Progress
from method_runs import make_model  # it also makes `method_helpers` importable

ROWS = ["where is my parcel today", "refund the order please now", "my password is lost again", "i want money back"]


@pytest.fixture(scope="module")
def bundles(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One trained with `augment`, one without."""
    texts = [f"{text} {word}" for text in ROWS for word in ("today", "please", "help", "still", "now", "again")]
    labels = [name for name in ("delivery", "refund", "login", "refund") for _ in range(6)]
    options: dict[str, Any] = {"backbone": f"file:{tiny_bert}", "epochs": 1}
    folder = tmp_path_factory.mktemp("views")
    own = [hs.methods.Augment(swap=0.4, drop=0, delete=0, insert=0, synonym=0, share=0.9)]
    return {
        "own": hs.fit(texts, labels, methods=own, out=folder / "own", **options),
        "plain": hs.fit(texts, labels, methods=[], out=folder / "plain", **options),
    }


def by_hand(model: Any, inputs: list[str], count: int, seed: int, method: hs.methods.Method) -> np.ndarray:
    """Softmax of outputs over temperature, view by view, with the draws that the page promises."""
    rows = Encoded.of(model.modality, model.model.backbone, inputs)
    order = np.argsort(-rows.prepared.lengths.astype(np.int64), kind="stable").tolist()
    method.adapt(model.model, context(model, 0))
    total = np.zeros((len(inputs), len(model.labels)))
    for view in range(count):
        batch = rows.batch(order)
        if view:
            batch = method.transform(batch, context(model, seed_of(seed, "augment", 0, 0, "view", view, 0)))
        with torch.no_grad():
            outputs = model.model.eval()(batch)[1].double() / model.temperature
        total[order] += (outputs.exp() / outputs.exp().sum(1, keepdim=True)).numpy()
    return total / count


def context(model: Any, seed: int) -> Context:
    generator = torch.Generator().manual_seed(seed)
    return Context(model.task, model.modality, Progress(0, 1, 0, 1), generator, {})


def test_views_are_drawn_anew_however_many_training_had() -> None:
    trained = {"name": "augment", "options": {"views": 2, "flip": 0.3}}
    assert views.augmentation(ImageModality(), [trained]) == hs.methods.Augment(flip=0.3)


@pytest.mark.parametrize("name", ["own", "plain"])
def test_eight_views_are_the_mean_by_hand(bundles: dict[str, Any], name: str) -> None:
    model = bundles[name]
    made = {
        "own": hs.methods.Augment(swap=0.4, drop=0, delete=0, insert=0, synonym=0, share=0.9),
        "plain": hs.methods.Augment(drop=0.1, delete=0, swap=0, insert=0, synonym=0, share=1.0),
    }[name]
    found = model.scores(ROWS, tta=8, seed=3)
    np.testing.assert_allclose(found, by_hand(model, ROWS, 8, 3, made), atol=1e-6)
    assert not np.allclose(found, model.scores(ROWS), atol=1e-6), "the views changed nothing"
    assert found.sum(1) == pytest.approx(1)


def test_one_view_is_the_row_itself(bundles: dict[str, Any]) -> None:
    for model in bundles.values():
        assert np.array_equal(model.scores(ROWS, tta=1), model.scores(ROWS))
        assert model.predict(ROWS, tta=1) == model.predict(ROWS)
        specs = model.record["spec"]["stages"][-1]["methods"]
        one = views.averaged(model.model, model.task, model.modality, ROWS, specs, model.temperature, 1, 0)
        np.testing.assert_allclose(one, model.scores(ROWS), atol=1e-6)


def test_draws_follow_the_seed_alone(bundles: dict[str, Any]) -> None:
    model = bundles["own"]
    torch.manual_seed(1)
    first = model.scores(ROWS, tta=4, seed=1)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert np.array_equal(model.scores(ROWS, tta=4, seed=1), first)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers moved"
    assert not np.array_equal(model.scores(ROWS, tta=4, seed=2), first)
    assert model.scores([], tta=4).shape == (0, 3)


def test_a_loaded_bundle_has_the_same_views(bundles: dict[str, Any]) -> None:
    model = bundles["own"]
    loaded = hs.load(model.folder)
    np.testing.assert_allclose(loaded.scores(ROWS, tta=5), model.scores(ROWS, tta=5), atol=1e-6)


def test_pictures_are_flipped_and_cropped() -> None:
    from method_helpers import CLASSES, ImageModality, TinyTask

    class Rows:
        lengths = np.ones(5, dtype=np.int32)

        def __len__(self) -> int:
            return 5

        def take(self, rows: Any) -> dict[str, torch.Tensor]:
            return {"pixels": torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))[list(rows)]}

    class Pictures(ImageModality):
        def prepare(self, values: Any, backbone: Any) -> Any:
            return Rows()

    model, task = make_model("image"), TinyTask()
    found = [views.averaged(model, task, Pictures(), list("abcde"), [], 1.0, k, 0) for k in (1, 6)]
    assert found[1].shape == (5, CLASSES) and not np.allclose(found[0], found[1], atol=1e-6)
    method = views.augmentation(Pictures(), [])
    assert (method.flip, method.crop) == (0.5, 0.8)  # type: ignore[attr-defined]
    last = [{"name": "augment", "options": {"flip": 0.1}}, {"name": "ema", "options": {}}]
    assert views.augmentation(Pictures(), last).flip == 0.1  # type: ignore[attr-defined]

    class Video(Pictures):
        name = "video"

    with pytest.raises(MethodError, match="video"):
        views.averaged(model, task, Video(), list("abcde"), [], 1.0, 2, 0)


@pytest.mark.parametrize("count", [0, -1, 2.0, "8"])
def test_a_bad_number_of_views_is_refused(bundles: dict[str, Any], count: Any) -> None:
    with pytest.raises(SpecError, match="expected tta to be a whole number of at least 1"):
        bundles["plain"].predict(ROWS, tta=count)


def test_the_verbs_take_it(bundles: dict[str, Any], tickets: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    import pandas as pd

    model, out, test = bundles["own"], tmp_path / "answers.csv", tmp_path / "test.csv"
    rows = pd.read_csv(tickets["test"]).rename(columns={"intent": "label"})
    rows.to_csv(test, index=False)
    assert run(["predict", str(model.folder), str(test), "--out", str(out), "--tta", "4"]) == 0
    expected = model.scores(rows["text"].tolist(), tta=4)
    answers = pd.read_csv(out)
    written = answers[[f"probability_{label}" for label in model.labels]].to_numpy()
    np.testing.assert_allclose(written, expected, atol=1e-5)
    found = hs.evaluate(model, test, tta=4)
    right = np.asarray(model.labels)[expected.argmax(1)] == rows["label"].to_numpy()
    assert answers["prediction"].tolist() == np.asarray(model.labels)[expected.argmax(1)].tolist()
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(right.mean())
    capsys.readouterr()
    assert run(["evaluate", str(model.folder), str(test), "--tta", "0"]) == 2
    assert "expected tta" in capsys.readouterr().err
