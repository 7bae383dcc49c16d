"""From a request to the answers of a model: body, deadline, disconnection, queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from headstart.serve import inputs
from headstart.serve.refusals import Refused, TooLarge, bad
from headstart.serve.served import Served
from headstart.serve.state import Server, entry

Result = TypeVar("Result")

LINES = ("application/x-ndjson", "application/jsonl", "application/jsonlines", "application/x-jsonlines")
INLINE_BYTES = 1 << 18
"""Bodies above this are parsed in a thread, so that other requests go on."""


async def body(server: Server, request: Request) -> bytes:
    """The whole body. Raises Refused above the limit, before it is read where its length is stated."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "compressed bodies are not read: send it as it is")
    most = server.limits.body_bytes
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > most:
        raise TooLarge(f"the body has {int(stated)} bytes, more than the {most} allowed")
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > most:
            raise TooLarge(f"the body has more than the {most} bytes allowed")
        pieces.append(piece)
    return b"".join(pieces)


async def parsed(data: bytes) -> Any:
    """The JSON in a body; a large one is read in a thread."""
    if len(data) <= INLINE_BYTES:
        return inputs.parse(data)
    return await asyncio.to_thread(inputs.parse, data)


def seconds(server: Server, request: Request) -> float:
    """How long the client wants to wait, by `x-timeout-ms`; never longer than the server's own limit."""
    given = request.headers.get("x-timeout-ms")
    if given is None:
        return server.limits.timeout
    if not (given.isascii() and given.isdigit()) or int(given) == 0:
        raise bad("expected x-timeout-ms to be a whole number above 0")
    return min(server.limits.timeout, int(given) / 1000)


async def within(server: Server, request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the work, unless the time is over. Raises Refused (504) then."""
    try:
        most = seconds(server, request)
    except Refused:
        work.close()
        raise
    try:
        async with asyncio.timeout(most):
            return await work
    except TimeoutError:
        raise Refused(504, f"no answer within {most:g} seconds: send fewer rows, or try again later") from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the work, given up when the client hangs up. The body must have been read."""
    patience = asyncio.timeout(None)
    watch = asyncio.create_task(_hung_up(request, patience))
    try:
        async with patience:
            return await work
    except TimeoutError:
        if not patience.expired():
            raise
        raise Refused(499, "the client is gone") from None
    finally:
        watch.cancel()


async def _hung_up(request: Request, patience: asyncio.Timeout) -> None:
    """End somebody's patience when the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    patience.reschedule(0)


async def ask(
    server: Server, request: Request, served: Served, values: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Outputs (rows,K), pooled features (rows,D) and cost of raw rows, after they were checked. Raises Refused."""
    rows = await checked(server, request, served, values)
    return await unless_gone(request, served.answers(rows))


async def checked(server: Server, request: Request, served: Served, values: Sequence[Any]) -> list[str | bytes]:
    """Raw rows as the model may see them. Raises Refused for one that it may not."""
    known = entry(request)
    known.model = served.name
    if served.modality == "text":
        rows = inputs.check(served.modality, values, server.limits)
    else:
        rows = await asyncio.to_thread(inputs.check, served.modality, values, server.limits)
    known.rows = len(rows)
    if server.log.content:
        known.inputs = [row[:200] if isinstance(row, str) else f"{len(row)} bytes" for row in rows]
    return rows


async def rows(server: Server, request: Request, served: Served) -> list[Any]:
    """The raw rows of a `/predict` request, by its content type. Raises Refused for one that cannot be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    data = await body(server, request)
    column, modality = served.columns.input, served.modality
    if kind in LINES:
        return inputs.unwrap(modality, column, await asyncio.to_thread(inputs.parse_lines, data))
    if kind == "text/plain" and modality == "text":
        return [data]
    if kind == "multipart/form-data":
        return await _parts(server, request, data, modality)
    if kind == "application/octet-stream" or kind.partition("/")[0] in ("image", "audio"):
        if modality == "text":
            raise Refused(415, 'this model reads text: send JSON, such as {"rows": ["a text"]}')
        return [data]
    # What curl calls a form when nothing is said, and anything else, is tried as JSON.
    if kind not in ("", "application/json", "application/x-www-form-urlencoded"):
        raise Refused(415, f"bodies of this content type are not read; send application/json, {LINES[0]} or a file")
    value = await parsed(data)
    if isinstance(value, dict):
        value = value.get("rows", [value])
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise bad('expected {"rows": [...]} or a list of rows')
    return inputs.unwrap(modality, column, value)


async def _parts(server: Server, request: Request, data: bytes, modality: str) -> list[Any]:
    """One row a part: files, and for texts also fields."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield data

    most = server.limits.rows
    try:
        parser = MultiPartParser(
            request.headers,
            stream(),
            max_files=most,
            max_fields=most,
            max_part_size=server.limits.body_bytes,
        )
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many" in error.message:
            raise TooLarge(f"more than {most} rows in one request; send them in parts") from None
        raise bad("the form is cut short or not valid multipart/form-data") from None
    except (KeyError, ValueError):
        raise bad("the form is cut short or not valid multipart/form-data") from None
    found: list[Any] = []
    try:
        for row, (_, value) in enumerate(form.multi_items()):
            if isinstance(value, str) and modality != "text":
                raise bad(f"row {row}: expected a file; paths and addresses are not opened")
            found.append(value if isinstance(value, str) else await value.read())
    finally:
        await form.close()
    return found
