"""What the sections of a spec share: strict fields, dotted keys, and problems said in one sentence."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from headstart.errors import SpecError, did_you_mean


class Section(BaseModel):
    """A part of a spec: frozen, without unknown keys and without infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def plain(value: Any) -> Any:
    """Paths and dates as text; everything else that JSON does not know is refused."""
    if isinstance(value, Path | datetime.date | datetime.time):
        return str(value)
    raise SpecError(f"expected plain values in a spec, received {type(value).__name__}: {value!r}")


def plant(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Put a value at a path of nested tables. Raises SpecError where the path runs through a value."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise SpecError(f"'{'.'.join(path)}' cannot be set: '{key}' is a value, not a section")
    tree[path[-1]] = value


def _sections(cls: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    for name, info in cls.model_fields.items():
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[name] = kind
    return found


def sentence(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem as one sentence, with did-you-mean for unknown keys."""
    problem = error.errors(include_url=False)[0]
    path = [str(part) for part in problem["loc"]]
    where = ".".join(path)
    if problem["type"] == "extra_forbidden":
        section: type[BaseModel] = root
        for part in path[:-1]:
            section = _sections(section).get(part, section)
        known = list(section.model_fields)
        owners = [f"{name}.{path[-1]}" for name, kind in _sections(root).items() if path[-1] in kind.model_fields]
        if len(path) == 1 and owners:
            return f"unknown key '{where}': did you mean '{owners[0]}'?"
        return f"unknown key '{where}': {did_you_mean(path[-1], known)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not path or problem["type"] == "value_error":
        return message
    return f"{where}: {message[0].lower()}{message[1:]}, received {problem.get('input')!r}"
