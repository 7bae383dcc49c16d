"""What a server must not do: open what a request names, show its insides, log what clients say, serve other sites."""

from __future__ import annotations

import asyncio
import base64
import builtins
import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from headstart.serve import inputs, lane, served
from headstart.serve.limits import Limits
from headstart.serve.refusals import Refused
from serving import Client, ask, encoded, picture, serving, sound

NOT_OPENED = "paths and addresses are not opened"


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_no_path_that_a_request_names_is_opened(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real picture or sound lies at the path, so that opening it would give an answer."""
    bundle = request.getfixturevalue(f"{kind}_bundle")
    there = tmp_path / f"secret.{'png' if kind == 'image' else 'wav'}"
    there.write_bytes(encoded(picture(1)) if kind == "image" else sound(1))
    opened: list[str] = []
    original = builtins.open

    def watching(file: Any, *args: Any, **more: Any) -> Any:
        opened.append(str(file))
        return original(file, *args, **more)

    async def test(client: Client) -> None:
        monkeypatch.setattr(builtins, "open", watching)
        monkeypatch.setattr(io, "open", watching)
        for path in (str(there), f"file://{there}", "/etc/passwd", "../../etc/passwd", os.path.relpath(there)):
            packed = base64.b64encode(path.encode()).decode()
            for row in (path, {"path": path}, {kind: path}, {"b64": path}, {"b64": packed}, {kind: {"path": path}},
                        {"bytes": path}, {kind: {"b64": packed, "path": path}}):  # fmt: skip
                response = await client.post("/predict/model", json={"rows": [row]})
                assert response.status_code == 400, (row, response.text)
                assert path not in response.text
            for options in ({"files": [("file", (None, path))]}, {"files": [("file", (path, path.encode()))]},
                            {"content": path, "headers": {"content-type": "application/octet-stream"}}):  # fmt: skip
                assert (await client.post("/predict/model", **options)).status_code == 400
            tensor: dict[str, Any] = {"name": kind, "shape": [1], "datatype": "BYTES"}
            for data in (path, packed):
                body = {"inputs": [{**tensor, "data": [data]}]}
                assert (await client.post("/v2/models/model/infer", json=body)).status_code == 400
            raw = struct.pack("<I", len(path)) + path.encode()
            head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}).encode()
            headers = {"inference-header-content-length": str(len(head))}
            assert (await client.post("/v2/models/model/infer", content=head + raw, headers=headers)).status_code == 400
            for verb in ("load", "unload"):
                response = await client.post(f"/v2/repository/models/{path.replace('/', '%2F')}/{verb}")
                assert response.status_code == 404
        response = await client.post("/predict/model", json=[str(there)])
        assert NOT_OPENED in response.json()["error"]
        monkeypatch.undo()

    ask({"model": bundle}, test)
    assert not [path for path in opened if "secret" in path or "passwd" in path]


def test_a_text_that_is_a_path_is_just_a_text(text_bundle: Path) -> None:
    async def test(client: Client) -> None:
        assert len(await client.predict("tickets", ["/etc/passwd"])) == 1

    ask({"tickets": text_bundle}, test)


def test_the_checks_take_no_string_for_a_picture_or_sound() -> None:
    for kind in ("image", "audio"):
        with pytest.raises(Refused, match="paths are not opened"):
            inputs.check(kind, ["/etc/passwd"], Limits())
    with pytest.raises(Refused) as refused:
        inputs.check("video", [b"a"], Limits())
    assert refused.value.status == 501


def test_pictures_are_measured_before_they_are_decoded() -> None:
    """A header that promises a hundred thousand pixels a side: nothing of them is ever made."""
    small = encoded(np.zeros((4, 4, 3), np.uint8))
    place = small.index(b"IHDR") + 4
    for side, sentence in (
        (5000, "5000 x 5000 pixels, more than"),
        (100_000, "a picture of more than the 1000000 pixels"),
    ):
        header = struct.pack(">II", side, side) + small[place + 8 : place + 13]
        check = struct.pack(">I", zlib.crc32(b"IHDR" + header))
        bomb = small[:place] + header + check + small[place + 17 :]
        with pytest.raises(Refused, match=sentence) as refused:
            inputs.check("image", [bomb], Limits(pixels=1_000_000))
        assert refused.value.status == 413
    assert inputs.check("image", [small], Limits()) == [small]


@pytest.mark.parametrize("kind", ["PPM", "PCX", "ICO", "EPS"])
def test_rare_formats_of_pictures_are_not_read(kind: str) -> None:
    with pytest.raises(Refused, match="not a picture that can be read; expected PNG, JPEG"):
        inputs.check("image", [encoded(picture(1), kind)], Limits())


def test_sounds_are_measured_before_they_are_decoded() -> None:
    for data, sentence in (
        (sound(1, 3.0), "3 seconds of sound, more than the 2 allowed"),
        (b"RIFF", "not a sound that can be read"),
        (b"", "a sound without any bytes"),
    ):
        with pytest.raises(Refused, match=sentence):
            inputs.check("audio", [data], Limits(seconds=2.0))


def test_an_error_that_nobody_expected_shows_nothing(text_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, rows: Any) -> Any:
        raise RuntimeError("secret words of a client at /srv/models/tickets")

    monkeypatch.setattr(lane.Lane, "_run", broken)

    async def test(client: Client) -> None:
        response = await client.post("/predict/tickets", json=["hello"], headers={"x-request-id": "abc-1"})
        assert response.status_code == 500
        assert response.json() == {
            "error": "the server failed on this request; its log says more under the id abc-1",
            "request_id": "abc-1",
        }
        (record,) = client.logged("error")
        assert record["kind"] == "RuntimeError" and record["id"] == "abc-1"
        assert record["at"][-1].endswith(" broken") and not any("secret" in line for line in client.lines)

    ask({"tickets": text_bundle}, test)


def test_the_log_holds_no_inputs_unless_asked(text_bundle: Path) -> None:
    async def test(client: Client) -> None:
        response = await client.post("/predict/tickets?task=private", json=["a private matter"])
        assert response.status_code == 400
        response = await client.post("/predict/tickets", json=["a private matter"])
        await client.post("/predict/private", json=["a"], headers={"x-request-id": "not\tgood"})
        record = client.logged("request")[1]
        assert record["id"] == response.headers["x-request-id"]
        assert (record["route"], record["model"], record["status"], record["rows"], record["method"]) == (
            "/predict/{name}", "tickets", 200, 1, "POST",
        )  # fmt: skip
        assert record["ms"] > 0 and record["time"].endswith("Z")
        assert not any("private" in line for line in client.lines)

    ask({"tickets": text_bundle}, test)

    async def told(client: Client) -> None:
        await client.post("/predict/tickets", json=["a private matter"])
        assert client.logged("request")[0]["inputs"] == ["a private matter"]

    ask({"tickets": text_bundle}, told, content=True)


def test_pages_of_other_sites_are_not_answered(text_bundle: Path) -> None:
    async def test(client: Client) -> None:
        for headers, status in (
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"origin": "http://127.0.0.1:9999"}, 403),
            ({"origin": "http://127.0.0.1:8000"}, 200),
            ({"host": "evil.example"}, 421),
            ({"host": "evil.example:8000", "origin": "http://evil.example:8000"}, 421),
            ({"host": "localhost:8000"}, 200),
            ({"host": "[::1]:8000"}, 200),
            ({"host": "127.0.0.1"}, 200),
        ):
            response = await client.post("/predict/tickets", json=["hello"], headers=headers)
            assert response.status_code == status, headers
        response = await client.get("/v2/health/live")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"

    ask({"tickets": text_bundle}, test)


def test_the_page_may_run_only_what_is_in_it(text_bundle: Path) -> None:
    async def test(client: Client) -> None:
        response = await client.get("/")
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "sha256-" in policy
        assert "http://" not in response.text and "https://" not in response.text
        assert " style=" not in response.text and " onclick=" not in response.text

    ask({"tickets": text_bundle}, test)


def test_addresses_and_methods_that_are_not_there(text_bundle: Path) -> None:
    async def test(client: Client) -> None:
        for method, path, status in (
            ("GET", "/nothing", 404), ("GET", "/predict/tickets", 405), ("GET", "/predict/../../etc/passwd", 404),
            ("POST", "/", 405), ("GET", "/v2/", 404), ("DELETE", "/v2/models/tickets", 405),
        ):  # fmt: skip
            response = await client.http.request(method, path)
            assert response.status_code == status and set(response.json()) == {"error", "request_id"}
        response = await client.post("/v1/nothing")
        assert response.json()["error"]["type"] == "invalid_request_error"

    ask({"tickets": text_bundle}, test)


def test_a_request_is_given_up_at_its_deadline(text_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: Any, rows: Any) -> Any:
        await asyncio.sleep(3600)

    monkeypatch.setattr(served.Served, "answers", never)

    async def test(client: Client) -> None:
        response = await client.post("/predict/tickets", json=["a"], headers={"x-timeout-ms": "20"})
        assert response.status_code == 504
        assert response.json()["error"] == ("no answer within 0.02 seconds: send fewer rows, or try again later")
        response = await client.post("/predict/tickets", json=["a"], headers={"x-timeout-ms": "999999999"})
        assert response.json()["error"].startswith("no answer within 0.05 seconds")

    ask({"tickets": text_bundle}, test, Limits(timeout=0.05))


def test_a_full_queue_says_when_to_come_back(text_bundle: Path) -> None:
    async def test(client: Client) -> None:
        model = client.server.models.get("tickets")
        with model.batcher.room(6, model):
            response = await client.post("/predict/tickets", json=["a", "b", "c"])
            assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
            assert response.json()["error"] == "too many rows are waiting; try again in 1 second"
        assert len(await client.predict("tickets", ["a", "b", "c"])) == 3

    ask({"tickets": text_bundle}, test, Limits(rows=4, queue_rows=8))


def test_a_client_that_hangs_up_leaves_nothing_behind(text_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = asyncio.Event()
    cancelled: list[bool] = []

    async def slow(self: Any, rows: Any) -> Any:
        started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    monkeypatch.setattr(served.Served, "answers", slow)

    async def main() -> None:
        async with serving({"tickets": text_bundle}) as client:
            transport: Any = client.http._transport
            assert isinstance(transport, httpx.ASGITransport)
            messages = [{"type": "http.request", "body": b'["a"]', "more_body": False}, {"type": "http.disconnect"}]

            async def receive() -> Any:
                if len(messages) == 1:
                    await started.wait()
                return messages.pop(0)

            async def send(message: Any) -> None: ...

            scope = {
                "type": "http", "method": "POST", "path": "/predict/tickets", "raw_path": b"/predict/tickets",
                "query_string": b"", "headers": [(b"host", b"localhost")], "scheme": "http", "root_path": "",
                "server": ("localhost", 8000), "client": ("127.0.0.1", 1), "http_version": "1.1", "asgi": {},
            }  # fmt: skip
            await transport.app(scope, receive, send)
            assert cancelled == [True]
            assert client.logged("request")[-1]["status"] == 499

    asyncio.run(main())
