"""Explanations: they add up, find what was planted, name words as people wrote them, and leave the model as it was."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("captum")

import headstart as hs
from headstart.cli import run
from headstart.encoded import Encoded
from headstart.errors import BadInput, MissingExtra, SpecError
from headstart.explanation import attribution
from headstart.explanation.command import lines
from headstart.explanation.picture import overlay
from headstart.explanation.words import read

FILLERS = ["the", "my", "was", "is", "please", "where", "money"]


@pytest.fixture(scope="session")
def planted(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose label is caused by one word: with 'late' in a text it is `yes`."""
    draws = np.random.default_rng(0)
    rows, labels = [], []
    for number in range(120):
        words = list(draws.choice(FILLERS, 5))
        if number % 2:
            words[int(draws.integers(5))] = "late"
        rows.append(" ".join(words))
        labels.append("yes" if number % 2 else "no")
    model = hs.fit(rows, labels, backbone=f"file:{tiny_bert}", methods=["freeze:top=2"], epochs=3, learning_rate=3e-3)
    assert model.predict(["please where is my late", "please where is my money"]) == ["yes", "no"]
    return model.save(tmp_path_factory.mktemp("explained") / "planted")


@pytest.fixture(scope="session")
def shades(hub: Callable[[str], Path]) -> hs.Bundle:
    """Pictures with stripes on the left, or without; the right is noise that says nothing."""
    pictures = [half(seed) for seed in range(24)]
    return hs.fit(pictures, ["plain", "striped"] * 12, backbone=f"file:{hub('vit')}", methods=["freeze:probe"])


def half(seed: int) -> np.ndarray:
    draws = np.random.default_rng(seed)
    picture = draws.integers(90, 160, (32, 32, 3))
    if seed % 2:
        picture[:, :16] = np.where(np.arange(16) % 4 < 2, 0, 255)[None, :, None]
    return picture.astype(np.uint8)


def weights(found: attribution.Explanation) -> dict[str, float]:
    assert found.text is not None
    return {found.text[start:end]: weight for start, end, weight in found.words}


def test_weights_add_up_to_what_the_row_changed(planted: Path) -> None:
    """Completeness: together they are the score less that of a row with nothing in it."""
    model = hs.load(planted)
    changed = []
    for text in ("please where is my late", "the money was", "late"):
        found = hs.explain(model, text, steps=64)
        total = sum(weight for _, _, weight in found.words)
        assert total == pytest.approx(found.score - found.baseline, abs=2e-3)
        assert found.error == pytest.approx(abs(total - (found.score - found.baseline)), abs=1e-6)
        assert found.score == pytest.approx(float(model.scores([text]).max()), abs=1e-5)
        changed.append(total)
    assert max(changed) > 0.5, "there was something to explain"


def test_the_word_that_causes_the_label_gets_the_largest_weight(planted: Path) -> None:
    model = hs.load(planted)
    for text in ("please where is my late", "late my money", "the late was please"):
        found = hs.explain(model, text)
        each = weights(found)
        assert found.label == "yes"
        assert max(each, key=lambda word: each[word]) == "late"
        against = weights(hs.explain(model, text, label="no"))
        assert min(against, key=lambda word: against[word]) == "late"


def test_it_is_what_captum_gives_at_the_layer_of_word_embeddings(planted: Path) -> None:
    from captum.attr import LayerIntegratedGradients

    model = hs.load(planted)
    backbone: Any = model.model.backbone
    text = "please where is my late"
    batch = Encoded.of(model.modality, backbone, [text]).batch([0])
    ids = batch.inputs["input_ids"]
    empty = ids.clone()
    empty[:, 1:-1] = backbone.preprocessing["pad_id"]

    def score(ids: torch.Tensor) -> torch.Tensor:
        rows = len(ids)
        mask = torch.ones_like(ids)
        outputs: torch.Tensor = model.model(
            batch.replace(inputs={"input_ids": ids, "attention_mask": mask}, weight=torch.ones(rows))
        )[1]
        return model.task.scores(outputs, model.temperature)

    layer = LayerIntegratedGradients(score, backbone.words())
    expected = layer.attribute(ids, empty, target=model.labels.index("yes"), n_steps=32)[0].sum(-1)[1:-1]
    found = [weight for _, _, weight in hs.explain(model, text, steps=32).words]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_nothing_of_the_model_is_changed(planted: Path) -> None:
    model = hs.load(planted)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    answers = model.outputs(["please where is my late"])
    hooks = [len(module._forward_hooks) for module in model.model.modules()]
    hs.explain(model, "please where is my late")
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert [len(module._forward_hooks) for module in model.model.modules()] == hooks
    assert not any(module.training for module in model.model.modules())
    assert np.array_equal(model.outputs(["please where is my late"]), answers)


