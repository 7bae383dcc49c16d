"""Many rows at once answer as each row alone, in the order of the rows, in memory that does not grow with them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headstart as hs
from headstart import inference, verbs
from headstart.encoded import Encoded
from headstart.modalities import text as text_module
from headstart.modalities.text import PreparedText
from method_runs import make_rows
from sample_texts import TICKETS


@pytest.fixture(scope="module")
def bundle(tiny_bert: Path) -> hs.Bundle:
    texts = [f"{text} {word}" for each in TICKETS.values() for text in each for word in ("today", "please")]
    labels = [name for name, each in TICKETS.items() for _ in each for _ in range(2)]
    return hs.fit(texts, labels, backbone=f"file:{tiny_bert}", methods=[], epochs=1)


def of_many_lengths(count: int) -> list[str]:
    words = " ".join(text for each in TICKETS.values() for text in each).split()
    draws = np.random.default_rng(0)
    return [" ".join(draws.choice(words, draws.integers(0, 30))) for _ in range(count)]


@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_many_rows_answer_as_each_alone(bundle: hs.Bundle, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreparedText, "budget", budget)
    texts = of_many_lengths(60)
    together = bundle.outputs(texts)
    alone = np.concatenate([bundle.outputs([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert bundle.predict(texts) == [bundle.predict([text])[0] for text in texts]


def test_features_do_not_depend_on_the_batches(bundle: hs.Bundle) -> None:
    rows = Encoded.of(bundle.modality, bundle.model.backbone, of_many_lengths(40))
    found = inference.pooled(bundle.model.backbone, rows)
    np.testing.assert_allclose(found, inference.pooled(bundle.model.backbone, rows, batch_size=3), atol=1e-5)


def test_texts_are_cut_by_tokens_and_pictures_by_rows(bundle: hs.Bundle) -> None:
    texts = Encoded.of(bundle.modality, bundle.model.backbone, of_many_lengths(600))
    batches = inference.plan(texts)
    lengths = texts.prepared.lengths
    assert max(map(len, batches)) > inference.ROWS, "short rows stand more together"
    assert all(len(batch) * lengths[batch].max() <= text_module.BUDGET for batch in batches)
    assert [len(batch) for batch in inference.plan(texts, 250)] == [250, 250, 100]
    pictures = make_rows("image")
    assert [len(batch) for batch in inference.plan(pictures, 7)][:-1] == [7] * ((len(pictures) - 1) // 7)
    assert all(len(batch) <= inference.ROWS for batch in inference.plan(pictures))


def test_no_rows_have_no_answers(bundle: hs.Bundle) -> None:
    assert bundle.outputs([]).shape == (0, len(TICKETS))
    assert bundle.predict([]) == []


def test_the_model_is_left_in_its_mode(bundle: hs.Bundle) -> None:
    rows = Encoded.of(bundle.modality, bundle.model.backbone, ["my parcel is late"])
    for training in (True, False):
        bundle.model.train(training)
        first = inference.outputs(bundle.model, rows)
        assert bundle.model.training is training
        assert np.array_equal(first, inference.outputs(bundle.model, rows)), "dropout never acts here"
    assert not torch.is_inference_mode_enabled()


def peak(work: Callable[[], Any]) -> int:
    work()
    tracemalloc.start()
    work()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_rows(bundle: hs.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python and numpy hold at most, and how many texts are answered at a time, at ten times the rows."""
    monkeypatch.setattr(verbs, "CHUNK", 32)
    monkeypatch.setattr(text_module, "CHUNK", 32)
    taken: list[int] = []
    scores = bundle.scores

    def seen(inputs: list[str], **options: Any) -> np.ndarray:
        taken.append(len(inputs))
        return scores(inputs, **options)

    monkeypatch.setattr(bundle, "scores", seen)
    found = {}
    for count in (64, 640):
        path = tmp_path / f"{count}.csv"
        path.write_text("text\n" + "\n".join(f"{text} end" for text in of_many_lengths(count)) + "\n")
        found[count] = peak(lambda path=path: verbs.predict(bundle, path, tmp_path / "out.csv"))
        assert len((tmp_path / "out.csv").read_text().splitlines()) == count + 1
    assert max(taken) == 32
    assert found[640] < 2 * found[64], found


def test_pieces_of_a_file_are_measured_as_the_whole(
    bundle: hs.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"{text} {word},{name}" for name, each in TICKETS.items() for text in each for word in ("now", "still")]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    whole = verbs.evaluate(bundle, path)
    monkeypatch.setattr(verbs, "CHUNK", 7)
    pieces = verbs.evaluate(bundle, path)["metrics"]
    assert pieces.keys() == whole["metrics"].keys()
    for name, figures in pieces.items():  # products of other shapes round differently on some processors
        for key, value in figures.items():
            expected = whole["metrics"][name][key]
            assert value == (expected if expected is None else pytest.approx(expected, rel=1e-4)), name
