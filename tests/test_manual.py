"""What `headstart methods NAME` says, and that it says it without importing a method."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from headstart import manual as module
from headstart.catalog import entries
from headstart.cli import run
from headstart.errors import SpecError
from headstart.manual import benchmark_line, describe, lines

BUILT_IN = sorted(name for name, entry in entries("methods").items() if entry.source == "headstart")


@pytest.mark.parametrize("name", BUILT_IN)
def test_options_are_those_of_the_class(name: str) -> None:
    cls = entries("methods")[name].load()
    assert [option["name"] for option in describe(name)["options"]] == [
        f.name for f in dataclasses.fields(cls) if f.init
    ]


def test_pairs_are_named_by_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "freeze"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"text: refused together with [^;\n]*\badapter, [^;\n]*\blora\b", text)
    assert "Options:" in text and re.search(r"\n    probe: bool = False\n", text)
    assert run(["methods", "cutmix"]) == 0
    assert "text: not used: 'cutmix' cannot be used here" in capsys.readouterr().out
    assert run(["methods", "freeze", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "lora" in found["pairs"]["image"]["refused"]


def test_benchmark_rows_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "arm": "lora:r=8", "set": "banking77", "labels": "10 a class", "metric": "accuracy", "value": 86.54,
        "plain": 85.0, "against": "plain", "difference": 1.54, "sd": 0.31, "seeds": 3,
        "script": "benchmarks/methods/x.py",
    }  # fmt: skip
    wanted = (
        "lora:r=8 on banking77, 10 a class: accuracy 86.5 against 85.0 with plain, difference +1.5 ± 0.3 over 3 seeds "
        "[benchmarks/methods/x.py]"
    )
    assert benchmark_line(row) == wanted
    assert "over 1 seed [" in benchmark_line({**row, "sd": None, "seeds": 1})
    monkeypatch.setattr(module, "_record", lambda name: {"lora": [row]} if name == "benchmarks" else {})
    assert wanted in "\n".join(lines(describe("lora")))
    assert "nothing yet" in "\n".join(lines(describe("ema")))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'lora'"):
        describe("lorra")
