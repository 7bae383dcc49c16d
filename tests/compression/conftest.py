"""A small finished model of texts with its rows beside it, shared by the tests of what makes it smaller."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from smaller import KINDS, WORDS
from traced import remembered

import headstart as hs


@pytest.fixture(scope="session")
def made(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three kinds of texts, with its rows beside it."""
    root = tmp_path_factory.mktemp("smaller")
    rows = [f"{text} {word},{kind}" for kind, text in KINDS.items() for word in WORDS]
    for name in ("train", "test"):
        (root / f"{name}.csv").write_text("\n".join(["text,kind", *rows]) + "\n", encoding="utf-8")
    hs.fit(
        root / "train.csv", test=root / "test.csv", label="kind", backbone=f"file:{tiny_bert}",
        methods=["freeze:probe"], out=root / "bundle",
    )  # fmt: skip
    return root


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """Equal networks are traced once a session."""
    from headstart.compression import graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", remembered(graph.trace))
        yield
