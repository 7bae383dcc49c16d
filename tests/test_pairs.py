"""Every ordered pair of methods, trained; `docs/pairs.md` is the table, and a change in it shows up in its own diff.

Write the table anew with `python tests/test_pairs.py`.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from headstart.catalog import entries
from headstart.errors import MethodError
from method_runs import make_loop, same, train, weights

TABLE = Path(__file__).resolve().parent.parent / "docs" / "pairs.md"
NAMES = sorted(entries("methods"))
KINDS = ("text", "image")

INTRODUCTION = """# Which methods go together

Every ordered pair of methods, trained on a tiny model by `tests/test_pairs.py`, which also keeps this page: *works*
means that both orders train to the same weights; *order matters* that the two orders end with different weights (the
one listed first acts first); *idle* that a run reports one of the two as having changed nothing beside the other;
*refused* that the pair stops before training. The sentences that a user sees stand below each table.

"""


def outcome(a: str, b: str, kind: str) -> tuple[str, str]:
    """('works' | 'order matters' | 'idle' | 'refused', the sentence that a user sees)."""
    ends = []
    for names in ((a, b), (b, a)):
        try:
            result = train(make_loop(names, kind, epochs=1))
        except MethodError as error:
            return "refused", str(error)
        if result.notes:
            return "idle", "; ".join(result.notes)
        ends.append(weights(result))
    return ("works" if same(*ends) else "order matters"), ""


def render() -> str:
    """The whole page."""
    text = INTRODUCTION
    for kind in KINDS:
        found = {(a, b): outcome(a, b, kind) for a, b in itertools.combinations(NAMES, 2)}
        text += f"## {kind.capitalize()}\n\n| | {' | '.join(NAMES)} |\n|{' --- |' * (len(NAMES) + 1)}\n"
        for row in NAMES:
            cells = ["" if row == column else found[tuple(sorted((row, column)))][0] for column in NAMES]  # type: ignore[index]
            text += f"| **{row}** | {' | '.join(cells)} |\n"
        sentences = [f"* **{a} + {b}**: {why}" for (a, b), (what, why) in found.items() if why]
        text += "\n" + "\n".join(sentences) + "\n\n"
    return text.rstrip() + "\n"


def test_the_committed_table_is_what_happens() -> None:
    assert TABLE.read_text(encoding="utf-8") == render(), "run `python tests/test_pairs.py` and look at the diff"


@pytest.mark.parametrize("names", [("lora", "adapter"), ("fgm", "pgd"), ("freeze", "lora")])
def test_a_refusal_names_both_sides_and_the_way_out(names: tuple[str, str]) -> None:
    what, sentence = outcome(*names, "text")
    assert what == "refused"
    assert all(f"'{name}'" in sentence for name in names)
    assert "two stages" in sentence


if __name__ == "__main__":
    TABLE.write_text(render(), encoding="utf-8")