def test_answers_beside_an_explanation_are_not_shifted(planted: Path) -> None:
    """Another thread runs the network between two passes of an explanation, and in the middle of one."""
    model = hs.load(planted)
    backbone: Any = model.model.backbone
    text = "please where is my late"
    expected, seen = model.outputs([text]), []

    def beside(module: Any, args: Any, output: Any) -> None:
        if threading.current_thread() is main:
            other = threading.Thread(target=lambda: seen.append(model.outputs([text])))
            other.start()
            other.join()

    main = threading.current_thread()
    question = attribution.ask(model, text)
    handle = backbone.words().register_forward_hook(beside)
    try:
        attribution.answer(question, steps=8)
    finally:
        handle.remove()
    assert len(seen) > 2
    assert all(np.allclose(each, expected, atol=1e-6) for each in seen)


@pytest.mark.parametrize("method", ["lora:r=4,merge=false", "lora:r=4", "ia3", "adapter", "prompt:length=3"])
def test_models_with_added_parts_are_explained(tiny_bert: Path, method: str) -> None:
    if method.startswith("lora"):
        pytest.importorskip("peft")
    rows = ["refund please", "where is my order", "money back", "the card is lost"] * 3
    model = hs.fit(rows, ["a", "b"] * 6, backbone=f"file:{tiny_bert}", methods=[method], epochs=1)
    found = hs.explain(model, rows[0], steps=64)
    total = sum(weight for _, _, weight in found.words)
    assert [found.text[start:end] for start, end, _ in found.words] == ["refund", "please"]  # type: ignore[index]
    assert total == pytest.approx(found.score - found.baseline, abs=1e-3)


def test_one_of_several_tasks_is_explained(tiny_bert: Path) -> None:
    rows = ["refund please", "where is my order", "money back", "the card is lost"] * 3
    both = {
        "topic": {"data": {"train": (rows, ["a", "b", "a", "b"] * 3)}},
        "tags": {"data": {"train": (rows, [["x"], [], ["x", "y"], ["y"]] * 3)}, "task": {"name": "multilabel"}},
        "size": {"data": {"train": (rows, [1.0, 2.0, 3.5, 4.0] * 3)}, "task": {"name": "regression"}},
    }
    model = hs.fit(tasks=both, backbone=f"file:{tiny_bert}", methods=["freeze:probe"])
    scores = model.scores(rows[:1])[0]
    start = 0
    for task, member in zip(("topic", "tags", "size"), model.task.members, strict=True):
        own = scores[member.columns]
        found = hs.explain(model, rows[0], task=task, label=member.task.labels[-1], steps=64)
        assert (found.task, found.label) == (task, member.task.labels[-1])
        assert found.score == pytest.approx(float(own[-1]), abs=1e-4)
        assert sum(weight for _, _, weight in found.words) == pytest.approx(found.score - found.baseline, abs=2e-3)
        start += len(own)
    with pytest.raises(SpecError, match=r"several tasks \(topic, tags, size\): say which"):
        hs.explain(model, rows[0])
    with pytest.raises(SpecError, match="no task 'sizes' in this model: did you mean 'size'"):
        hs.explain(model, rows[0], task="sizes")


