"""The verbs of a registry as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headstart.cli import run


def last(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(autouse=True)
def here(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder where the registry is, as a user would be."""
    monkeypatch.chdir(registry.parent)


def test_from_the_first_champion_to_a_rollback(
    good: Path, again: Path, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["register", str(good), "--name", "tickets", "--alias", "champion", "--tag", "by=a=b", "--json"]) == 0
    first = last(capsys)
    assert (first["version"], first["aliases"], first["tags"]) == (1, ["champion"], {"by": "a=b"})
    assert run(["register", str(bad), "--name", "tickets", "--alias", "challenger"]) == 0
    assert "done: version 2 of 'tickets', challenger, in the registry 'registry'" in capsys.readouterr().err
    assert run(["promote", "tickets", "--json"]) == 1
    captured = capsys.readouterr()
    refused = json.loads(captured.out)
    assert refused["promoted"] is False and refused["judgement"]["measured"][0]["loss"] > 0.2
    measured = refused["judgement"]["measured"][0]
    assert f"champion {measured['champion']:.4f}, challenger {measured['challenger']:.4f}" in captured.err
    assert captured.err.splitlines()[-1].startswith(
        "error: version 2 of 'tickets' does not replace version 1: accuracy"
    )
    assert run(["promote", "tickets", "--force", "the labels were wrong", "--json"]) == 0
    assert last(capsys)["forced"] == "the labels were wrong"
    assert run(["register", str(again), "--name", "tickets"]) == 0
    assert run(["promote", "tickets", "3", "--slice", "channel", "--latency-ms", "1e9"]) == 0
    assert "done: version 3 of 'tickets' is the champion, in place of version 2" in capsys.readouterr().err
    assert run(["rollback", "tickets", "--json"]) == 0
    assert last(capsys) == {"name": "tickets", "version": 2, "before": 3, "forced": None, "judgement": None}
    assert run(["models"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["name", "version", "alias", "metric", "size", "registered", "(UTC)"]
    assert [line.split()[:3] for line in table[1:]] == [
        ["tickets", "3", "-"],
        ["tickets", "2", "champion"],
        ["tickets", "1", "-"],
    ]
    assert f"accuracy {first['value']:.4f} [{first['low']:.4f}, {first['high']:.4f}] (test)" in table[3]
    assert run(["models", "tickets", "--json"]) == 0
    assert [entry["version"] for entry in last(capsys)] == [3, 2, 1]


def test_the_first_champion_has_nobody_to_be_measured_against(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["register", str(good), "--name", "tickets"]) == 0
    assert run(["promote", "tickets", "1"]) == 0
    assert "is the champion, the first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["register", "nothing", "--name", "a"], "there is no bundle at 'nothing'"),
        (["register", "nothing", "--name", "a", "--tag", "b"], "expected --tag key=value, received 'b'"),
        (["register", "nothing", "--name", "a b"], "'a b' cannot be the name of a model"),
        (["register", "nothing", "--name", "a", "--alias", "best"], "expected --alias champion or challenger"),
        (["models", "a"], "there is no model 'a' in 'registry': none is known"),
        (["models", "--registry", "no"], "there is no registry at 'no'"),
        (["promote", "a", "--gate", "2"], "expected a gate from 0 to 1 or a percentage"),
        (["promote", "a"], "there is no model 'a'"),
        (["rollback", "a"], "there is no model 'a'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence_and_status_two(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1 and captured.out == ""
