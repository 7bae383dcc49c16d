"""Processes that are killed at any moment, and processes that write at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import headstart as hs
import registry_workers as workers
from headstart.registry.place import Registry

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def start() -> Callable[..., BaseProcess]:
    """Start a function in a process that has the libraries already, so that it is quick and killed amid the work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["registry_workers", "mlflow", "mlflow.store.model_registry.sqlalchemy_store", "headstart.registry.verbs",
         "headstart.modalities.text", "headstart.tasks.classification", "transformers.models.bert.modeling_bert"]
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()

    def begin(work: Callable[..., None], *args: Any) -> BaseProcess:
        process = context.Process(target=work, args=args)
        process.start()
        return process

    return begin


class Checked:
    """The versions that are listed; each proves itself when it is first seen, and every alias leads to one."""

    def __init__(self, registry: Path) -> None:
        self.registry = Registry(registry)
        self.proven: set[int] = set()

    def versions(self) -> list[int]:
        versions = self.registry.versions()
        for version in versions:
            if version.version not in self.proven:
                hs.load(self.registry.fetch(version), report=False)
                self.proven.add(version.version)
        assert set(self.registry.champions().values()) <= self.proven
        return sorted(version.version for version in versions)


def folders(registry: Path) -> set[str]:
    return {path.name for path in (registry / "models" / "tickets").iterdir()}


@pytest.mark.slow
def test_a_registering_process_killed_at_random_moments_leaves_nothing_half_registered(
    start: Callable[..., BaseProcess], good: Path, registry: Path
) -> None:
    draws = random.Random(0)
    began = time.monotonic()
    first = start(workers.register, good, registry)
    first.join()
    seconds = time.monotonic() - began
    checked = Checked(registry)
    assert first.exitcode == 0 and checked.versions() == [1]
    before = [1]
    for _ in range(20):
        process = start(workers.register, good, registry)
        process.join(draws.uniform(0, seconds))
        if process.is_alive():
            process.kill()
        process.join()
        assert process.exitcode in (0, KILLED)
        after = checked.versions()
        assert after in (before, [*before, before[-1] + 1])
        before = after
    made = hs.register(good, "tickets", registry=registry)
    assert Checked(registry).versions()[-1] == made.version == before[-1] + 1
    assert folders(registry) == {Path(version.place).name for version in hs.models(registry=registry)}


@pytest.mark.slow
def test_a_process_killed_before_each_of_its_writes_leaves_nothing_half_registered(
    start: Callable[..., BaseProcess], good: Path, registry: Path
) -> None:
    checked = Checked(registry)
    listed: list[int] = []
    champions: list[int] = []
    for step in range(1, 40):
        process = start(workers.until, step, workers.register, good, registry, None if champions else "champion")
        process.join()
        now = checked.versions()
        assert now in (listed, [*listed, len(listed) + 1])
        listed, champions = now, list(checked.registry.champions().values())
        if process.exitcode == 0:
            break
        assert process.exitcode == KILLED
    assert process.exitcode == 0 and step > 10, "every write was cut off once"
    assert folders(registry) == {Path(version.place).name for version in hs.models(registry=registry)}


@pytest.mark.slow
def test_a_promotion_and_a_rollback_killed_before_each_of_their_writes_can_be_done_again(
    start: Callable[..., BaseProcess], good: Path, bad: Path, again: Path, registry: Path
) -> None:
    hs.register(good, "tickets", alias="champion", registry=registry)
    hs.register(bad, "tickets", registry=registry)
    hs.promote("tickets", 2, registry=registry, force="for the test")
    hs.register(again, "tickets", alias="challenger", registry=registry)
    there = Registry(registry)

    def cut_off(work: Callable[..., None], old: int, new: int) -> None:
        for step in range(1, 20):
            process = start(workers.until, step, work, registry)
            process.join()
            if there.champions()["tickets"] == new:
                break
            assert process.exitcode == KILLED and there.champions() == {"tickets": old}
        assert step > 1 and there.champions() == {"tickets": new}

    cut_off(workers.promote, 2, 3)
    cut_off(workers.rollback, 3, 2)
    assert hs.rollback("tickets", registry=registry).version == 1


