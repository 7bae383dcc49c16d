"""Copies of bundles: whole, proven, or not there."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from headstart.bundle import bundle as bundles
from headstart.errors import BundleError, ProofError
from headstart.registry import copies


def test_a_copy_holds_what_belongs_to_the_bundle_and_nothing_else(good: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(good, source)
    (source / "stages").mkdir(exist_ok=True)
    (source / "stages" / "large.bin").write_bytes(b"x")
    (source / "notes.txt").write_text("mine")
    copies.copy(source, tmp_path / "to" / "copy")
    found = {p.relative_to(tmp_path / "to" / "copy").as_posix() for p in (tmp_path / "to" / "copy").rglob("*")}
    assert {"bundle.json", "model.safetensors", "report.json", "report.html", "README.md"} <= found
    assert "notes.txt" not in found and "stages" not in found
    assert bundles.load(tmp_path / "to" / "copy").report is not None
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["copy"]
    whole = sum(path.stat().st_size for path in (tmp_path / "to" / "copy").rglob("*") if path.is_file())
    assert copies.size(tmp_path / "to" / "copy") == whole


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "probe/../../outside", "a\\..\\b", "."])
def test_a_bundle_cannot_name_files_outside_of_its_folder(good: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(good, source)
    record = json.loads((source / "bundle.json").read_text())
    record["files"][name] = {"sha256": "0" * 64, "size": 1}
    (source / "bundle.json").write_text(json.dumps(record))
    (tmp_path / "outside").write_text("x")
    with pytest.raises(BundleError, match="names a file outside of its folder"):
        copies.copy(source, tmp_path / "to" / "copy")
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("damage", ["altered", "cut short", "missing", "other answers"])
def test_what_does_not_prove_itself_leaves_nothing(good: Path, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    source = tmp_path / "source"
    shutil.copytree(good, source)
    weights = source / "model.safetensors"
    if damage == "altered":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "missing":
        weights.unlink()
    else:
        save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
        record = json.loads((source / "bundle.json").read_text())
        record["files"]["model.safetensors"] = bundles._hash(weights)
        (source / "bundle.json").write_text(json.dumps(record))
    with pytest.raises(ProofError if damage == "other answers" else BundleError):
        copies.copy(source, tmp_path / "to" / "copy")
    assert list((tmp_path / "to").iterdir()) == []


def test_sweep_removes_what_was_not_registered_and_only_that(tmp_path: Path) -> None:
    for name in ("known", "orphan", ".part-half", "somebody-elses"):
        (tmp_path / name).mkdir()
    for name in ("known", "orphan", "half"):
        (tmp_path / f".pending-{name}").touch()
    copies.sweep(tmp_path, {"known"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["known", "somebody-elses"]
    copies.sweep(tmp_path / "nowhere", {"known"})


def test_pending_takes_away_what_failed(tmp_path: Path) -> None:
    with copies.pending(tmp_path / "good"):
        (tmp_path / "good").mkdir()
    with pytest.raises(KeyError), copies.pending(tmp_path / "bad"):
        (tmp_path / "bad").mkdir()
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []

    def enter() -> None:
        with copies.locked(tmp_path / "new" / ".lock"):
            inside.append(1)
            assert len(inside) == 1
            time.sleep(0.02)
            inside.pop()

    workers = [threading.Thread(target=enter) for _ in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert inside == []
