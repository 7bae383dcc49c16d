"""Attacked and spoiled rows: a linear model whose worst points are known, and what any attack must obey."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "methods"))

from method_helpers import ImageBackbone, TextBackbone, make_model

import headstart as hs
from headstart import robustness, verbs
from headstart.attack import ascend, inside, shifted, within
from headstart.cli import run
from headstart.encoded import Encoded
from headstart.errors import DataError, SpecError
from headstart.modalities.audio import AudioModality
from headstart.modalities.image import ImageModality
from headstart.modalities.text import TextModality
from headstart.model import Model
from headstart.spec import Spec
from headstart.tasks.classification import Classification
from headstart.tasks.multilabel import Multilabel
from headstart.tasks.regression import Regression
from headstart.values import Batch, Features
from method_runs import Tensors, make_loop, make_rows, train


class LinearText(TextBackbone):
    """Pools the sum of a row's embeddings, so that the head is a linear function of the input."""

    def features(self, batch: Batch) -> Features:
        x = self.network.embedding(batch.inputs["input_ids"])
        x = x if batch.shift is None else x + batch.shift
        return Features((x * batch.inputs["attention_mask"][..., None]).sum(1))


class LinearImage(ImageBackbone):
    def features(self, batch: Batch) -> Features:
        x = batch.inputs["pixels"]
        x = x if batch.shift is None else x + batch.shift
        return Features(x.flatten(1)[:, :16])


def linear(kind: str) -> tuple[Model, Encoded, Any, Any]:
    """A linear model of two classes, rows with labels it gets right mostly, task and modality."""
    torch.manual_seed(0)
    model = Model(LinearText() if kind == "text" else LinearImage(), nn.Linear(16, 2))
    rows = make_rows(kind)
    if kind == "image":  # away from the bounds of pixels, so that they cut nothing
        rows = Encoded(Tensors({"pixels": 0.3 + 0.4 * torch.rand(24, 3, 8, 8)}), None, rows.weight, rows.origin)
    with torch.no_grad():
        labels = model(rows.batch(range(24)))[1].argmax(1)
    labels[:3] = 1 - labels[:3]
    task = Classification.fit(["a", "b"])
    return model, Encoded(rows.prepared, labels, rows.weight, rows.origin), task, (
        TextModality() if kind == "text" else ImageModality()
    )  # fmt: skip


def sounds() -> tuple[Model, Encoded, Any, Any]:
    """The tiny network that hears waves, which it need not answer rightly."""
    return make_model("audio"), make_rows("audio"), Classification.fit(["0", "1", "2"]), AudioModality()


