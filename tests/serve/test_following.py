"""A server that follows a registry: who serves changes while requests go on."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import headstart as hs
from headstart.cli import run
from headstart.errors import RegistryError
from headstart.registry.place import Registry
from headstart.serve import following
from headstart.serve.following import Following
from serving import Client, ask, process

TEXT = "where is my parcel"


@pytest.fixture
def two(registry: Path, text_bundle: Path, other_bundle: Path) -> Path:
    """Versions 1 and 2 of tickets; the first is the champion."""
    hs.register(text_bundle, "tickets", alias="champion", registry=registry)
    hs.register(other_bundle, "tickets", registry=registry)
    return registry


def follow(registry: Path, test: Callable[[Client, Following], Awaitable[Any]], **options: Any) -> None:
    """Run a test against a server that follows; it looks when the test says so, and once a minute."""

    async def main(client: Client) -> None:
        made = Following(str(registry), client.server.models, client.server.log, **{"poll": 60.0, **options})
        await made.start()
        try:
            await test(client, made)
        finally:
            made.stop()

    ask({}, main)


def versions(registry: Path) -> dict[int, str]:
    """What the server calls each version."""
    return {version.version: version.bundle[:12] for version in hs.models("tickets", registry=registry)}


def damage(registry: Path, version: int, name: str = "tickets") -> None:
    there = Registry(registry)
    (there.fetch(there.version(name, version)) / "model.safetensors").write_bytes(b"x")


def test_a_promotion_takes_over_without_a_dropped_request(two: Path) -> None:
    called, place = versions(two), Registry(two)

    async def test(client: Client, followed: Following) -> None:
        seen: list[str] = []
        stop = False

        async def keep_asking() -> None:
            while not stop:
                response = await client.post("/predict/tickets", json=[TEXT])
                assert response.status_code == 200, response.text
                seen.append(response.json()["version"])

        clients = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for version in (2, 1, 2):
            place.point("tickets", "champion", version)
            await followed.look()
            assert followed.live == {"tickets": version}
            assert (await client.get("/v2/models/tickets")).json()["versions"] == [called[version]]
            await asyncio.sleep(0.02)
        stop = True
        await asyncio.gather(*clients)
        assert set(seen) == set(called.values())
        loaded = [(entry["model"], entry["champion"], entry["version"]) for entry in client.logged("loaded")]
        assert loaded == [("tickets", version, called[version]) for version in (1, 2, 1, 2)]

    follow(two, test)


def test_it_looks_by_itself(two: Path) -> None:
    async def test(client: Client, followed: Following) -> None:
        Registry(two).point("tickets", "champion", 2)
        async with asyncio.timeout(60):
            while followed.live != {"tickets": 2}:
                await asyncio.sleep(0.01)

    follow(two, test, poll=0.02)


def test_a_champion_that_cannot_be_loaded_leaves_the_old_one_serving_and_the_log_says_so(two: Path) -> None:
    called, place = versions(two), Registry(two)
    damage(two, 2)

    async def test(client: Client, followed: Following) -> None:
        place.point("tickets", "champion", 2)
        for _ in range(3):
            await followed.look()
        (entry,) = client.logged("load failed")
        assert (entry["model"], entry["champion"], entry["goes_on"]) == ("tickets", 2, 1)
        assert "it was cut short or altered" in entry["reason"]
        response = await client.post("/predict/tickets", json=[TEXT])
        assert (response.status_code, response.json()["version"]) == (200, called[1])
        assert (await client.post("/v2/repository/models/tickets/load")).status_code == 200
        assert (await client.get("/v2/models/tickets")).json()["versions"] == [called[1]], "the old one, still"
        place.point("tickets", "champion", 1)
        await followed.look()
        assert followed.live == {"tickets": 1}

    follow(two, test)


def test_a_champion_that_could_not_be_loaded_is_tried_again_after_a_while(two: Path, other_bundle: Path) -> None:
    place = Registry(two)
    weights = place.fetch(place.version("tickets", 2)) / "model.safetensors"
    damage(two, 2)

    async def test(client: Client, followed: Following) -> None:
        place.point("tickets", "champion", 2)
        await followed.look()
        weights.write_bytes((other_bundle / "model.safetensors").read_bytes())
        await followed.look()
        assert followed.live == {"tickets": 1}, "not before its time"
        followed.retry = 0.0
        followed._failed["tickets"] = (2, time.monotonic())
        await followed.look()
        assert followed.live == {"tickets": 2}

    follow(two, test)
    assert following.RETRY >= 10


def test_models_come_and_go_with_their_champions(two: Path, text_bundle: Path) -> None:
    place = Registry(two)

    async def test(client: Client, followed: Following) -> None:
        assert client.server.models.names == ["tickets"]
        hs.register(text_bundle, "moods", registry=two)
        await followed.look()
        assert client.server.models.names == ["tickets"], "a version that is not the champion is not served"
        place.point("moods", "champion", 1)
        await followed.look()
        assert client.server.models.names == ["moods", "tickets"]
        assert len(await client.predict("moods", [TEXT])) == 1
        place.point("moods", "champion", None)
        await followed.look()
        assert (await client.post("/predict/moods", json=[TEXT])).status_code == 404
        assert [entry["model"] for entry in client.logged("unloaded")] == ["moods"]
        await client.server.models.unload("tickets")
        place.point("tickets", "champion", None)
        await followed.look()
        assert client.server.models.names == [] and client.server.models.folders == {}

    follow(two, test)


def test_one_broken_champion_does_not_keep_the_others_from_starting(two: Path, text_bundle: Path) -> None:
    hs.register(text_bundle, "moods", alias="champion", registry=two)
    damage(two, 1, "moods")

    async def test(client: Client, followed: Following) -> None:
        assert client.server.models.names == ["tickets"]
        response = await client.post("/predict/moods", json=[TEXT])
        assert (response.status_code, response.json()["error"]) == (503, "the model 'moods' is not loaded")
        (entry,) = client.logged("load failed")
        assert entry["model"] == "moods" and "goes_on" not in entry

    follow(two, test)


def test_while_the_registry_cannot_be_read_everything_goes_on(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(client: Client, followed: Following) -> None:
        def broken(*args: object, **asked: object) -> None:
            raise OSError("the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(followed._place.client, "search_registered_models", broken)  # type: ignore[union-attr]
            for _ in range(3):
                await followed.look()
            assert len(await client.predict("tickets", [TEXT])) == 1
        await followed.look()
        (entry,) = client.logged("registry not readable")
        assert "cannot be read: the disk is gone" in entry["reason"]
        assert len(client.logged("registry readable again")) == 1

    follow(two, test)


def test_a_place_in_the_registry_never_leads_outside_of_it(two: Path, text_bundle: Path) -> None:
    """Even if somebody writes another path into the database."""
    Registry(two).client.set_model_version_tag("tickets", "2", "headstart.place", str(text_bundle))

    async def test(client: Client, followed: Following) -> None:
        Registry(two).point("tickets", "champion", 2)
        await followed.look()
        assert followed.live == {"tickets": 1}
        assert "has no place in" in client.logged("load failed")[0]["reason"]

    follow(two, test)


def test_a_request_names_models_and_nothing_else(two: Path, text_bundle: Path) -> None:
    async def test(client: Client, followed: Following) -> None:
        for name in (str(text_bundle), "..%2Ftickets", "models%2Ftickets", "tickets%2F2"):
            response = await client.post(f"/v2/repository/models/{name}/load")
            assert response.status_code == 404
        body = {"parameters": {"place": str(text_bundle)}}
        assert (await client.post("/v2/repository/models/tickets/load", json=body)).status_code == 400
        assert client.server.models.names == ["tickets"] and followed.live == {"tickets": 1}

    follow(two, test)


def test_without_a_registry_it_does_not_start(tmp_path: Path) -> None:
    async def test(client: Client, followed: Following) -> None:
        raise AssertionError

    with pytest.raises(RegistryError, match="there is no registry at"):
        follow(tmp_path / "none", test)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "expected folders of bundles, or --registry"),
        (["run", "--registry", "there"], "expected folders of bundles, or --registry"),
        (["--registry", "there", "--name", "a"], "expected folders of bundles, or --registry"),
        (["--registry", "there", "--port", "0"], "there is no registry at 'there'"),
    ],
)
def test_what_cannot_be_followed_is_one_sentence_and_status_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1


@pytest.mark.slow
def test_the_command_follows_a_promotion_and_a_rollback(two: Path) -> None:
    called = versions(two)

    def served(url: str, version: int) -> None:
        while True:
            response = httpx.post(f"{url}/predict/tickets", json=[TEXT], timeout=60)
            assert response.status_code == 200
            if response.json()["version"] == called[version]:
                return
            time.sleep(0.05)

    with process("--registry", str(two), "--poll", "0.1") as (started, url):
        served(url, 1)
        hs.promote("tickets", 2, registry=two, force="for the test")
        served(url, 2)
        hs.rollback("tickets", registry=two)
        served(url, 1)
        started.send_signal(signal.SIGTERM)
        out, err = started.communicate(timeout=60)
    assert started.returncode == 0 and out == ""
    assert err.splitlines()[-1].endswith('"event": "stopped"}')
