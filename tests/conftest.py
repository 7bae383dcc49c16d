"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hub_folders import hub  # noqa: F401
from sample_texts import TICKETS, WORDS

# How long a draw takes says how busy the machine is, not whether the code is right.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

REPO = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, read in place; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("HEADSTART_DATA", REPO.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real data sets are not at {root} (set HEADSTART_DATA)")
    return root


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block BERT with random weights in the hub's folder layout, for tests that need no knowledge."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tickets(tmp_path: Path) -> dict[str, Path]:
    """A small csv of three intents: train (60 rows), test (15), and a channel column."""
    import csv

    paths = {"train": tmp_path / "tickets.csv", "test": tmp_path / "tickets_test.csv"}
    extra = ["please", "today", "help", "now", "again", "still", "the", "a week", "two", "three"]
    for split, count in (("train", 5), ("test", 2)):
        with paths[split].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "intent", "channel"])
            for intent, texts in TICKETS.items():
                for place, text in enumerate(texts):
                    for number in range(count):
                        word = extra[number] if split == "train" else extra[5 + number]
                        writer.writerow([f"{text} {word}", intent, "email" if (place + number) % 2 else "chat"])
    return paths


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry without models: its database takes seconds to make."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from headstart.registry.place import Registry

    folder = tmp_path_factory.mktemp("empty") / "registry"
    Registry(folder, create=True)
    return folder


@pytest.fixture
def registry(empty_registry: Path, tmp_path: Path) -> Path:
    """An empty registry of the test's own, which shows that a registry can be moved."""
    shutil.copytree(empty_registry, tmp_path / "registry")
    return tmp_path / "registry"
