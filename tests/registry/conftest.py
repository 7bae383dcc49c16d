"""Small bundles of one model, good and bad."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import headstart as hs
from ticket_rows import EXTRA, write_rows

collect_ignore_glob = [] if find_spec("mlflow") and find_spec("sqlalchemy") else ["test_*.py"]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training and test rows, and training rows whose refunds are called logins and the other way round."""
    folder = tmp_path_factory.mktemp("rows")
    other = {"login": "refund", "refund": "login"}
    return {
        "train": write_rows(folder / "train.csv", EXTRA[:4]),
        "swapped": write_rows(folder / "swapped.csv", EXTRA[:4], lambda label: other.get(label, label)),
        "test": write_rows(folder / "test.csv", EXTRA[4:]),
    }


@pytest.fixture(scope="session")
def made(tiny_bert: Path, rows: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Fit a bundle on a file of rows."""

    def make(train: Path, test: Path | None = rows["test"], **asked: object) -> Path:
        folder = tmp_path_factory.mktemp("bundle") / "run"
        hs.fit(
            train, test=test, text="text", label="intent", backbone=f"file:{tiny_bert}", methods=["freeze:top=1"],
            epochs=4, out=folder, track="none", **{"learning_rate": 1e-2, **asked},
        )  # fmt: skip
        return folder

    return make


@pytest.fixture(scope="session")
def good(made: Callable[..., Path], rows: dict[str, Path]) -> Path:
    """A bundle that learned the right labels."""
    return made(rows["train"])


@pytest.fixture(scope="session")
def again(made: Callable[..., Path], rows: dict[str, Path]) -> Path:
    """The same with another seed."""
    return made(rows["train"], seed=1)


@pytest.fixture(scope="session")
def bad(made: Callable[..., Path], rows: dict[str, Path]) -> Path:
    """A bundle that takes refunds for logins and logins for refunds."""
    return made(rows["swapped"])
