"""The verbs `serve` and `key` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="folders of bundles; each is called by its folder's name")
    ] = None,
    registry: Annotated[
        str | None, typer.Option(help="instead of folders: a registry, whose champions are served and followed")
    ] = None,
    poll: Annotated[float, typer.Option(min=0.1, help="seconds between two looks into the registry")] = 5.0,
    name: Annotated[list[str] | None, typer.Option(help="what to call a bundle instead; once for each")] = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine's own need --keys")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="file of API keys, made by 'headstart key'")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="certificate chain as PEM, for https")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="its private key as PEM")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="rows of one request")] = 256,
    max_megabytes: Annotated[int, typer.Option(min=1, help="size of one request")] = 32,
    max_characters: Annotated[int, typer.Option(min=1, help="of one text")] = 50_000,
    max_pixels: Annotated[int, typer.Option(min=1, help="of one picture")] = 25_000_000,
    max_seconds: Annotated[float, typer.Option(min=0.001, help="of one sound")] = 120.0,
    timeout: Annotated[float, typer.Option(min=0.001, help="seconds until a request is given up")] = 30.0,
    queue: Annotated[int, typer.Option(min=1, help="rows that may wait, per model; more get status 429")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="rows that the network sees at once")] = 32,
    delay: Annotated[float, typer.Option(min=0.0, help="milliseconds that rows wait for company at most")] = 3.0,
    memory: Annotated[
        str | None, typer.Option(help="weights kept at most, such as 2GB; models that nobody asks rest")
    ] = None,
    log_inputs: Annotated[bool, typer.Option("--log-inputs", help="write what clients send into the log")] = False,
    engine: Annotated[str, typer.Option(help="local: this process; or ray: replicas behind Ray Serve")] = "local",
    replicas: Annotated[int, typer.Option(min=1, help="with --engine ray: servers that share the requests")] = 1,
) -> None:
    """Answer requests over HTTP with one bundle or several, or with the champions of a registry."""
    from headstart.errors import MissingExtra
    from headstart.serve.limits import Limits
    from headstart.spec.notation import parse_size

    budget = None if memory is None else parse_size(memory)
    try:
        import httptools  # noqa: F401
        import orjson  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "starlette", "serve", "serving models") from None
    from headstart.serve.run import Place
    from headstart.serve.run import serve as run

    limits = Limits(
        body_bytes=max_megabytes * 2**20, rows=max_rows, characters=max_characters, pixels=max_pixels,
        seconds=max_seconds, queue_rows=queue, timeout=timeout, batch_rows=batch, delay_ms=delay,
    )  # fmt: skip
    place = Place(host, port, keys, tls_cert, tls_key, log_inputs, limits, budget)
    run(
        bundles or [], names=name or (), place=place, registry=registry, poll=poll, engine=engine, replicas=replicas,
        say=_say,
    )  # fmt: skip


def _say(line: str) -> None:
    print(line, flush=True)


def key(
    file: Annotated[Path, typer.Argument(help="file of API keys; made when it is not there")],
    name: Annotated[str, typer.Option(help="whose key it is, for people and the log")],
    scope: Annotated[str, typer.Option(help="predict, or admin to load and unload models too")] = "predict",
    remove: Annotated[bool, typer.Option("--remove", help="take the key of this name away")] = False,
) -> None:
    """Make an API key for 'headstart serve': printed once, only its hash is kept."""
    from headstart.serve import keys

    if remove:
        keys.remove(file, name)
        return
    print(keys.make(file, name, scope), flush=True)
