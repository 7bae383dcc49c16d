"""Several tasks as one: each row's loss, answers and metrics are those of its own task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from headstart import tasks
from headstart.encoded import seed_of
from headstart.errors import DataError, SpecError
from headstart.evaluation.calibration import fit_temperature, temperature_of
from headstart.evaluation.intervals import intervals
from headstart.heads import probe
from headstart.tasks.multitask import Multitask

PAIRS: list[tuple[str, Any]] = [
    ("topic", "sport"), ("price", 3.0), ("tags", ["a", "b"]), ("topic", "news"), ("price", 1.0), ("tags", []),
    ("topic", "arts"), ("price", 2.5), ("tags", ["b"]), ("topic", "news"),
]  # fmt: skip
ASKED = {"topic": {"name": "classification"}, "price": {"name": "regression"}, "tags": {"name": "multilabel"}}


@pytest.fixture
def task() -> Multitask:
    return Multitask.fit(PAIRS, tasks=ASKED)


def outputs(rows: int = len(PAIRS), seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))


def test_outputs_stand_side_by_side_and_targets_say_whose_they_are(task: Multitask) -> None:
    assert task.labels == ("topic.arts", "topic.news", "topic.sport", "price.value", "tags.a", "tags.b")
    targets = task.encode(PAIRS)
    assert targets.shape == (10, 3)
    assert targets[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert targets[2].tolist() == [2, 1, 1] and targets[3].tolist() == [0, 1, 0]
    assert task.origins(targets).dtype == torch.int64
    assert task.truth(targets.numpy()) == [label for _, label in PAIRS]


def test_a_rows_loss_is_its_own_tasks_and_reaches_no_other_head(task: Multitask) -> None:
    z, targets = outputs().requires_grad_(), task.encode(PAIRS)
    losses = task.loss(z, targets)
    for row, (name, label) in enumerate(PAIRS):
        member = next(m for m in task.members if m.name == name)
        alone = member.task.loss(z[row : row + 1, member.columns], member.task.encode([label]))
        assert torch.allclose(losses[row], alone[0])
    losses.sum().backward()
    for row, (name, _) in enumerate(PAIRS):
        own = next(m for m in task.members if m.name == name).columns
        mask = torch.ones(6, dtype=torch.bool)
        mask[own] = False
        assert z.grad is not None and bool((z.grad[row, mask] == 0).all()) and bool((z.grad[row, own] != 0).any())


def test_metrics_are_the_tasks_own_and_their_mean(task: Multitask) -> None:
    targets = task.encode(PAIRS).numpy()
    scores = task.scores(outputs()).numpy()
    measured = task.measure(scores, targets)
    for member in task.members:
        rows = [i for i, (name, _) in enumerate(PAIRS) if name == member.name]
        own = member.task.measure(scores[rows][:, member.columns], member.own(targets[rows]))
        for name, value in own.items():
            assert measured[f"{member.name}.{name}"] == pytest.approx(value, nan_ok=True)
    expected = np.mean([measured["topic.accuracy"], measured["price.r2"], measured["tags.macro_f1"]])
    assert measured["mean"] == pytest.approx(expected)
    only = task.measure(scores[:1], targets[:1])
    assert only["mean"] == only["topic.accuracy"] and "price.rmse" not in only


def test_intervals_agree_with_the_values(task: Multitask) -> None:
    pairs = PAIRS * 8
    targets, scores = task.encode(pairs).numpy(), task.scores(outputs(len(pairs))).numpy()
    measured, found = task.measure(scores, targets), intervals(task, scores, targets)
    assert found["mean"].value == pytest.approx(measured["mean"], abs=1e-6)
    assert found["topic.accuracy"].value == pytest.approx(measured["topic.accuracy"], abs=1e-6)
    assert found["mean"].low is not None and found["mean"].low < measured["mean"] < found["mean"].high


def test_answers_and_columns_carry_the_tasks_name(task: Multitask) -> None:
    decoded = task.decode(task.scores(outputs(2)).numpy())
    assert set(decoded.prediction[0]) == {"topic", "price", "tags"}
    assert list(decoded.scores) == [
        "probability_topic_arts", "probability_topic_news", "probability_topic_sport", "probability_tags_a",
        "probability_tags_b",
    ]  # fmt: skip


def test_each_task_has_its_own_temperature(task: Multitask) -> None:
    z, targets = 5 * outputs(), task.encode(PAIRS)
    found = temperature_of(task, z, targets)
    rows = targets[:, 0] == 0
    assert found["topic"] == pytest.approx(fit_temperature(z[rows][:, :3], targets[rows][:, 1].long()))
    assert found["price"] == 1.0 and found["topic"] != found["tags"]
    scores = task.scores(z, found)
    assert torch.allclose(scores[:, :3], torch.softmax(z[:, :3] / found["topic"], 1))


def test_it_comes_back_from_json(task: Multitask) -> None:
    again = tasks.from_json(task.to_json())
    targets = task.encode(PAIRS)
    assert again.to_json() == task.to_json()
    assert torch.equal(again.loss(outputs(), targets), task.loss(outputs(), targets))


def test_a_tasks_metric_can_be_what_is_compared() -> None:
    chosen = Multitask.fit(PAIRS, tasks=ASKED, metric="price.rmse")
    assert not chosen.greater_is_better and chosen.metric == "price.rmse"
    with pytest.raises(SpecError, match=r"do not measure 'prize.rmse': did you mean 'price.rmse'"):
        Multitask.fit(PAIRS, tasks=ASKED, metric="prize.rmse")
    with pytest.raises(SpecError, match="did you mean 'accuracy'"):
        Multitask.fit(PAIRS, tasks=ASKED, metric="topic.acuracy")


def test_bad_labels_name_their_task(task: Multitask) -> None:
    with pytest.raises(DataError, match=r"task 'topic'.*did you mean 'sport'"):
        task.encode([("topic", "sprot")])
    with pytest.raises(DataError, match="task 'price'"):
        task.encode([("price", "cheap")])
    with pytest.raises(SpecError, match=r"\[tasks.NAME\]"):
        Multitask.fit(["a", "b"])


def test_the_probe_of_several_tasks_is_each_ones_own_probe(task: Multitask) -> None:
    pairs = PAIRS * 6
    targets = task.encode(pairs)
    features = np.random.default_rng(seed_of("probe") % 2**32).normal(size=(len(pairs), 8)).astype(np.float32)
    found = probe.fit(features, targets, task, None, seed=0)
    for member in task.members:
        rows = member.rows(targets)
        alone = probe.fit(features[rows.numpy()], member.own(targets[rows]), member.task, None, seed=0)
        assert torch.allclose(found.weight[member.columns], alone.weight)
        assert torch.allclose(found.bias[member.columns], alone.bias)
        assert torch.allclose(found.held_out[rows][:, member.columns], alone.held_out)
        assert found.c[member.name] == alone.c  # type: ignore[index]
