"""What is known of one method: its docstring, its options, what it goes together with, what it brought on real data.

Read from the source and from two records beside the methods, without importing any of them: `pairs.json`, kept by
`tests/test_pairs.py`, and `benchmarks.json`, kept by `benchmarks/methods/collect.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.catalog import entry_of

METHODS = Path(__file__).parent / "methods"
WORDS = {
    "refused": "refused together with",
    "order matters": "the order matters with",
    "idle": "one of both changes nothing beside",
}


def describe(name: str) -> dict[str, Any]:
    """Plain JSON: name, summary, source, doc, options (name, type, default), pairs by input, benchmarks.

    Raises SpecError with the nearest known name.
    """
    entry = entry_of("methods", name)
    return {
        **entry.to_json(),
        "doc": entry.doc,
        "options": [dict(option) for option in entry.options],
        "pairs": _pairs(name),
        "benchmarks": _record("benchmarks").get(name, []),
    }


def _record(name: str) -> dict[str, Any]:
    path = METHODS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _pairs(name: str) -> dict[str, Any]:
    """For each kind of input: the other methods by what happens beside them, or why this one cannot be used there."""
    found: dict[str, Any] = {}
    for kind, record in _record("pairs").items():
        if name in record["refused"]:
            found[kind] = {"not used": record["refused"][name]}
        elif name in record["methods"]:
            others: dict[str, list[str]] = {what: [] for what in WORDS}
            for pair, (what, _) in record["pairs"].items():
                if name in pair.split("+"):
                    others[what].append(next(other for other in pair.split("+") if other != name))
            found[kind] = others
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    text = [f"{found['name']} [{found['source']}]", "", found["doc"].strip(), "", "Options:"]
    for option in found["options"]:
        text.append(f"    {option['name']}: {option['type']} = {option['default']}")
    if not found["options"]:
        text.append("    none")
    if found["pairs"]:
        text += ["", "Together with other methods (works with all that are not named):"]
    for kind, others in found["pairs"].items():
        if "not used" in others:
            text.append(f"    {kind}: not used: {others['not used']}")
            continue
        said = [f"{WORDS[what]} {', '.join(names)}" for what, names in others.items() if names]
        text.append(f"    {kind}: {'; '.join(said) or 'no exceptions'}")
    text += ["", "Measured:"]
    for row in found["benchmarks"]:
        text.append(f"    {benchmark_line(row)}")
    if not found["benchmarks"]:
        text.append("    nothing yet")
    return text


def benchmark_line(row: Mapping[str, Any]) -> str:
    """One row of `benchmarks.json` as a sentence."""
    spread = f" ± {row['sd']:.1f}" if row.get("sd") is not None else ""
    return (
        f"{row['arm']} on {row['set']}, {row['labels']}: {row['metric']} {row['value']:.1f} against "
        f"{row['plain']:.1f} with {row['against']}, difference {row['difference']:+.1f}{spread} over {row['seeds']} "
        f"{'seed' if row['seeds'] == 1 else 'seeds'} [{row['script']}]"
    )
