"""Rows of several tasks: joined in order, counted in sum, and shared out over epochs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.data import apart, by_length, by_task, load_rows
from headstart.errors import DataError
from headstart.spec import Spec

TOPIC = (["goal and match", "vote and law", "cup and goal", "law and state"] * 5, ["sport", "news"] * 10)
MOOD = ([f"a day {i}" for i in range(12)], [i / 2 + 0.25 for i in range(12)])


def loaded(**tasks: Any) -> Any:
    plain, memory = apart(tasks)
    return load_rows(Spec.make({"tasks": plain}), memory)


def test_tasks_are_joined_one_after_the_other_and_counted_in_sum() -> None:
    found = loaded(
        topic={"data": {"train": TOPIC, "test": (TOPIC[0][:4], TOPIC[1][:4])}}, mood={"data": {"train": MOOD}}
    )
    each = found.tasks
    assert list(each) == ["topic", "mood"] and found.columns.task == "multitask"
    assert found.rows.adds_up and found.rows.read == sum(data.rows.read for data in each.values()) == 36
    assert len(found.train) == len(each["topic"].train) + len(each["mood"].train)
    assert list(found.train.inputs()) == [*each["topic"].train.inputs(), *each["mood"].train.inputs()]
    assert found.train.inputs()[-1] == each["mood"].train.inputs()[-1]
    assert found.train.labels()[0] == ("topic", each["topic"].train.labels()[0])
    assert found.train.labels()[-1] == ("mood", each["mood"].train.labels()[-1])
    assert list(found.test.tasks) == ["topic"] and len(found.test) == 4
    assert all(sentence.startswith(("topic: ", "mood: ")) for sentence in found.said)
    again = loaded(topic={"data": {"train": TOPIC}}, mood={"data": {"train": MOOD}})
    assert again.fingerprint != found.fingerprint


def test_bad_rows_name_their_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="task 'mood'"):
        loaded(topic={"data": {"train": TOPIC}}, mood={"data": {"train": (MOOD[0], [1] * 3)}})
    with pytest.raises(DataError, match=r"task 'mood'.*nowhere.csv"):
        loaded(topic={"data": {"train": TOPIC}}, mood=tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="task 'mood': expected a file or a mapping"):
        loaded(topic={"data": {"train": TOPIC}}, mood=7)
    with pytest.raises(DataError, match=r"task 'mood': expected train as a file or a pair"):
        loaded(topic={"data": {"train": TOPIC}}, mood={"data": {"train": MOOD[0]}})
    with pytest.raises(DataError, match="all be in files, or all in memory"):
        loaded(topic={"data": {"train": TOPIC, "test": "test.csv"}}, mood={"data": {"train": MOOD}})


def test_tasks_of_different_inputs_are_refused() -> None:
    pictures = [np.full((8, 8, 3), 10 * i, dtype=np.uint8) for i in range(12)]
    with pytest.raises(DataError, match="'topic' reads texts, 'look' reads images"):
        loaded(topic={"data": {"train": TOPIC}}, look={"data": {"train": (pictures, ["dark", "light"] * 6)}})


LENGTHS = np.random.default_rng(0).integers(5, 60, 400)
TASKS = np.repeat([0, 1, 2], [300, 80, 20])


def plan(sampling: str, epoch: int = 0, **more: Any) -> list[np.ndarray]:
    return by_task(LENGTHS, TASKS, 16, **{"sampling": sampling, "temperature": 2.0, "seed": 1, "epoch": epoch, **more})


def counts(batches: list[np.ndarray]) -> list[int]:
    found = Counter(TASKS[np.concatenate(batches)].tolist())
    return [found[task] for task in range(3)]


def test_by_size_every_row_comes_once() -> None:
    rows = np.concatenate(plan("size"))
    assert sorted(rows.tolist()) == list(range(400))


def test_shares_follow_the_temperature_and_an_epoch_keeps_its_length() -> None:
    powers = np.array([300, 80, 20]) ** 0.5
    expected = 400 * powers / powers.sum()
    found = counts(plan("temperature"))
    assert sum(found) == 400 and np.abs(np.array(found) - expected).max() < 1
    assert counts(plan("temperature", temperature=1.0)) == [300, 80, 20]
    assert np.ptp(counts(plan("uniform"))) <= 1 and sum(counts(plan("uniform"))) == 400


@pytest.mark.parametrize("sampling", ["size", "temperature", "uniform", "round_robin"])
def test_plans_depend_on_seed_and_epoch_alone_and_have_equal_length(sampling: str) -> None:
    def flat(**more: Any) -> list[int]:
        return np.concatenate(plan(sampling, **more)).tolist()

    assert flat(epoch=3) == flat(epoch=3) != flat(epoch=4)
    assert flat() != flat(seed=2)
    assert len({len(plan(sampling, epoch=epoch)) for epoch in range(6)}) == 1


def test_all_rows_of_a_task_are_seen_equally_often_over_epochs() -> None:
    seen = Counter(row for epoch in range(9) for row in np.concatenate(plan("uniform", epoch=epoch)).tolist())
    for task in range(3):
        often = [seen[row] for row in np.flatnonzero(task == TASKS).tolist()]
        assert max(often) - min(often) <= 1


def test_batches_hold_every_task_in_proportion_though_lengths_differ() -> None:
    lengths = np.where(TASKS == 0, 100, 10) + LENGTHS
    apart_by_length = by_length(lengths, 16, seed=1, epoch=0)
    assert any(len(set(TASKS[batch].tolist())) == 1 for batch in apart_by_length)
    for batch in by_task(lengths, TASKS, 16, sampling="uniform", temperature=2.0, seed=1, epoch=0):
        assert np.bincount(TASKS[batch], minlength=3).min() >= 4
    within = [lengths[batch][TASKS[batch] == 0] for batch in plan("size")]
    assert np.mean([np.ptp(part) for part in within if len(part)]) < 0.5 * np.ptp(lengths[TASKS == 0])


def test_round_robin_takes_turns() -> None:
    batches = plan("round_robin")
    assert all(len(set(TASKS[batch].tolist())) == 1 for batch in batches)
    assert [int(TASKS[batch[0]]) for batch in batches[:6]] == [0, 1, 2, 0, 1, 2]
