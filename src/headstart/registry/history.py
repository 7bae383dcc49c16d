"""Who served before whom: the versions of a model that were champion, oldest first, as a text of numbers with commas.

The alias `champion` says who serves. This list is written before the alias when a version is promoted, and after it
when one is rolled back, which first ends it at the champion where it does not end there. So whatever moment a process
is killed at, what is below the champion in the list is right.
"""

from __future__ import annotations

from collections.abc import Collection

KEPT = 400
"""Versions that are remembered: MLflow keeps 5000 characters."""


def read(text: str) -> list[int]:
    """The versions, oldest first."""
    return [int(number) for number in text.split(",") if number.strip().isdigit()]


def write(versions: list[int]) -> str:
    """The text that `read` reads."""
    return ",".join(str(version) for version in versions[-KEPT:])


def up_to(versions: list[int], champion: int | None) -> list[int]:
    """The list with the champion at its end: what stands after it was rolled back, or was never done.

    Without a champion it is empty. One that is not in the list got its alias from somebody else, after all in it.
    """
    if champion is None:
        return []
    if champion not in versions:
        return [*versions, champion]
    return versions[: len(versions) - versions[::-1].index(champion)]


def before(versions: list[int], champion: int, there: Collection[int]) -> int | None:
    """The version that served before the champion, of those that are still there; None where there was none."""
    below = up_to(versions, champion)[:-1]
    return next((version for version in reversed(below) if version in there and version != champion), None)
