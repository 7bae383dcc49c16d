"""A server inside the test's own process, and a client that asks it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from headstart.serve.app import make_app
from headstart.serve.keys import Ring
from headstart.serve.limits import Limits
from headstart.serve.logs import Log
from headstart.serve.metrics import Metrics
from headstart.serve.models import Models
from headstart.serve.run import LOOPBACK
from headstart.serve.state import Server

ROOT = Path(__file__).resolve().parents[1]


class Client:
    """Asks the application without a network. lines: what it logged."""

    def __init__(self, server: Server, http: httpx.AsyncClient, lines: list[str]) -> None:
        self.server, self.http, self.lines = server, http, lines

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.get(path, **options)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.post(path, **options)

    async def predict(self, name: str, rows: Any) -> list[dict[str, Any]]:
        response = await self.post(f"/predict/{name}", json={"rows": rows})
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()["predictions"]
        return found

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [record for record in map(json.loads, self.lines) if record["event"] == event]


@asynccontextmanager
async def serving(
    folders: Mapping[str, Path],
    limits: Limits | None = None,
    keys: Path | None = None,
    *,
    content: bool = False,
    memory: int | None = None,
    base_url: str = "http://127.0.0.1:8000",
) -> AsyncIterator[Client]:
    """A started server with these bundles, stopped at the end."""
    lines: list[str] = []
    limits, metrics = limits or Limits(), Metrics()
    log = Log(content=content, write=lines.append)
    models = Models(
        folders, limits, lambda name, rows: metrics.batch.labels(name).observe(rows), memory=memory, say=log.say
    )
    server = Server(models, limits, metrics, log, None if keys is None else Ring(keys), LOOPBACK)
    front = make_app(server)
    starlette: Any = front.app
    transport = httpx.ASGITransport(app=front)
    async with (
        starlette.router.lifespan_context(starlette),
        httpx.AsyncClient(transport=transport, base_url=base_url, timeout=60) as http,
    ):
        yield Client(server, http, lines)


def ask(folders: Mapping[str, Path], test: Callable[[Client], Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """Run `test(client)` against a server with these bundles."""

    async def main() -> Any:
        async with serving(folders, *args, **options) as client:
            return await test(client)

    return asyncio.run(main())


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
    """A picture (H,W,3) that is dark or light."""
    draws = np.random.default_rng(seed)
    return draws.integers(*((0, 90) if seed % 2 else (150, 256)), (size[1], size[0], 3)).astype(np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    """The bytes of a picture's file."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(array).save(sink, kind)
    return sink.getvalue()


def sound(seed: int, seconds: float = 0.4, rate: int = 16000) -> bytes:
    """The bytes of a WAV file with a low or a high tone."""
    soundfile = pytest.importorskip("soundfile")
    draws = np.random.default_rng(seed)
    time = np.arange(int(rate * seconds)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (300 if seed % 2 else 1500) * time) + draws.normal(0, 0.02, len(time))
    sink = io.BytesIO()
    soundfile.write(sink, wave, rate, format="WAV")
    return sink.getvalue()


@contextmanager
def process(*arguments: str, source: Path = ROOT / "src") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its address; killed at the end if it still runs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), *sys.path]), "HEADSTART_DEBUG": "1"}
    command = [sys.executable, "-m", "headstart", "serve", *arguments, "--port", "0"]
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert " at http" in line, started.communicate()
        yield started, line.rsplit(" ", 1)[1].strip()
    finally:
        started.kill()
        started.communicate()
