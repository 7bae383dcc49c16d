"""A server that is killed while it answers: clients see broken connections only, and it starts again as before."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import headstart as hs
from headstart.registry.place import Registry
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


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before it has looked", "while it loads", "when both took over"])
def test_a_server_killed_while_champions_change_starts_again_with_those_that_are(
    registry: Path, text_bundle: Path, other_bundle: Path, moment: str
) -> None:
    names = ("moods", "tickets")
    for name in names:
        hs.register(text_bundle, name, alias="champion", registry=registry)
        hs.register(other_bundle, name, registry=registry)
    poll = "60" if moment == "before it has looked" else "0.1"
    right = {
        folder: dict(zip(TEXTS, hs.load(folder).predict(TEXTS), strict=True)) for folder in (text_bundle, other_bundle)
    }
    with process("--registry", str(registry), "--poll", poll) as (server, url):
        hs.promote("tickets", 2, registry=registry, force="for the test")
        hs.promote("moods", 2, registry=registry, force="for the test")
        if moment == "when both took over":
            waiting = set(names)
            while waiting:
                now = httpx.post(f"{url}/predict/{min(waiting)}", json=TEXTS[:1], timeout=60)
                assert now.status_code == 200
                if now.json()["version"] == hs.load(other_bundle).record["lineage"]["id"][:12]:
                    waiting.remove(min(waiting))
            hs.rollback("moods", registry=registry)
        server.kill()
        server.wait(60)
    there = Registry(registry)
    champions = {"moods": 1 if moment == "when both took over" else 2, "tickets": 2}
    assert there.champions() == champions
    for version in there.versions():
        assert hs.load(there.fetch(version), report=False)
    with process("--registry", str(registry)) as (server, url):
        states = {each["name"]: each["state"] for each in httpx.post(f"{url}/v2/repository/index").json()}
        assert states == dict.fromkeys(names, "READY")
        for name, version in champions.items():
            found = httpx.post(f"{url}/predict/{name}", json=TEXTS, timeout=60).json()
            assert found["version"] == there.version(name, version).bundle[:12]
            expected = right[(text_bundle, other_bundle)[version - 1]]
            assert [row["prediction"] for row in found["predictions"]] == [expected[text] for text in TEXTS]


def same(found: list[tuple[str, int, Any]], expected: dict[str, Any]) -> None:
    for name, status, rows in found:
        assert status == 200
        for row, right in zip(rows, expected[name], strict=True):
            assert row["prediction"] == right["prediction"]
            assert list(row.values())[1:] == pytest.approx(list(right.values())[1:], abs=1e-5)
