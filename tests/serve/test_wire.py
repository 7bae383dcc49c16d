"""Bytes of a connection: what is not a body has a bound, and bodies do not count towards it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from headstart.serve.wire import MOST, Wire

Ask = Callable[[bytes], Awaitable[bytes]]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with how long the body was."""
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": f"{size:8}".encode()})


def connected(test: Callable[[Ask], Awaitable[None]]) -> None:
    """Run `test(ask)`: ask sends bytes over a new connection and gives what came until it was closed."""

    async def main() -> None:
        config = uvicorn.Config(echo, ws="none", lifespan="off", log_config=None)
        config.load()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Wire(config, ServerState(), {}), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def ask(data: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for start in range(0, len(data), 10_000):
                    writer.write(data[start : start + 10_000])
                    await writer.drain()
                    await asyncio.sleep(0)
                return await asyncio.wait_for(reader.read(), 30)
            finally:
                writer.close()

        async with server:
            await test(ask)

    asyncio.run(main())


HEAD = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
MUCH = b"x: " + b"a" * 5000 + b"\r\n"


@pytest.mark.parametrize("sent", [
    HEAD + MUCH * 40,
    b"GET /" + b"a" * 200_000,
    HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + MUCH * 40,
])  # fmt: skip
def test_endless_headers_are_ended(sent: bytes) -> None:
    async def test(ask: Ask) -> None:
        try:
            found = await ask(sent)
        except ConnectionError:  # closed while we still sent
            return
        assert b"Too many headers." in found

    connected(test)


@pytest.mark.parametrize("sent", [
    HEAD + b"content-length: 300000\r\n\r\n" + b"a" * 300_000,
    HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 30_000 + b"0\r\n\r\n",
    HEAD + b"x: " + b"a" * (MOST - 10_000) + b"\r\ncontent-length: 3\r\n\r\nabc",
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc" * 2000) + HEAD + b"content-length: 0\r\n\r\n",
])  # fmt: skip
def test_long_bodies_and_many_requests_are_not(sent: bytes) -> None:
    async def test(ask: Ask) -> None:
        found = await ask(sent)
        assert found.startswith(b"HTTP/1.1 200") and b"Too many" not in found
        assert found.count(b"HTTP/1.1 200") == sent.count(b"POST")

    connected(test)
