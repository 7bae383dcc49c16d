"""The application: routes, the scope that each needs, and what surrounds them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headstart.serve import asking, embeddings, friendly, tensors
from headstart.serve.following import Following
from headstart.serve.front import Front, broken, on_http, on_refused
from headstart.serve.front import answer as refuse
from headstart.serve.refusals import Refused
from headstart.serve.state import Server, entry

Handler = Callable[[Server, Request], Coroutine[Any, Any, Response]]

OPEN, PREDICT, ADMIN = None, "predict", "admin"

ROUTES: tuple[tuple[str, str, Handler, str | None], ...] = (
    ("POST", "/predict/{name}", friendly.predict, PREDICT),
    ("POST", "/v2/models/{name}/infer", tensors.infer, PREDICT),
    ("GET", "/v2/health/live", tensors.live, OPEN),
    ("GET", "/v2/health/ready", tensors.ready, OPEN),
    ("GET", "/v2", tensors.about, PREDICT),
    ("GET", "/v2/models/{name}", tensors.model, PREDICT),
    ("GET", "/v2/models/{name}/ready", tensors.model_ready, PREDICT),
    ("GET", "/v2/models/{name}/versions/{version}", tensors.model, PREDICT),
    ("GET", "/v2/models/{name}/versions/{version}/ready", tensors.model_ready, PREDICT),
    ("POST", "/v2/models/{name}/versions/{version}/infer", tensors.infer, PREDICT),
    ("POST", "/v2/repository/index", tensors.index, PREDICT),
    ("POST", "/v2/repository/models/{name}/load", tensors.load, ADMIN),
    ("POST", "/v2/repository/models/{name}/unload", tensors.unload, ADMIN),
    ("POST", "/explain/{name}", friendly.explain, PREDICT),
    ("GET", "/models", friendly.models, PREDICT),
    ("GET", "/schema/{name}", friendly.schema, PREDICT),
    ("GET", "/openapi.json", friendly.openapi, OPEN),
    ("GET", "/metrics", friendly.metrics, PREDICT),
    ("POST", "/v1/embeddings", embeddings.embeddings, PREDICT),
    ("GET", "/v1/models", embeddings.models, PREDICT),
)

_UNHURRIED = (tensors.load,)
"""Handlers without a deadline: loading a large model takes as long as it takes."""


def make_app(server: Server, following: Following | None = None) -> Front:
    """The whole application. Its models are loaded when it starts and answered to the end when it stops.

    following: of a registry, for an application that is started by somebody else's server.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if not server.started:
            await server.models.start()
            if following is not None:
                await following.start()
            server.started = True
        try:
            yield
        finally:
            server.draining = True
            if following is not None:
                following.stop()
            server.explainer.close()
            await server.models.close()

    async def failed(request: Request, error: Exception) -> Response:
        return refuse(request, broken(entry(request)))

    routes = [Route("/", page, methods=["GET"])]
    routes += [_route(server, *described) for described in ROUTES]
    handlers: dict[Any, Any] = {Refused: on_refused, HTTPException: on_http, Exception: failed}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Front(app, server)


def _route(server: Server, method: str, path: str, handler: Handler, scope: str | None) -> Route:
    async def endpoint(request: Request) -> Response:
        entry(request).route = path
        if scope is not None:
            server.authorise(request, scope)
        work = handler(server, request)
        return await (work if handler in _UNHURRIED else asking.within(server, request, work))

    return Route(path, endpoint, methods=[method])


@cache
def _page() -> tuple[bytes, str]:
    """The page, and the policy that lets a browser run what is in it and nothing else."""
    text = (files("headstart.serve") / "templates" / "page.html").read_text(encoding="utf-8")
    allowed = {}
    for tag in ("script", "style"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in inside]
        allowed[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        f"img-src 'self' blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


async def page(request: Request) -> Response:
    """A page to try the models on; it holds nothing about them and asks for it with the visitor's key."""
    entry(request).route = "/"
    content, policy = _page()
    return Response(content, media_type="text/html; charset=utf-8", headers={"content-security-policy": policy})
