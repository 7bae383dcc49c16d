"""A run killed at any moment and resumed ends with the weights of the run that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from headstart.errors import BundleError, Interrupted
from headstart.methods.ema import EMA
from headstart.methods.mixup import Mixup
from headstart.state import load_state, save_state
from headstart.steps.ways import Ways
from tiny import DEVICE, make_loop, make_rows

KILLS = 20
SETTINGS = {"epochs": 6, "accumulate": 2, "checkpoint_every": 1e-4, "patience": None}


def run(checkpoint: Path | None, *, resume: bool = False, pause: float = 0.0) -> dict[str, torch.Tensor]:
    """A run with everything that has a state: dropout, moments, an average, draws, a best validation."""
    torch.set_num_threads(1)
    methods = {"mixup": Mixup(alpha=0.4), "ema": EMA(decay=0.9)}
    loop = make_loop(methods, rows=make_rows(96), validation=make_rows(48, seed=1), checkpoint=checkpoint, **SETTINGS)
    loop.listen = lambda event, figures: time.sleep(pause)
    return {name: value.clone() for name, value in loop.train(resume=resume).model.state_dict().items()}


def child(checkpoint: Path, resume: bool) -> None:
    run(checkpoint, resume=resume, pause=0.01)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a process that has used a GPU cannot be forked")
def test_killed_at_random_moments_and_resumed_gives_identical_weights(tmp_path: Path) -> None:
    expected = run(None)
    torch.set_num_threads(1)
    checkpoint = tmp_path / "checkpoint.safetensors"
    draws = random.Random(0)
    fork = multiprocessing.get_context("fork")
    kills = 0
    while kills < KILLS:
        process = fork.Process(target=child, args=(checkpoint, checkpoint.exists()))
        process.start()
        process.join(draws.uniform(0.05, 0.4))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            checkpoint.unlink()
    found = run(checkpoint, resume=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sigint_saves_the_state_and_resume_goes_on(tmp_path: Path) -> None:
    expected = run(None)
    checkpoint = tmp_path / "checkpoint.safetensors"
    threading.Timer(0.15, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(Interrupted, match="go on with --resume"):
        run(checkpoint, pause=0.02)
    found = run(checkpoint, resume=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    loop = make_loop(checkpoint=checkpoint, checkpoint_every=1e-9)
    loop.train()
    other = make_loop(checkpoint=checkpoint)
    other.identity = "another"
    with pytest.raises(BundleError, match="another spec or other data"):
        other.train(resume=True)


def test_a_cut_short_state_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.arange(3), "b": {"c": [1, torch.ones(2)], "d": None}})
    loaded = load_state(path)
    assert torch.equal(loaded["a"], torch.arange(3))
    assert loaded["b"]["c"][0] == 1
    assert torch.equal(loaded["b"]["c"][1], torch.ones(2))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BundleError, match="cannot be read"):
        load_state(path)


def test_what_a_state_holds_twice_is_saved_twice_and_nothing_else_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    record = {"one": whole, "other": whole, "row": whole[1], "across": torch.arange(6.0).reshape(2, 3).T}
    copies: list[torch.Size] = []
    usual = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor, **how: (copies.append(tensor.shape), usual(tensor))[1])
    save_state(tmp_path / "run.state", record)
    assert copies == [whole.shape, whole[1].shape]
    loaded = load_state(tmp_path / "run.state")
    assert all(torch.equal(loaded[name], value) for name, value in record.items())


def test_a_resumed_run_keeps_its_precision(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = make_loop(checkpoint=checkpoint, checkpoint_every=1e-9)
    first.ways = Ways("bf16")
    first.train()
    again = make_loop(checkpoint=checkpoint)
    again.train(resume=True)
    assert again.ways.precision == first.ways.precision == "bf16"


def test_a_resumed_run_packs_if_it_was_begun_so(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    make_loop(checkpoint=checkpoint, checkpoint_every=1e-9).train()
    again = make_loop(checkpoint=checkpoint)
    again.ways = Ways(pack=True)
    again.train(resume=True)
    assert not again.ways.pack
