"""Write docs/methods.md from the docstrings of the methods: `python docs/make_methods.py`."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

from headstart.catalog import Entry, entries

PAGE = Path(__file__).parent / "methods.md"

INTRODUCTION = """# Methods

What `--method` takes, and `hs.methods` in Python. This page is written from the docstrings by `docs/make_methods.py`;
`headstart methods` lists the same, with those that other packages add. [Which go together](pairs.md) is a page of its
own, and [choosing](choosing.md) says which to try.

"""


def render() -> str:
    """The whole page, built-in methods only: what else is installed differs from machine to machine."""
    listed = [entry for entry in entries("methods").values() if entry.source == "headstart"]
    lines = [f"* [{entry.name}](#{entry.name}): {_escaped(entry.summary)}" for entry in listed]
    return INTRODUCTION + "\n".join(lines) + "\n\n" + "".join(map(_section, listed)).rstrip() + "\n"


def _section(entry: Entry) -> str:
    text = f"## {entry.name}\n\n{_signature(entry)}\n\n"
    for paragraph in entry.doc.split("\n\n"):
        plain = " ".join(paragraph.split())
        head = re.match(r"(Equation|Source|Requires|Shapes|Neighbours|Example|Defaults): ", plain)
        if head:
            text += f"**{head[1]}:** {_escaped(plain[head.end() :])}\n\n"
        elif paragraph.startswith("    "):
            indented = "\n".join(line[4:] for line in paragraph.splitlines())
            text += f"```\n{indented}\n```\n\n"
        else:
            text += f"{_escaped(plain)}\n\n"
    return text


def _signature(entry: Entry) -> str:
    cls = entry.load()
    options = []
    for item in fields(cls):
        if item.init:
            options.append(item.name if item.default is MISSING else f"{item.name}={item.default!r}")
    return f"`hs.methods.{cls.__name__}({', '.join(options)})`"


def _escaped(text: str) -> str:
    """Outside code, Markdown's own marks are to be read as they are."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_<>|#~])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