def margins(model: Model, rows: Encoded) -> Tensor:
    """How far each row's right answer leads."""
    with torch.no_grad():
        outputs = model(rows.batch(range(len(rows))))[1]
    assert rows.targets is not None
    right = outputs.gather(1, rows.targets[:, None])[:, 0]
    return right - outputs.gather(1, 1 - rows.targets[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_pgd_finds_the_known_worst_point_of_a_linear_model(kind: str) -> None:
    """The lead of a linear model falls by eps ||v||_2 (linf: eps ||v||_1), v the lead's gradient in the row."""
    model, rows, task, modality = linear(kind)
    w = (model.head.weight[0] - model.head.weight[1]).detach()
    batch = rows.batch(range(len(rows)))
    if kind == "text":  # every token that is not padding has the same gradient
        slopes = w.norm() * batch.inputs["attention_mask"].sum(1).sqrt()
    else:
        slopes = w.abs().sum() * torch.ones(len(rows))
    lead = margins(model, rows)
    radii = sorted(float((lead / slopes)[lead > 0].sort().values[i]) * 1.02 for i in (2, 9, 15))
    found = robustness.measure(model, task, modality, rows, radii=radii)
    assert found["norm"] == ("l2" if kind == "text" else "linf")
    assert found["clean"]["value"] == pytest.approx(21 / 24)
    for record in found["attacks"]:
        expected = float((lead - record["radius"] * slopes > 0).double().mean())
        assert record["value"] == pytest.approx(expected), record
    assert len({record["value"] for record in found["attacks"]}) == 3


@pytest.mark.parametrize(("kind", "norm"), [("text", "l2"), ("image", "linf"), ("image", "l2")])
def test_the_ascent_stays_in_the_ball_and_within_bounds_and_raises_the_loss(kind: str, norm: str) -> None:
    loop = make_loop([], kind)
    model, batch = loop.model.eval(), make_rows(kind).batch(range(8))
    assert batch.labels is not None

    def loss_of(given: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(given)[1], batch.labels, reduction="sum")

    start = inside(model.backbone.zero_shift(batch), 0.2, norm, batch, torch.Generator().manual_seed(0))
    change = ascend(loss_of, batch, start, 0.2, norm, 5)
    flat = change.flatten(1)
    assert float((flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)).max()) <= 0.2 + 1e-6
    torch.testing.assert_close(within(change, batch), change)
    assert loss_of(shifted(batch, change)) > loss_of(shifted(batch, start))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_stronger_attack_never_looks_better_and_none_is_the_clean_figure(kind: str) -> None:
    if kind == "text":
        loop = make_loop([], kind)
        model, rows, task, modality = train(loop).model, make_rows(kind, 1), loop.hooks.task, loop.hooks.modality
    else:  # the tiny network's answers to pictures hardly move
        model, rows, task, modality = linear(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    radii = [2.0, 0.0, 0.02, 0.1, 0.5]
    found = robustness.measure(model, task, modality, rows, radii=radii, most=20)
    values = [record["value"] for record in found["attacks"]]
    assert [record["radius"] for record in found["attacks"]] == sorted(radii)
    assert found["attacks"][0] | {"radius": 0} == {**found["clean"], "radius": 0}
    assert values == sorted(values, reverse=True) and values[-1] < values[0]
    assert found["rows"] == 20
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert robustness.measure(model, task, modality, rows, radii=radii, most=20) == found
    json.dumps(found, allow_nan=False)


def test_usual_radii() -> None:
    for kind, radii in (("text", [0.075, 0.3]), ("image", [2 / 255, 8 / 255]), ("audio", [0.0005, 0.002])):
        model, rows, task, modality = sounds() if kind == "audio" else linear(kind)
        found = robustness.measure(model, task, modality, rows, most=4)
        assert {entry["name"] for entry in found["corruptions"]} == {
            "text": set(),
            "image": set(robustness.PIXELS),
            "audio": {"noise"},
        }[kind]
        assert [record["radius"] for record in found["attacks"]] == pytest.approx(radii)


@pytest.mark.parametrize("name", ["multilabel", "regression"])
def test_other_tasks_get_worse_too(name: str) -> None:
    torch.manual_seed(0)
    model, rows = Model(TextBackbone(), nn.Linear(16, 2)), make_rows("text")
    with torch.no_grad():
        outputs = model(rows.batch(range(24)))[1]
    task: Any
    if name == "multilabel":
        task, targets = Multilabel.fit([["a"], ["b"]]), (outputs > 0).float()
    else:
        task = Regression.fit([[0.0, 1.0], [1.0, 0.0]], labels=["x", "y"])
        targets = torch.from_numpy(task.scores(outputs).numpy())
    encoded = Encoded(rows.prepared, targets, rows.weight, rows.origin)
    found = robustness.measure(model, task, TextModality(), encoded, radii=[0.5, 2.0])
    values = [record["value"] for record in (found["clean"], *found["attacks"])]
    worse: Callable[[float, float], bool] = (lambda a, b: a > b) if name == "multilabel" else (lambda a, b: a < b)
    assert found["metric"] == task.metric
    assert worse(values[0], values[1]) and worse(values[1], values[2])


def test_pictures_are_spoiled_as_described() -> None:
    model, rows, task, modality = linear("image")
    found = robustness.measure(model, task, modality, rows, radii=[0.0])
    assert [record["name"] for record in found["corruptions"]] == ["noise", "blur", "brightness"]
    pixels = torch.rand(2, 3, 5, 5)
    blurred = robustness.PIXELS["blur"](pixels, torch.Generator())
    assert float(blurred[1, 2, 2, 3]) == pytest.approx(float(pixels[1, 2, 1:4, 2:5].mean()), rel=1e-5)
    noisy = robustness.PIXELS["noise"](torch.zeros(4, 3, 64, 64), torch.Generator().manual_seed(0))
    assert float(noisy.std()) == pytest.approx(0.08, rel=0.02)
    assert float(robustness.PIXELS["brightness"](pixels, torch.Generator()).sub(pixels).mean()) == pytest.approx(0.3)


def test_typing_errors_change_few_letters_of_some_words() -> None:
    text = "please cancel the broken screen order and send my money back today " * 40
    wrong = robustness.misspelt(text, np.random.default_rng(0))
    assert wrong == robustness.misspelt(text, np.random.default_rng(0))
    pairs = list(zip(text.split(" "), wrong.split(" "), strict=True))
    changed = [(a, b) for a, b in pairs if a != b]
    long = sum(len(a) > 3 for a, _ in pairs)
    assert 0.08 < len(changed) / long < 0.2
    for a, b in changed:
        assert len(a) > 3 and a[0] == b[0] and abs(len(a) - len(b)) <= 1 and set(b) <= set(a)


def test_rows_without_labels_are_refused() -> None:
    model, rows, task, modality = linear("text")
    with pytest.raises(ValueError, match="labelled rows"):
        robustness.measure(model, task, modality, Encoded(rows.prepared, None, rows.weight, rows.origin))


def test_a_run_that_asks_for_it_reports_it(
    tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path, capsys: Any
) -> None:
    made = hs.fit(
        tickets["train"], test=tickets["test"], label="intent", backbone=f"file:{tiny_bert}", methods=[], epochs=1,
        sets=["evaluation.robust=true", "evaluation.robust_rows=12", "evaluation.radii=[0.0, 50]"],
        out=tmp_path / "run",
    )  # fmt: skip
    assert made.report is not None
    found = made.report["robustness"]
    assert (found["split"], found["rows"], found["metric"]) == ("test", 12, "accuracy")
    assert found["attacks"][0]["value"] == found["clean"]["value"] > found["attacks"][1]["value"]
    assert [record["name"] for record in found["corruptions"]] == ["typos"]
    assert "attacked (12 test rows): Accuracy" in str(made.report)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="robustness"' in page and "Attacked within l2 50" in page
    measured = verbs.evaluate(
        tmp_path / "run", tickets["test"], robust=True, robust_rows=12, radii=[0.0, 50], seed=0
    )["robustness"]  # fmt: skip
    assert measured == {key: value for key, value in found.items() if key != "split"}
    capsys.readouterr()
    arguments = ["evaluate", str(tmp_path / "run"), str(tickets["test"]), "--robust", "--robust-rows", "5"]
    assert run([*arguments, "--radius", "0.1", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out.strip().splitlines()[-1])["robustness"]["rows"] == 5
    assert "attacked within l2 0.1: " in printed.err


def test_without_asking_the_report_says_nothing() -> None:
    from headstart.evaluation import Report
    from headstart.evaluation.page import render_report

    report = Report({"task": "classification"})
    assert report["robustness"] == {} and 'id="robustness"' not in render_report(report.to_json())


@pytest.mark.parametrize("radii", ["[]", "[-0.1]"])
def test_bad_radii_are_refused(radii: str) -> None:
    with pytest.raises(SpecError, match="expected one or more lengths"):
        Spec.make(sets=[f"evaluation.radii={radii}"])


def test_bad_radii_of_a_verb_are_refused(tickets: dict[str, Path], tiny_bert: Path) -> None:
    made = hs.fit(tickets["train"], label="intent", backbone=f"file:{tiny_bert}", methods=["freeze:probe"], epochs=0)
    with pytest.raises(DataError, match="radii"):
        verbs.evaluate(made, tickets["test"], robust=True, radii=[-1.0])
