"""Memory of the command line's process: kept, given back, left alone where the environment has said; rounds of gc."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest
import torch

from headstart import cli, heap

FREED = """
import ctypes, sys
from headstart import heap

if sys.argv[1] == "held":
    assert heap.hold()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
pages = lambda: int(open("/proc/self/statm").read().split()[1])
block = libc.malloc(20 * 2**20)
ctypes.memset(block, 1, 20 * 2**20)
before = pages()
libc.free(block)
print((before - pages()) * 4096 // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told")
@pytest.mark.parametrize(("how", "given_back"), [("held", False), ("usual", True)])
def test_freed_memory_stays_with_the_process(how: str, given_back: bool) -> None:
    done = subprocess.run([sys.executable, "-c", FREED, how], env=_unsaid(), capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert (int(done.stdout) > 10) is given_back


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_the_environment_says_goes_before(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: "1"})
    assert not heap.hold()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not heap.hold()


@pytest.mark.parametrize(("arguments", "settles"), [(["--version"], True), (["serve", "--help"], False)])
def test_the_command_line_settles_both_but_for_a_server(
    arguments: list[str], settles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    monkeypatch.setattr(heap, "hold", lambda: said.append("held"))
    monkeypatch.setattr(gc, "set_threshold", lambda *rounds: said.append(rounds))
    for own in (arguments, None):
        monkeypatch.setattr(sys, "argv", ["headstart", *arguments])
        with pytest.raises(SystemExit):
            cli.main(own)
    assert said == [heap.ROUNDS, "held"] * 2 * settles


@pytest.mark.parametrize("arguments", [["--version"], ["serve", "--help"]])
@pytest.mark.parametrize(
    ("said", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_of_the_command_line_wait_briefly_unless_told(
    said: dict[str, str], spins: str | None, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(said))
    monkeypatch.setattr(heap, "settle", lambda: None)
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert os.environ.get("GOMP_SPINCOUNT") == spins


KERNELS = """
import os, sys
from headstart import heap

if sys.argv[1] == "settled":
    heap.settle()
heap.few_kernels()
import torch
with torch.no_grad():
    for length in range(1, 201):
        torch.ops.mkldnn._linear_pointwise(torch.ones(length, 8), torch.ones(8, 8), None, "none", [], "")
    print("again")
    torch.ops.mkldnn._linear_pointwise(torch.ones(1, 8), torch.ones(8, 8), None, "none", [], "")
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize(
    ("how", "said", "kept"), [("settled", None, False), ("settled", "1024", True), ("", None, True)]
)
def test_few_kernels_are_kept_where_this_process_settled(how: str, said: str | None, kept: bool) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in (heap.KERNELS[0], heap.HANDLES[0])}
    told = {heap.KERNELS[0]: said} if said else {}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS, how], env={**clean, **told, "ONEDNN_VERBOSE": "profile_create"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    assert "cache_miss" in done.stdout.split("again")[0]
    assert ("cache_miss" in done.stdout.split("again")[1]) is not kept


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told")
def test_memory_is_given_back_when_asked() -> None:
    script = FREED.replace("libc.free(block)", "libc.free(block)\nheap.give_back()")
    done = subprocess.run([sys.executable, "-c", script, "held"], env=_unsaid(), capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert int(done.stdout) > 10


def test_nothing_is_given_back_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(heap.ctypes, "CDLL", asked.append)
    monkeypatch.setattr(sys, "platform", "darwin")
    heap.give_back()
    assert not asked


def _unsaid() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(heap.SAID)}
