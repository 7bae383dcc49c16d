"""A server that is killed while it answers: clients see broken connections only, and it starts again as before."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import process
from tenancy import TEXTS


def test_a_killed_server_gives_no_wrong_answer_and_starts_again(tenants: dict[str, Path]) -> None:
    folders = [str(tenants[name]) for name in ("wide", "narrow", "probe")]
    names, draws = ("wide", "narrow", "probe"), random.Random(0)
    before = {name: sorted(path.read_bytes() for path in tenants[name].rglob("*") if path.is_file()) for name in names}
    expected: dict[str, Any] = {}
    found: list[tuple[str, int, Any]] = []
    broken: list[str] = []

    def ask(url: str, number: int) -> None:
        for turn in range(10_000):
            name = names[(number + turn) % len(names)]
            try:
                response = httpx.post(f"{url}/predict/{name}", json=TEXTS, timeout=60)
            except httpx.TransportError as error:
                broken.append(type(error).__name__)
                return
            found.append((name, response.status_code, response.json()["predictions"]))

    with process(*folders) as (server, url):
        for name in names:
            expected[name] = httpx.post(f"{url}/predict/{name}", json=TEXTS, timeout=60).json()["predictions"]
        clients = [threading.Thread(target=ask, args=(url, number)) for number in range(4)]
        for client in clients:
            client.start()
        time.sleep(draws.uniform(0.05, 1.0))
        server.kill()
        for client in clients:
            client.join(60)
        assert len(broken) == len(clients) and not any(client.is_alive() for client in clients)
    same(found, expected)
    after = {name: sorted(path.read_bytes() for path in tenants[name].rglob("*") if path.is_file()) for name in names}
    assert after == before
    with process(*folders) as (server, url):
        again = [(name, httpx.post(f"{url}/predict/{name}", json=TEXTS, timeout=60)) for name in names]
        same([(name, response.status_code, response.json()["predictions"]) for name, response in again], expected)


def same(found: list[tuple[str, int, Any]], expected: dict[str, Any]) -> None:
    for name, status, rows in found:
        assert status == 200
        for row, right in zip(rows, expected[name], strict=True):
            assert row["prediction"] == right["prediction"]
            assert list(row.values())[1:] == pytest.approx(list(right.values())[1:], abs=1e-5)
