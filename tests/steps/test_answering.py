"""What many rows are answered in: fp32, or bf16 where it is faster and answers nearly the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart import inference
from headstart.adapt import execute, make_spec, prepare
from headstart.encoded import Encoded
from headstart.errors import BundleError
from headstart.protocols import Task
from headstart.steps import answering, precision
from headstart.steps.precision import Precision
from headstart.tasks.classification import Classification
from headstart.tasks.multilabel import Multilabel
from headstart.tasks.regression import Regression
from method_runs import make_loop, make_tasks
from sample_texts import TICKETS


@pytest.fixture(scope="module")
def bundle(tiny_bert: Path) -> hs.Bundle:
    texts = [f"{text} {word}" for each in TICKETS.values() for text in each for word in ("today", "please")]
    labels = [name for name, each in TICKETS.items() for _ in each for _ in range(2)]
    return hs.fit(texts, labels, backbone=f"file:{tiny_bert}", methods=[], epochs=1)


def pretend(monkeypatch: pytest.MonkeyPatch, half: float, twist: float = 0.0) -> None:
    """Passes that take a second in fp32 and `half` of it in bf16, whose outputs are off by a share of the largest."""

    def timed(model: nn.Module, rows: Encoded, index: np.ndarray, kind: str) -> tuple[float, Tensor]:
        outputs = real(model, rows, index, kind)[1]
        return (1.0, outputs) if kind == "fp32" else (half, outputs + twist * outputs.abs().max())

    real = answering._pass
    monkeypatch.setattr(answering, "_pass", timed)
    monkeypatch.setattr(answering, "FEWEST", 0)
    monkeypatch.setattr(answering, "FEW", 0)
    monkeypatch.setattr(precision, "product", lambda: 1.0)


def test_slower_products_try_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "FEWEST", 0)
    monkeypatch.setattr(answering, "FEW", 0)
    monkeypatch.setattr(precision, "product", lambda: 0.5)
    monkeypatch.setattr(answering, "_pass", lambda *args: pytest.fail("tried"))
    loop = make_loop([], "text")
    found = answering.choose(loop.model, loop.train_rows)
    assert found == Precision("fp32", "a product of matrices takes 2.0 times as long in bf16 here")


@pytest.mark.parametrize(("half", "chosen"), [(0.5, "bf16"), (0.9, "fp32"), (2.0, "fp32")])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_bf16_must_be_clearly_faster(kind: str, half: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, half)
    loop = make_loop([], kind)
    found = answering.choose(loop.model, loop.train_rows)
    assert found is not None and found.name == chosen and "bf16" in found.why


def test_answers_that_differ_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0.5, twist=0.1)
    loop = make_loop([], "text")
    found = answering.choose(loop.model, loop.train_rows)
    assert found is not None and found.name == "fp32"
    assert found.why.startswith("bf16 is 2.0 times as fast here, but answers otherwise by ")


def test_few_rows_try_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 of them; where products are much faster in bf16, fewer are enough."""
    pretend(monkeypatch, 0.5)
    monkeypatch.setattr(answering, "FEWEST", 24)
    monkeypatch.setattr(answering, "FEW", 25)
    loop = make_loop([], "text")
    assert answering.choose(loop.model, loop.train_rows) is None
    monkeypatch.setattr(precision, "product", lambda: 2.0)
    assert answering.choose(loop.model, loop.train_rows) is not None
    monkeypatch.setattr(answering, "FEWEST", 25)
    assert answering.choose(loop.model, loop.train_rows) is None
    assert make_loop([], "text").train_rows.prepared.lengths.shape == (24,)


@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_measuring_leaves_the_model_as_it_was(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "FEWEST", 0)
    monkeypatch.setattr(answering, "FEW", 0)
    monkeypatch.setattr(answering, "SHORTEST", 0.0)
    monkeypatch.setattr(precision, "product", lambda: 1.0)
    loop = make_loop([], kind)
    loop.model.train()
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = answering.choose(loop.model, loop.train_rows)
    assert found is not None and found.name in answering.KINDS and found.why
    assert loop.model.training and torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())


@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_answers_in_bf16_are_near_those_in_fp32(kind: str) -> None:
    loop = make_loop([], kind)
    plain, half = (inference.outputs(loop.model, loop.train_rows, precision=kind) for kind in ("fp32", "bf16"))
    assert 0 < np.abs(plain - half).max() <= answering.NEAR * np.abs(plain).max()
    assert half.dtype == np.float32
    pooled = [inference.pooled(loop.model.backbone, loop.train_rows, precision=kind) for kind in ("fp32", "bf16")]
    assert 0 < np.abs(pooled[0] - pooled[1]).max() <= answering.NEAR * np.abs(pooled[0]).max()


def test_rows_that_hang_on_rounding_are_answered_again_in_fp32() -> None:
    """Outputs as if made in bf16, in which each second row was given to its runner-up by less than the difference."""
    loop = make_loop([], "text")
    rows, task = loop.train_rows, loop.hooks.task
    plain = inference.outputs(loop.model, rows)
    made, second = plain.copy(), np.argsort(plain, axis=1)[:, -2]
    wrong = np.arange(0, len(rows), 2)
    made[wrong, second[wrong]] = plain[wrong].max(1) + 0.001 * np.abs(plain).max()
    assert (made.argmax(1) != plain.argmax(1))[wrong].all()
    asked: list[int] = []

    def again(some: Encoded) -> np.ndarray:
        asked.append(len(some))
        return inference.outputs(loop.model, some)

    kept = made.copy()
    found = answering.sure(made, rows, task, Precision("bf16", "", 0.002), again)
    assert np.array_equal(found.argmax(1), plain.argmax(1)) and len(wrong) <= sum(asked)
    np.testing.assert_allclose(found[wrong], plain[wrong], atol=1e-5)
    assert np.array_equal(answering.sure(kept.copy(), rows, task, Precision(), again), kept)
    assert np.array_equal(answering.sure(kept.copy(), rows, task, Precision("bf16"), again), kept), (
        "as it was asked for"
    )
    assert len(asked) <= 2, "the nearest, and those that these show to be doubtful"


