"""Finds plug-ins: a file's name is the public name, nothing keeps a list.

Built-in plug-ins are the modules of `headstart.modalities`, `headstart.tasks` and `headstart.methods` whose names do
not start with an underscore. Third parties add entry points in the groups `headstart.methods`, `headstart.tasks`,
`headstart.modalities`. Listing reads docstrings from the source, so it imports no heavy library.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headstart.errors import SpecError, did_you_mean

KINDS = ("modalities", "tasks", "methods")


@dataclass(frozen=True)
class Entry:
    """One plug-in: its public name, its class as `module:Class`, its docstring and where it comes from.

    options: of a built-in dataclass, each with its name, type and default as they are written.
    """

    kind: str
    name: str
    target: str
    doc: str
    source: str
    options: tuple[tuple[tuple[str, str], ...], ...] = ()

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return self.doc.strip().split("\n", 1)[0]

    def load(self) -> type[Any]:
        """Import the class."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]

    def to_json(self) -> dict[str, str]:
        """`name`, `summary` and `source`, as the listing verbs print them."""
        return {"name": self.name, "summary": self.summary, "source": self.source}


def _base_names(node: ast.ClassDef) -> set[str]:
    return {base.id for base in node.bases if isinstance(base, ast.Name)}


@cache
def entries(kind: str) -> Mapping[str, Entry]:
    """All plug-ins of a kind ('modalities', 'tasks' or 'methods') by name."""
    found: dict[str, Entry] = {}
    for path in sorted((Path(__file__).parent / kind).glob("*.py")):
        if path.stem.startswith("_"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        plug = next(
            (n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_") and _plugs(n, kind)),
            None,
        )
        if plug is not None:
            found[path.stem] = Entry(
                kind,
                path.stem,
                f"headstart.{kind}.{path.stem}:{plug.name}",
                ast.get_docstring(plug) or "",
                "headstart",
                _options(plug),
            )
    for point in entry_points(group=f"headstart.{kind}"):
        if point.name not in found:
            source = point.dist.name if point.dist else point.module
            found[point.name] = Entry(kind, point.name, point.value, _foreign_doc(point.value), source)
    return found


def _options(node: ast.ClassDef) -> tuple[tuple[tuple[str, str], ...], ...]:
    """The fields of a dataclass, read from its source."""
    found = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.endswith("_"):
            kind = ast.unparse(item.annotation)
            if not kind.startswith("ClassVar"):
                default = ast.unparse(item.value) if item.value is not None else "required"
                found.append((("name", item.target.id), ("type", kind), ("default", default)))
    return tuple(found)


def _plugs(node: ast.ClassDef, kind: str) -> bool:
    """A plug-in class derives from a name of its kind's face: Modality, Task, Method (or a private cousin of it)."""
    face = {"modalities": "Modality", "tasks": "Task", "methods": "Method"}[kind]
    return any(name.endswith(face) for name in _base_names(node))


def _foreign_doc(target: str) -> str:
    """The docstring of a third party's class, read from its source without importing it; empty when it cannot be."""
    module, _, attribute = target.partition(":")
    try:
        spec = find_spec(module)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            return ""
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except Exception:  # a package that is broken must not take the listing of all others with it
        return ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return ast.get_docstring(node) or ""
    return ""


def entry_of(kind: str, name: str) -> Entry:
    """The entry with this public name; raises SpecError with the nearest known one."""
    known = entries(kind)
    if name not in known:
        raise SpecError(f"no {_singular(kind)} is called '{name}': {did_you_mean(name, known)}")
    return known[name]


def find(kind: str, name: str) -> type[Any]:
    """The class of a plug-in by its public name.

    Raises SpecError with the nearest known name, or naming the third party whose plug-in cannot be imported.
    """
    entry = entry_of(kind, name)
    try:
        return entry.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        if entry.source == "headstart":
            raise
        raise SpecError(
            f"the {_singular(kind)} '{name}' of {entry.source} cannot be imported ({error}): "
            f"update or uninstall {entry.source}"
        ) from error


def _singular(kind: str) -> str:
    return {"modalities": "modality", "tasks": "task", "methods": "method"}[kind]


def name_of(kind: str, cls: type[Any]) -> str:
    """The public name of a plug-in class; raises SpecError when no entry leads to it."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    for entry in entries(kind).values():
        if entry.target == target:
            return entry.name
    raise SpecError(
        f"{cls.__qualname__} is not in the catalogue, so a saved spec could not name it: "
        f"add an entry point in the group 'headstart.{kind}' that leads to '{target}'"
    )
