"""Tensors kept for later: the same numbers from a file, out of memory until read, gone with their owner."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from headstart import aside as room
from headstart.aside import aside, passing


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def mapped(tensor: Tensor) -> bool:
    """Whether a tensor's memory belongs to a file."""
    place = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *rest = line.split(None, 5)
        low, high = (int(part, 16) for part in span.split("-"))
        if low <= place < high:
            return ".weights" in rest[-1]
    return False


def tensors() -> dict[str, Tensor]:
    wide = torch.randn(40, 64)
    return {
        "whole": torch.randn(300, 50), "half": torch.randn(8, 3).bfloat16(), "part": wide[:, 10:20],
        "image": torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last), "count": torch.tensor(7),
    }  # fmt: skip


@pytest.mark.parametrize("few", [0, room.FEW])
def test_copies_are_equal_and_their_own(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FEW", few)
    given = tensors()
    before = {name: value.clone() for name, value in given.items()}
    kept = aside(given)
    for value in given.values():
        value.zero_()
    for name, value in before.items():
        assert torch.equal(kept[name], value)
        assert kept[name].dtype == value.dtype
        assert kept[name].stride() == value.stride()
    again = aside(kept)
    kept["whole"] += 1
    assert torch.equal(kept["whole"], before["whole"] + 1)
    assert torch.equal(again["whole"], before["whole"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_large_ones_wait_in_a_file_that_is_gone_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(mapped(value) for value in aside(tensors()).values())
    monkeypatch.setattr(room, "FEW", 0)
    assert all(mapped(value) for value in aside(tensors()).values())
    assert not list(folder.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_part_of_a_tensor_does_not_bring_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FEW", 0)
    wide = torch.zeros(1000, 1000)
    assert aside({"row": wide[0]})["row"].untyped_storage().nbytes() == 4000


MEMORY = """
import sys, torch
from headstart import aside as room

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

room.FEW = int(sys.argv[1])
large = torch.ones(2**24)
room.aside({"small": torch.ones(3)})
before = held()
kept = room.aside({"large": large})
waiting = held() - before
assert kept["large"].sum() == 2**24
print(int(waiting), int(held() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("few", "waits"), [(0, True), (2**40, False)])
def test_what_waits_takes_memory_once_it_is_read(few: int, waits: bool) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, str(few)], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    waiting, read = (int(part) for part in done.stdout.split())
    assert (waiting < 16) is waits
    assert read >= 60


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_folder_leaves_them_in_memory(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise error

    monkeypatch.setattr(room, "FEW", 0)
    monkeypatch.setattr(torch, "save", refuse)
    given = tensors()
    kept = aside(given)
    given["whole"].zero_()
    assert kept["whole"].any()
    assert not list(folder.iterdir())


def test_a_folder_with_little_room_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[object] = []
    monkeypatch.setattr(torch, "save", lambda *given: saved.append(given))
    monkeypatch.setattr(room, "FEW", 0)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=8000))
    assert aside({"large": torch.zeros(1000)})["large"].shape == (1000,)
    assert not saved


def test_another_device_gets_them_as_they_are() -> None:
    kept = aside({"weight": torch.empty(5, 5, device="meta")})
    assert kept["weight"].device.type == "meta"


def test_a_file_that_cannot_go_yet_goes_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    later: list[object] = []
    monkeypatch.setattr(Path, "unlink", _refused)
    monkeypatch.setattr(room.atexit, "register", lambda *given, **named: later.append(given[0].__self__))
    with passing(".bin") as path:
        path.write_bytes(b"kept")
    assert later == [path]


def _refused(path: Path, missing_ok: bool = False) -> None:
    raise PermissionError(path)
