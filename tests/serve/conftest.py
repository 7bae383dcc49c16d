"""Bundles of every kind, small and with random weights, for the tests of the server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import headstart as hs

NEEDED = ("starlette", "uvicorn", "prometheus_client", "python_multipart", "httpx")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]

TEXTS = ["where is my parcel", "refund please", "password lost"]
KINDS = ["delivery", "refund", "login"]
ROWS = [f"{text} {word}" for text in TEXTS for word in ("today", "please", "help", "still", "now", "again")]
LABELS = [kind for kind in KINDS for _ in range(6)]


@pytest.fixture(scope="session")
def text_bundle(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = hs.fit(ROWS, LABELS, backbone=f"file:{tiny_bert}", methods=["freeze:top=1"], epochs=3)
    return model.save(tmp_path_factory.mktemp("served") / "tickets")


@pytest.fixture(scope="session")
def other_bundle(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same task learned otherwise: a second version of the model."""
    model = hs.fit(ROWS, LABELS, backbone=f"file:{tiny_bert}", methods=["freeze:probe"])
    return model.save(tmp_path_factory.mktemp("served") / "tickets-again")


@pytest.fixture(scope="session")
def number_bundle(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    lines = [f"{row},{len(row)},{row.count('e')}.5" for row in ROWS]
    (folder / "rows.csv").write_text("\n".join(["text,length,es", *lines]) + "\n", encoding="utf-8")
    model = hs.fit(
        folder / "rows.csv", label=["length", "es"], task="regression", backbone=f"file:{tiny_bert}",
        methods=["freeze:top=1"], epochs=1,
    )  # fmt: skip
    return model.save(folder / "lengths")


@pytest.fixture(scope="session")
def double_bundle(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks on one backbone."""
    many = [["late"] if "parcel" in row else ["money", "refund"] if "refund" in row else [] for row in ROWS]
    both = {
        "intent": {"data": {"train": (ROWS, LABELS)}},
        "tags": {"data": {"train": (ROWS, many)}, "task": {"name": "multilabel"}},
    }
    model = hs.fit(tasks=both, backbone=f"file:{tiny_bert}", methods=["freeze:probe"])
    return model.save(tmp_path_factory.mktemp("served") / "double")


@pytest.fixture(scope="session")
def image_bundle(hub: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from serving import picture

    labels = ["light", "dark"] * 8
    pictures = [picture(seed) for seed in range(16)]
    model = hs.fit(pictures, labels, backbone=f"file:{hub('vit')}", methods=["freeze:probe"])
    return model.save(tmp_path_factory.mktemp("served") / "shades")


@pytest.fixture(scope="session")
def audio_bundle(hub: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("soxr")
    from serving import sound

    root = tmp_path_factory.mktemp("tones")
    for seed in range(16):
        folder = root / ("low" if seed % 2 else "high")
        folder.mkdir(exist_ok=True)
        (folder / f"{seed}.wav").write_bytes(sound(seed, 0.25 + 0.02 * seed))
    model = hs.fit(root, backbone=f"file:{hub('wav2vec2')}", methods=["freeze:probe"])
    return model.save(tmp_path_factory.mktemp("served") / "tones")


@pytest.fixture(scope="session")
def tenants(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of several tasks and ranks on one backbone, by name."""
    pytest.importorskip("peft")
    from tenancy import KINDS, stirred
    from tenancy import TEXTS as asked

    root = tmp_path_factory.mktemp("tenants")
    found = {}
    for seed, (name, kind) in enumerate(KINDS.items()):
        model = hs.fit(
            asked * 3, kind["labels"] * 3, backbone=f"file:{tiny_bert}", methods=[kind["method"]], epochs=1,
            task=kind.get("task"),
        )  # fmt: skip
        found[name] = stirred(model, seed).save(root / name)
    return found


@pytest.fixture(scope="session")
def apart(tenants: dict[str, Path]) -> dict[str, hs.Bundle]:
    return {name: hs.load(folder) for name, folder in tenants.items()}


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for this machine that signs itself."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
               "-keyout", str(key), "-out", str(cert)]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl cannot make a certificate here")
    return cert, key
