"""The outermost layer: who may call, an id for every request, headers, one line of log and one count per answer."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve.refusals import Refused
from headstart.serve.state import ENTRY, Entry, Server

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Front:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens inside."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        entry = Entry(given if _ID.fullmatch(given) else uuid.uuid4().hex)
        scope[ENTRY] = entry
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                if self.server.named:
                    added["x-request-id"] = entry.id
                for name, value in HEADERS.items():
                    added.setdefault(name, value)
            await send(message)

        try:
            refused = self._stranger(headers)
            if refused is not None:
                await answer(Request(scope), refused)(scope, receive, sending)
            else:
                await self.app(scope, receive, sending)
        except Exception as error:  # nothing of it reaches the client
            self.server.log.failure(error, id=entry.id, route=entry.route)
            if not status:
                await answer(Request(scope), broken(entry))(scope, receive, sending)
        finally:
            self._note(scope, entry, status or 499)

    def _stranger(self, headers: Headers) -> Refused | None:
        """A refusal for what a web page of somebody else makes a browser send to this server."""
        host = headers.get("host", "")
        if self.server.hosts is not None and _name(host) not in self.server.hosts:
            return Refused(421, "this server only answers to the name of this machine; pass --host to listen elsewhere")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return Refused(403, "requests from pages of other sites are not answered")
        return None

    def _note(self, scope: Scope, entry: Entry, status: int) -> None:
        seconds = time.perf_counter() - entry.start
        self.server.metrics.request(entry.route, entry.model, status, seconds, entry.rows)
        self.server.log.say(
            "request", id=entry.id, method=scope["method"], route=entry.route, model=entry.model or None, status=status,
            rows=entry.rows or None, ms=round(1000 * seconds, 2), key=entry.key,
            inputs=entry.inputs if self.server.log.content else None,
        )  # fmt: skip


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host.rsplit(":", 1)[0].lower() if re.search(r":\d*$", host) else host.lower()


def answer(request: Request, refused: Refused) -> Response:
    """A refusal in the form that the route's clients expect: OpenAI's for /v1, one sentence elsewhere."""
    found: Entry = request.scope[ENTRY]
    body: dict[str, Any] = {"error": refused.sentence, "request_id": found.id}
    if request.url.path.startswith("/v1/"):
        kind = "server_error" if refused.status >= 500 else "invalid_request_error"
        body = {"error": {"message": refused.sentence, "type": kind, "param": None, "code": None}}
    return respond(body, refused.status, refused.headers)


def broken(entry: Entry) -> Refused:
    """What a client is told about an error that nobody expected."""
    return Refused(500, f"the server failed on this request; its log says more under the id {entry.id}")


def respond(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response; numbers in it must be finite."""
    return Response(orjson.dumps(value), status, {"content-type": "application/json", **(headers or {})})


async def on_refused(request: Request, error: Exception) -> Response:
    """The response to a `Refused`."""
    assert isinstance(error, Refused)
    return answer(request, error)


async def on_http(request: Request, error: Exception) -> Response:
    """The response where no route fits."""
    assert isinstance(error, HTTPException)
    said = {404: "there is nothing at this address; see /openapi.json", 405: "this address takes another method"}
    sentence = said.get(error.status_code, "this request cannot be answered")
    return answer(request, Refused(error.status_code, sentence, error.headers))
