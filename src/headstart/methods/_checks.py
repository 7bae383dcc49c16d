"""Checks of options, shared by the methods. Each raises MethodError: expected, received, the way out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from headstart.errors import MethodError, did_you_mean


def refuse(option: str, expected: str, received: Any, way_out: str) -> MethodError:
    """The error for one option; `option` is written as on the command line, such as 'lora:r'."""
    return MethodError(f"expected {option} to be {expected}, received {received!r}; {way_out}")


def whole(option: str, value: Any, low: int, way_out: str, high: int | None = None) -> None:
    """A whole number in [low, high]."""
    fits = type(value) is not bool and isinstance(value, Integral)
    if not fits or value < low or (high is not None and value > high):
        bounds = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
        raise refuse(option, bounds, value, way_out)


def number(
    option: str, value: Any, low: float, way_out: str, high: float = float("inf"), *, above: bool = False
) -> None:
    """A finite number in [low, high], or in (low, high] with `above`."""
    if not _finite(value) or value < low or value > high or (above and value == low):
        start = f"above {low:g}" if above else f"of at least {low:g}"
        end = "" if high == float("inf") else f" and at most {high:g}"
        raise refuse(option, f"a number {start}{end}", value, way_out)


def _finite(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, Real) and math.isfinite(value)


def flag(option: str, value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise refuse(option, "true or false", value, f"write {option}=true, or leave it out")


def choice(option: str, value: Any, known: Sequence[str]) -> None:
    """One of the known words."""
    if value not in known:
        listed = " or ".join(f"'{name}'" for name in known)
        raise refuse(option, listed, value, did_you_mean(str(value), known))