@pytest.mark.slow
def test_a_removal_killed_before_each_of_its_writes_leaves_whole_versions_and_is_finished_later(
    start: Callable[..., BaseProcess], good: Path, registry: Path
) -> None:
    hs.register(good, "tickets", alias="champion", registry=registry)
    for _ in range(4):
        hs.register(good, "tickets", registry=registry)
    cut = []
    for step in range(1, 200):
        copy = registry.with_name(f"copy-{step}")
        shutil.copytree(registry, copy)
        process = start(workers.until, step, workers.remove, copy, 2)
        process.join()
        now = Checked(copy).versions()
        assert now in ([1, 2, 3, 4, 5], [1, 3, 4, 5], [1, 4, 5]), "the oldest first, each of them whole or gone"
        cut.append((now, len(folders(copy))))
        hs.remove("tickets", [5], registry=copy)
        assert folders(copy) == {Path(version.place).name for version in hs.models(registry=copy)}
        shutil.rmtree(copy)
        if process.exitcode == 0:
            break
        assert process.exitcode == KILLED
    assert process.exitcode == 0 and now == [1, 4, 5]
    assert {len(now) for now, _ in cut} == {5, 4, 3}
    assert {count for now, count in cut if now == [1, 4, 5]} > {3, 4, 5}, "cut off amid the files too"


@pytest.mark.slow
def test_a_removal_beside_those_who_register_and_promote_takes_nothing_that_is_needed(
    start: Callable[..., BaseProcess], good: Path, again: Path, registry: Path
) -> None:
    hs.register(good, "tickets", alias="champion", registry=registry)
    hs.register(again, "tickets", alias="challenger", registry=registry)
    there = Registry(registry)
    for _ in range(3):
        others = [
            start(workers.promote, registry), start(workers.remove, registry, 0),
            start(workers.register, good, registry, "challenger"), start(workers.remove, registry, 0),
        ]  # fmt: skip
        for process in others:
            process.join()
        assert [process.exitcode for process in others[1:]] == [0] * 3
        listed = Checked(registry).versions()
        assert there.champions()["tickets"] in listed and there.holder("tickets", "challenger") in (*listed, None)
        if there.holder("tickets", "challenger") is None:
            hs.register(again, "tickets", alias="challenger", registry=registry)
    hs.remove("tickets", keep=0, registry=registry)
    assert folders(registry) == {Path(version.place).name for version in hs.models(registry=registry)}


def test_a_registry_whose_making_was_cut_off_is_made_again(good: Path, tmp_path: Path) -> None:
    place = tmp_path / "registry"
    place.mkdir()
    (place / ".part-registry.db").write_bytes(b"half a database")
    (place / ".part-registry.db-journal").write_bytes(b"its journal")
    with pytest.raises(hs.BadInput, match="there is no registry at"):
        hs.models(registry=place)
    assert hs.register(good, "tickets", registry=place).version == 1
    assert not list(place.glob(".part*"))


def test_two_writers_at_once_get_versions_of_their_own(
    start: Callable[..., BaseProcess], good: Path, again: Path, registry: Path
) -> None:
    both = [start(workers.register, folder, registry) for folder in (good, again, good, again)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0] * 4
    assert Checked(registry).versions() == [1, 2, 3, 4]
    ids = {version.bundle for version in hs.models(registry=registry)}
    assert len(ids) == 2 and len(folders(registry)) == 4


def test_a_lock_goes_with_the_process_that_held_it(
    start: Callable[..., BaseProcess], good: Path, registry: Path
) -> None:
    process = start(workers.hold, registry / ".register.lock")
    while not (registry / "held").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert hs.register(good, "tickets", registry=registry).version == 1
