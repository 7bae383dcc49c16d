"""Every ordered pair of methods, trained. `methods/pairs.json` holds what happened and `docs/pairs.md` shows it to
people; a change shows up in their own diff.

Write both anew with `python tests/test_pairs.py`.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import headstart.methods
from headstart.catalog import entries
from headstart.errors import MethodError
from method_runs import make_loop, make_method, same, train, weights

RECORD = Path(headstart.methods.__file__).with_name("pairs.json")
TABLE = Path(__file__).resolve().parent.parent / "docs" / "pairs.md"
NAMES = sorted(name for name, entry in entries("methods").items() if entry.source == "headstart")
KINDS = ("text", "image")
MARKS = {"works": "·", "order matters": "⇄", "idle": "idle", "refused": "✗"}

INTRODUCTION = """# Which methods go together

Every pair of methods was trained in both orders on a tiny model by `tests/test_pairs.py`, which also keeps this page.
`headstart methods NAME` shows the row of one method.

| mark | meaning |
| --- | --- |
| · | both work together, and the order in which they are listed makes no difference |
| ⇄ | both work together; the order makes a difference: the one listed first acts first |
| idle | the run goes on, and reports that one of the two changes nothing beside the other |
| ✗ | refused before anything is trained |

What is not marked · is explained below each table, in the words that a user sees. Two methods that refuse each
other can follow one another as [stages](fit.md).

"""


def outcome(a: str, b: str, kind: str) -> tuple[str, str]:
    """('works' | 'order matters' | 'idle' | 'refused', the sentence that a user sees)."""
    known = [why for name in (a, b) if (why := alone(name, kind)[1])]
    ends = []
    for names in ((a, b), (b, a)):
        try:
            result = train(make_loop(names, kind, epochs=_epochs(*names)))
        except MethodError as error:
            return "refused", str(error)
        idle = [note for note in result.notes if "changed nothing" in note and note not in known]
        if idle:
            return "idle", "; ".join(idle)
        ends.append(weights(result))
    return ("works" if same(*ends) else "order matters"), ""


def _epochs(*names: str) -> int:
    """As many as it takes until each of them can have acted; one that cannot say when gets two."""
    return max(1 + min(make_method(name).first_epoch(), 1) for name in names)


@cache
def alone(name: str, kind: str) -> tuple[str, str]:
    """What a method does on this kind of input without company, as `outcome` says it, and the sentence."""
    try:
        notes = train(make_loop([name], kind, epochs=_epochs(name))).notes
    except MethodError as error:
        return "refused", str(error)
    idle = [note for note in notes if "changed nothing" in note]
    return ("idle", idle[0]) if idle else ("works", "")


@cache
def measure(kind: str) -> dict[str, Any]:
    """What happened on one kind of input: the methods that work there, those that do not and why, and every pair."""
    by_itself = {name: alone(name, kind) for name in NAMES}
    refused = {name: why for name, (what, why) in by_itself.items() if what == "refused"}
    usable = [name for name in NAMES if name not in refused]
    found = {f"{a}+{b}": outcome(a, b, kind) for a, b in itertools.combinations(usable, 2)}
    return {
        "methods": usable,
        "refused": refused,
        "idle": {name: why for name, (what, why) in by_itself.items() if what == "idle"},
        "pairs": {pair: list(what) for pair, what in found.items() if what[0] != "works"},
    }


def render(record: Mapping[str, Any]) -> str:
    """The page."""
    text = INTRODUCTION
    for kind, found in record.items():
        names, pairs = found["methods"], found["pairs"]
        text += f"## {kind.capitalize()}\n\n| | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}\n"
        for row in names:
            cells = []
            for column in names:
                what = pairs.get("+".join(sorted((row, column))), ["works"])[0]
                cells.append("" if row == column else MARKS[what])
            text += f"| **{row}** | {' | '.join(cells)} |\n"
        if found["refused"]:
            text += f"\nNot used on {kind}:\n\n"
            text += "".join(f"* **{name}**: {why}\n" for name, why in found["refused"].items())
        if found["idle"]:
            text += "\nChanges nothing by itself in the tiny network for it:\n\n"
            text += "".join(f"* **{name}**: {why}\n" for name, why in found["idle"].items())
        text += "\nPairs that do not simply work:\n\n" + "\n".join(_explained(pairs)) + "\n\n"
    return text.rstrip() + "\n"


def _explained(pairs: Mapping[str, tuple[str, str]]) -> list[str]:
    """One line for each pair that does not simply work; pairs whose order matters share one."""
    by_order = [pair.replace("+", " + ") for pair, (what, _) in pairs.items() if what == "order matters"]
    lines = [f"* order matters: {'; '.join(by_order)}"] if by_order else []
    grouped: dict[str, list[str]] = defaultdict(list)
    for pair, (what, why) in pairs.items():
        if what != "order matters":
            grouped[why].append(pair.replace("+", " + "))
    return lines + [f"* **{'; '.join(found)}**: {why}" for why, found in grouped.items()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_record_is_what_happens(kind: str) -> None:
    committed = json.loads(RECORD.read_text(encoding="utf-8"))[kind]
    assert committed == measure(kind), "run `python tests/test_pairs.py` and look at the diff"


def test_the_page_shows_the_record() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert tuple(record) == KINDS
    assert TABLE.read_text(encoding="utf-8") == render(record)


@pytest.mark.parametrize("names", [("lora", "adapter"), ("fgm", "pgd"), ("freeze", "lora")])
def test_a_refusal_names_both_sides_and_the_way_out(names: tuple[str, str]) -> None:
    what, sentence = outcome(*names, "text")
    assert what == "refused"
    assert all(f"'{name}'" in sentence for name in names)
    assert "two stages" in sentence


if __name__ == "__main__":
    found = {kind: measure(kind) for kind in KINDS}
    RECORD.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    TABLE.write_text(render(found), encoding="utf-8")
