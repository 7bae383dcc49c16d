"""The exception tree. Catch `HeadstartError` to catch everything Headstart raises on purpose.

    HeadstartError            exit status 1   something went wrong that is not your input
    ├── ProofError            exit status 1   a step changed the model's answers when it must not
    │   └── GateError         exit status 1   a model was measured and is not good enough to take over
    └── BadInput              exit status 2   something you gave cannot be used; the message says what to change
        ├── SpecError         a key, value or combination in the spec
        ├── DataError         a file, a column or a row
        ├── BackboneError     a backbone that cannot be found, read or trusted
        │   └── OutOfReach    its weights are not on this machine and the hub cannot be reached
        ├── MethodError       a method's option, or a conflict between methods
        ├── BundleError       a bundle that is missing, cut short, altered or from another format
        ├── RegistryError     a registry, or a name, version or alias in it
        └── MissingExtra      an optional library that is not installed
    Interrupted               exit status 130 stopped by the user; the state is saved

Every message says what was expected, what was received and, where it can be known, the corrected value.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class HeadstartError(Exception):
    """Base of everything raised on purpose."""

    exit_code = 1


class ProofError(HeadstartError):
    """A save, load, merge or export changed the model's answers."""


class GateError(ProofError):
    """A model was measured and is not good enough to take over. figures: what was measured, as plain JSON."""

    def __init__(self, message: str, figures: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.figures = figures


class BadInput(HeadstartError):
    """Something the user gave cannot be used."""

    exit_code = 2


class SpecError(BadInput):
    """A key, value or combination in the spec."""


class DataError(BadInput):
    """A file, a column or a row."""


class BackboneError(BadInput):
    """A backbone that cannot be found, read or trusted."""


class OutOfReach(BackboneError):
    """A backbone whose weights are not on this machine while the hub cannot be reached."""


class MethodError(BadInput):
    """A method's option, or a conflict between methods."""


class BundleError(BadInput):
    """A bundle that is missing, cut short, altered or from another format."""


class RegistryError(BadInput):
    """A registry, or a name, version or alias in it."""


class MissingExtra(BadInput):
    """An optional library that is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {library}, which is not installed: pip install 'headstart[{extra}]'")


class Interrupted(HeadstartError):
    """Stopped by the user; what was learned is saved and `--resume` goes on from there."""

    exit_code = 130


def did_you_mean(received: str, known: Iterable[str]) -> str:
    """A closing phrase for an error: the nearest known name, else all of them."""
    names = sorted(known)
    near = get_close_matches(received, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(names)}" if names else "none is known"