def test_wrong_questions_are_refused(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hs.load(planted)
    with pytest.raises(SpecError, match="no label 'maybe' in this model: known: no, yes"):
        hs.explain(model, "late", label="maybe")
    with pytest.raises(SpecError, match="single task, and it has no name"):
        hs.explain(model, "late", task="topic")
    with pytest.raises(SpecError, match="expected steps of at least 1, received 0"):
        hs.explain(model, "late", steps=0)
    model.record["runtime"] = {"name": "onnx"}
    with pytest.raises(BadInput, match=r"run by ONNX Runtime, which gives no gradients: explain the bundle"):
        hs.explain(model, "late")
    del model.record["runtime"]
    monkeypatch.setattr(attribution, "ready", lambda: False)
    with pytest.raises(MissingExtra, match=r"headstart\[explain\]"):
        hs.explain(model, "late")


def test_models_of_sounds_say_that_they_cannot(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hs.load(planted)
    monkeypatch.setattr(model.modality.__class__, "name", "audio")
    with pytest.raises(BadInput, match="models of texts and pictures, and this one reads audio"):
        hs.explain(model, b"")


def test_pieces_are_joined_into_words(hub: Callable[[str], Path]) -> None:
    from headstart import backbones
    from headstart.spec import BackboneSpec

    backbone = backbones.load(BackboneSpec(ref=f"file:{hub('bert')}"), "text")
    text = "The cats\tsinging,  red-old  X"
    pieces = read(text, backbone)
    words = [pieces.text[at[0] : at[1]] for at in pieces.spans if at]
    assert list(dict.fromkeys(words)) == ["The", "cats", "singing", ",", "red", "-", "old", "X"]
    assert words.count("cats") == 2, "cat and ##s are one word"
    assert pieces.spans[0] is None and pieces.spans[-1] is None and pieces.whole
    long = read("cat " * 100, backbone)
    assert not long.whole and len(long.spans) == 40
    backbone.preprocessing = {**backbone.preprocessing, "prompt": "song of ", "lower": True}
    asked = read("A Cat", backbone)
    assert [at for at in asked.spans if at] == [(0, 1), (2, 5)] and asked.text == "a cat"


def test_the_verb_prints_the_words(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", str(planted), "please where is my late", "--steps", "32", "--json"]) == 0
    said = capsys.readouterr()
    head, first = said.err.splitlines()[:2]
    shown = re.fullmatch(r"yes ([01]\.\d{4}), with nothing in the row (0\.\d{4}); what made the difference:", head)
    assert shown is not None and float(shown[1]) > 0.9 and float(shown[2]) < 0.5, head
    assert first.split()[1] == "late" and first.split()[2] == "+" * 24
    found = json.loads(said.out.splitlines()[-1])
    assert found["text"] == "please where is my late" and found["steps"] == 32
    assert [word["text"] for word in found["words"]] == found["text"].split()
    assert run(["explain", str(planted), "late", "--label", "no"]) == 0
    assert re.match(r"no 0\.\d{4}, with", capsys.readouterr().err)
    assert run(["explain", str(planted), "late", "--out", "heat.png"]) == 2
    assert "expected --out as a .png, for the heat map of a picture" in capsys.readouterr().err
    assert run(["explain", str(planted), "late", "--task", "topic"]) == 2
    assert "single task" in capsys.readouterr().err


def test_a_text_that_is_cut_off_says_so(planted: Path) -> None:
    found = hs.explain(hs.load(planted), "late " * 80, steps=8)
    assert not found.whole and len(found.words) == 62
    said = lines(found)
    assert said[-1] == "  the end of the text is beyond what this model reads"
    assert said[-2].endswith("in 42 more words") and len(said) == 23


def test_the_part_of_a_picture_that_decides_gets_the_weight(shades: hs.Bundle) -> None:
    found = hs.explain(shades, half(31))
    assert found.heat is not None and found.picture is not None
    assert found.heat.shape == (7, 7) and found.picture.shape == (32, 32, 3)
    assert found.label == "striped" and found.baseline < found.score
    assert found.score == pytest.approx(float(shades.scores([half(31)]).max()), abs=1e-5)
    assert np.abs(found.heat[:, :3]).sum() > 2 * np.abs(found.heat[:, 4:]).sum()


def test_a_parts_weight_is_what_is_lost_without_it(shades: hs.Bundle) -> None:
    """The definition, computed by hand for one part."""
    from headstart.explanation.picture import blurred

    found = hs.explain(shades, half(31), label="striped")
    assert found.picture is not None and found.heat is not None
    soft = blurred(found.picture / np.float32(255), attribution.BLUR)[0].permute(1, 2, 0).numpy()
    changed = found.picture.copy()
    rows, columns = (np.nonzero(np.arange(32) * 7 // 32 == part)[0] for part in (2, 1))
    changed[np.ix_(rows, columns)] = np.rint(255 * soft[np.ix_(rows, columns)])
    batch = Encoded.of(shades.modality, shades.model.backbone, [half(31)]).batch([0])
    pixels = torch.from_numpy(changed).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        outputs = shades.model(batch.replace(inputs={"pixels": pixels}))[1]
    score = float(shades.task.scores(outputs, shades.temperature)[0, shades.labels.index("striped")])
    assert found.heat[2, 1] == pytest.approx(found.score - score, abs=1e-5)


def test_the_verb_draws_the_heat_map(shades: hs.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    folder = shades.save(tmp_path / "shades")
    Image.fromarray(half(31)).save(tmp_path / "one.png")
    arguments = ["explain", str(folder), str(tmp_path / "one.png")]
    assert run([*arguments, "--out", str(tmp_path / "heat.png"), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("striped 0.") and len(said.err.splitlines()) == 9
    found = json.loads(said.out.splitlines()[-1])
    assert len(found["heat"]) == 7 and "words" not in found
    with Image.open(tmp_path / "heat.png") as drawn:
        assert drawn.size == (320, 320) and drawn.mode == "RGB"
    assert run([*arguments, "--steps", "8"]) == 2
    assert "steps are for texts" in capsys.readouterr().err
    assert run(["explain", str(folder), str(tmp_path / "none.png")]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_red_speaks_for_and_blue_against() -> None:
    heat = np.array([[1.0, -1.0]])
    picture = np.full((320, 320, 3), 128, dtype=np.uint8)
    drawn = np.asarray(overlay(attribution.Explanation("", "a", 1.0, 0.0, picture=picture, heat=heat)))
    assert drawn[160, 5, 0] > drawn[160, 5, 2] + 50 and drawn[160, -5, 2] > drawn[160, -5, 0] + 50