def test_what_the_nearest_rows_show_counts_for_all() -> None:
    """A difference ten times what the trial saw, in every row: it is seen in the 16 nearest, and catches the others."""
    loop = make_loop([], "text")
    rows, task = loop.train_rows, loop.hooks.task
    plain = np.zeros((len(rows), task.outputs), dtype=np.float32)
    plain[:, 0] = 0.01
    made = plain.copy()
    made[:, 1] = 0.02
    found = answering.sure(made, rows, task, Precision("bf16", "", 0.05), lambda some: plain[: len(some)])
    assert np.array_equal(found, plain)


def test_values_are_left_as_they_are() -> None:
    task = Regression.fit([[1.0, 2.0], [2.0, 3.0]], labels=["x", "y"])
    made = np.ones((4, 2), dtype=np.float32)
    rows = make_loop([], "text").train_rows.some(np.arange(4))
    assert answering.sure(made, rows, task, Precision("bf16", "", 0.01), lambda some: pytest.fail("asked")) is made


def test_a_model_predicts_in_bf16_what_it_predicts_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0.5)
    for kind in ("text", "image", "audio"):
        loop = make_loop([], kind)
        rows, task = loop.train_rows, loop.hooks.task
        found = answering.choose(loop.model, rows)
        assert found is not None and found.name == "bf16" and 0 < found.apart < answering.NEAR
        half, plain = answering.outputs(loop.model, rows, task, found), inference.outputs(loop.model, rows)
        assert np.array_equal(half.argmax(1), plain.argmax(1))


@pytest.mark.parametrize(
    ("task", "margins"),
    [
        (Classification.fit(["a", "b", "c"]), [3.0, 0.5]),
        (Multilabel.fit([["a"], ["b"], ["c"]]), [1.0, 0.5]),
        (Regression.fit([[1.0, 2.0, 3.0], [2.0, 2.0, 4.0]], labels=["x", "y", "z"]), [np.inf, np.inf]),
    ],
)
def test_margins(task: Task, margins: list[float]) -> None:
    assert task.margin(np.array([[1.0, 4.0, -2.0], [2.5, -0.5, 2.0]])).tolist() == margins


def test_the_margin_of_several_tasks_is_the_least() -> None:
    task = make_tasks()
    first, rest = task.members[0], task.members[1:]
    outputs = np.zeros((1, task.outputs))
    for place, member in enumerate(task.members):
        outputs[0, member.columns.start] = 5.0 - place
    least = min(float(member.task.margin(outputs[:, member.columns])[0]) for member in (first, *rest))
    assert task.margin(outputs).tolist() == [least]


def test_a_bundle_measures_once_and_answers_as_measured(bundle: hs.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for each in TICKETS.values() for text in each]
    asked: list[int] = []

    def choose(model: nn.Module, rows: Encoded) -> Precision | None:
        asked.append(len(rows))
        return Precision("bf16", "said") if len(rows) > 1 else None

    monkeypatch.setattr(answering, "choose", choose)
    assert np.array_equal(bundle.outputs(texts[:1], precision="auto"), bundle.outputs(texts[:1]))
    half = bundle.outputs(texts, precision="bf16")
    assert not np.array_equal(half, bundle.outputs(texts)), "float32 unless asked"
    for _ in range(2):
        assert np.array_equal(half, bundle.outputs(texts, precision="auto"))
    assert asked == [1, len(texts)]
    assert bundle.predict(texts) == bundle.predict(texts, precision="bf16")


def test_a_precision_that_there_is_not_is_refused(bundle: hs.Bundle) -> None:
    with pytest.raises(BundleError, match="there is no precision 'fp16': did you mean 'bf16'"):
        bundle.predict(["my parcel is late"], precision="fp16")


def test_one_of_several_processes_answers_in_fp32(
    tickets: dict[str, Path], tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "choose", lambda model, rows: pytest.fail("measured for itself"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    spec = make_spec(str(tickets["train"]), methods=["freeze:probe"], backbone__ref=f"file:{tiny_bert}")
    assert prepare(spec).plan().stages[0].precision == "fp32"


@pytest.mark.parametrize("asked", ["auto", "fp32"])
def test_a_run_answers_as_measured_unless_a_precision_is_named(
    asked: str, tickets: dict[str, Path], tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen features and the report's answers; the stage and the plan say so."""
    monkeypatch.setattr(answering, "choose", lambda model, rows: Precision("bf16", "bf16 is 9.0 times as fast here"))
    data = {"data__train": str(tickets["train"]), "data__test": str(tickets["test"]), "data__label": "intent"}
    kind = {"methods": ["freeze:probe"], "backbone__ref": f"file:{tiny_bert}", "training__precision": asked}
    run = prepare(make_spec(**kind, **data))
    planned = run.plan().stages[0]
    model = execute(run, None)
    assert run.answers is not None and run.data.test is not None and model.report is not None
    texts = list(run.data.test.inputs())
    named = "bf16" if asked == "auto" else "fp32"
    assert planned.precision == named
    np.testing.assert_allclose(run.answers, model.outputs(texts, precision=named), rtol=1e-4, atol=1e-4)
    details = model.report.to_json()["stages"][0]["details"]
    assert details.get("features", "fp32") == named
    assert ("9.0 times" in details.get("features_why", "")) == (asked == "auto")
