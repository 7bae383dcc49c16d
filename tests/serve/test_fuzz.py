"""A few hundred of the fuzzer's requests: everything odd is refused with one sentence, and nothing is left behind."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest

from headstart.serve.limits import Limits
from serving import Client, ask

REPO = Path(__file__).resolve().parents[2]
TEXTS = ["where is my parcel", "refund please", "naïve 日本語", "a" * 400]


@pytest.fixture(scope="module")
def fuzz() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz", REPO / "benchmarks" / "serve" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def taken_apart(data: bytes) -> tuple[str, str, dict[str, str], bytes]:
    """Method, path, headers and body of a request's bytes; the length is what it is, as a client library sends it."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    kept = {name: value for name, value in headers.items() if name not in ("content-length", "connection", "host")}
    return method, path, kept, body


@pytest.mark.parametrize("seed", range(3))
def test_odd_requests_are_answered_or_refused(
    fuzz: Any, text_bundle: Path, image_bundle: Path, double_bundle: Path, seed: int
) -> None:
    async def test(client: Client) -> None:
        before = await client.predict("tickets", TEXTS)
        draws = random.Random(seed)
        models = [(face.name, face.modality) for face in client.server.models]
        statuses = set()
        for _ in range(150):
            method, path, headers, body = taken_apart(fuzz.request(models, TEXTS, draws)[0])
            response = await client.http.request(method, path, headers=headers, content=body)
            assert response.status_code < 500, (response.text, method, path, headers, body)
            statuses.add(response.status_code)
            if response.status_code >= 400:
                assert "error" in response.json() and "Traceback" not in response.text
        assert {200, 400} <= statuses
        assert all(served.waiting == 0 for served in client.server.models.loaded) and not client.server.models._users
        # The texts may have been seen together or apart, as they came, and then differ by rounding.
        after = await client.predict("tickets", TEXTS)
        for row, was in zip(after, before, strict=True):
            assert row.pop("prediction") == was.pop("prediction")
            assert row == pytest.approx(was, rel=1e-4)

    ask({"tickets": text_bundle, "shades": image_bundle, "double": double_bundle}, test, Limits(rows=64))
