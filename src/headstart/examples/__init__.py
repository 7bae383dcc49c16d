"""Small data that comes with the package, so that a first run needs no download.

    import headstart as hs
    hs.fit(hs.examples.path("support_tickets") / "train.csv")
    hs.examples.write_digits("digits")

`support_tickets` was written for this project (its README says what that means for the figures);
`write_digits` writes the handwritten digits of the UCI repository, which scikit-learn ships, as picture folders.
"""

from __future__ import annotations

from pathlib import Path

from headstart.errors import DataError, did_you_mean
from headstart.examples.digits import write_digits

__all__ = ["names", "path", "write_digits"]

_ROOT = Path(__file__).parent


def names() -> list[str]:
    """The example data sets that lie in the package."""
    return sorted(entry.parent.name for entry in _ROOT.glob("*/train.csv"))


def path(name: str) -> Path:
    """The folder of an example data set, such as `support_tickets` (train.csv, test.csv, new.csv, README.md).

    Raises DataError with the nearest known name.
    """
    if name not in names():
        raise DataError(f"no example data set is called '{name}': {did_you_mean(name, names())}")
    return _ROOT / name
