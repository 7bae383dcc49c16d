"""Plain routes: ask a model with JSON or files, see what it takes and gives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from headstart.serve import asking, schemas
from headstart.serve.front import respond
from headstart.serve.metrics import CONTENT_TYPE
from headstart.serve.refusals import bad
from headstart.serve.state import Server, entry
from headstart.values import Decoded


def table(decoded: Decoded, several: bool) -> list[dict[str, Any]]:
    """One object a row with the columns that `headstart predict` writes."""
    names = list(decoded.scores)
    columns = [np.asarray(decoded.scores[name]).tolist() for name in names]
    found = []
    for row, answer in enumerate(decoded.prediction):
        if several and isinstance(answer, Mapping):
            made = {f"prediction_{task}": value for task, value in answer.items()}
        else:
            made = {"prediction": answer}
        found.append({**made, **{name: column[row] for name, column in zip(names, columns, strict=True)}})
    return found


async def predict(server: Server, request: Request) -> Response:
    """Answers of a model, with the probability of every label."""
    task = request.query_params.get("task")
    async with server.models.use(request.path_params["name"]) as served:
        entry(request).model = served.name
        if task is not None:
            served.check_task(task)
        rows = await asking.rows(server, request, served)
        outputs, _, _ = await asking.ask(server, request, served, rows)
        decoded = served.decode(outputs, task)
        several = task is None and bool(served.names)
        found = {"model": served.name, "version": served.version, "predictions": table(decoded, several)}
    return respond(found)


async def explain(server: Server, request: Request) -> Response:
    """Which words of one text, or parts of one picture, speak for an answer."""
    asked = request.query_params
    async with server.models.use(request.path_params["name"]) as served:
        entry(request).model = served.name
        rows = await asking.rows(server, request, served)
        if len(rows) != 1:
            raise bad(f"expected one row to explain, received {len(rows)}: send them one by one")
        row = (await asking.checked(server, request, served, rows))[0]
        work = server.explainer.explain(served, row, asked.get("label"), asked.get("task"))
        found = await asking.unless_gone(request, work)
    body = await asyncio.to_thread(found.to_json)
    return respond({"model": served.name, "version": served.version, **body})


async def models(server: Server, request: Request) -> Response:
    """What is loaded, with what each model takes and gives."""
    return respond({"models": [schemas.card(served, server.limits) for served in server.models]})


async def schema(server: Server, request: Request) -> Response:
    """JSON Schemas of one model's requests, answers and explanations."""
    served = server.models.get(request.path_params["name"])
    entry(request).model = served.name
    found = {"request": schemas.request(served, server.limits), "response": schemas.response(served)}
    if served.unexplained is None:
        found["explanation"] = schemas.explanation(served)
    return respond(found)


async def openapi(server: Server, request: Request) -> Response:
    """The description of all routes, with a path for each loaded model.

    Where keys are needed, those who send none get the routes alone, which are the same on every server.
    """
    named = server.ring is None or any(name in request.headers for name in ("authorization", "x-api-key"))
    if named:
        server.authorise(request, "predict")
    return respond(schemas.openapi(server, named=named))


async def metrics(server: Server, request: Request) -> Response:
    """Everything counted, for Prometheus."""
    models = server.models
    waiting = {served.name: served.waiting for served in models.loaded}
    return Response(server.metrics.text(waiting, sorted(models.folders), models.bytes), media_type=CONTENT_TYPE)
