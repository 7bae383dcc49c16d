"""Small files for the tests of the data room."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.spec import Spec


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """write_csv(rows, header=..., name=...) -> path."""

    def write(
        rows: Sequence[Sequence[Any]],
        header: Sequence[str] = ("text", "label"),
        name: str = "train.csv",
        **options: Any,
    ) -> Path:
        path = tmp_path / name
        with path.open("w", encoding=options.pop("encoding", "utf-8"), newline="") as file:
            writer = csv.writer(file, **options)
            writer.writerow(header)
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def write_text(tmp_path: Path) -> Callable[..., Path]:
    """write_text(text or bytes, name) -> path."""

    def write(content: str | bytes, name: str = "train.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """pictures({"cats": 3, "dogs": 2}) -> a folder of different random pictures, one subfolder a class."""

    def make(counts: dict[str, int], root: Path | str = "pictures", size: int = 16, suffix: str = ".png") -> Path:
        folder = tmp_path / root
        rng = np.random.default_rng(abs(hash(str(root))) % 1000)
        for name, count in counts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{number:03d}{suffix}")
        return folder

    return make


@pytest.fixture
def spec() -> Callable[..., Spec]:
    """spec(train=path, ...) with keys of the data section; task= and seed= beside them."""

    def make(*, task: str | None = None, seed: int = 0, **data: Any) -> Spec:
        data = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
        record: dict[str, Any] = {"data": data, "training": {"seed": seed}}
        if task:
            record["task"] = {"name": task}
        return Spec.make(record)

    return make


@pytest.fixture
def rows() -> Callable[..., list[list[str]]]:
    """rows(ham=20, spam=20) -> that many different texts of each class, interleaved."""

    def make(**counts: int) -> list[list[str]]:
        made = [[f"message number {at} about {name}", name] for name, count in counts.items() for at in range(count)]
        return sorted(made, key=lambda row: row[0])

    return make
