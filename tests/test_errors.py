"""The exception tree: exit statuses, the table in the docstring, suggestions, and the extras that messages name."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import headstart
from headstart import errors
from headstart.errors import BadInput, HeadstartError, Interrupted, MissingExtra, ProofError, did_you_mean

ROOT = Path(headstart.__file__).parent
TREE = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, BaseException)]


def test_everything_raised_on_purpose_has_one_base_and_an_exit_status() -> None:
    assert all(issubclass(cls, HeadstartError) for cls in TREE)
    expected = {"HeadstartError": 1, "ProofError": 1, "GateError": 1, "Interrupted": 130}
    assert {cls.__name__: cls.exit_code for cls in TREE} == {
        cls.__name__: expected.get(cls.__name__, 2) for cls in TREE
    }


def test_bad_input_is_what_has_status_two() -> None:
    assert {cls for cls in TREE if cls.exit_code == 2} == {cls for cls in TREE if issubclass(cls, BadInput)}
    assert not issubclass(ProofError, BadInput) and not issubclass(Interrupted, BadInput)


def test_the_docstrings_table_is_the_tree() -> None:
    told = {}
    branch: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^(    [ │├└─]*)([A-Z]\w+)(?:\s+exit status (\d+))?", line)
        if match:
            depth, name = len(match[1]), match[2]
            branch = [(d, n) for d, n in branch if d < depth]
            told[name] = (branch[-1][1] if branch else None, match[3])
            branch.append((depth, name))
    assert set(told) == {cls.__name__ for cls in TREE}
    for cls in TREE:
        parent, status = told[cls.__name__]
        if parent is not None:
            assert cls.__base__.__name__ == parent
        if status is not None:
            assert cls.exit_code == int(status)


def test_every_class_says_what_it_is_for() -> None:
    assert all(cls.__doc__ and cls.__doc__.strip() for cls in TREE)


def test_missing_extra_gives_the_exact_command() -> None:
    error = MissingExtra("peft", "lora", "method 'lora'")
    assert str(error) == "method 'lora' needs peft, which is not installed: pip install 'headstart[lora]'"
    assert isinstance(error, BadInput)


def test_every_extra_that_a_message_names_is_declared() -> None:
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {}
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("MissingExtra"):
                given_extra = node.args[1]
                if isinstance(given_extra, ast.Constant):
                    named[f"{path.name}:{node.lineno}"] = given_extra.value
        for extra in re.findall(r"headstart\[([a-z]+)\]", text):
            named[f"{path.name}: text"] = extra
    assert named, "the scan finds calls"
    assert {place: extra for place, extra in named.items() if extra not in declared} == {}


@pytest.mark.parametrize(
    ("received", "known", "phrase"),
    [
        ("trian", ["train", "test"], "did you mean 'train'?"),
        ("colour", ["color", "shape"], "did you mean 'color'?"),
        ("zzz", ["b", "a"], "known: a, b"),
        ("x", [], "none is known"),
    ],
)
def test_did_you_mean(received: str, known: list[str], phrase: str) -> None:
    assert did_you_mean(received, known) == phrase
    assert did_you_mean(received, iter(known)) == phrase


@given(st.lists(st.text(min_size=3, max_size=8), min_size=1, max_size=5, unique=True), st.data())
def test_did_you_mean_finds_a_name_that_lost_nothing(known: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(known))
    assert did_you_mean(name, known) == f"did you mean '{name}'?"
