"""Plain routes: ask a model with JSON or files, see what it takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from headstart.serve import asking, schemas
from headstart.serve.front import respond
from headstart.serve.metrics import CONTENT_TYPE
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


async def models(server: Server, request: Request) -> Response:
    """What is loaded, with what each model takes and gives."""
    return respond({"models": [schemas.card(served, server.limits) for served in server.models]})


async def schema(server: Server, request: Request) -> Response:
    """JSON Schemas of one model's requests and answers."""
    served = server.models.get(request.path_params["name"])
    entry(request).model = served.name
    return respond({"request": schemas.request(served, server.limits), "response": schemas.response(served)})


async def openapi(server: Server, request: Request) -> Response:
    """The description of all routes, with a path for each loaded model."""
    return respond(schemas.openapi(server))


async def metrics(server: Server, request: Request) -> Response:
    """Everything counted, for Prometheus."""
    models = server.models
    waiting = {served.name: served.waiting for served in models.loaded}
    return Response(server.metrics.text(waiting, sorted(models.folders), models.bytes), media_type=CONTENT_TYPE)
