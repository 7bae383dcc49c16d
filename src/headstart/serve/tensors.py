"""Routes of the Open Inference Protocol, version 2, and of its model repository extension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import Response

import headstart
from headstart.serve import asking, protocol
from headstart.serve.front import respond
from headstart.serve.refusals import Refused, bad
from headstart.serve.state import Server, entry


async def live(server: Server, request: Request) -> Response:
    """Whether the process runs."""
    return respond({"live": True})


async def ready(server: Server, request: Request) -> Response:
    """Whether requests are welcome: not while the models load, and not once the server is to stop."""
    good = server.started and not server.draining
    return respond({"ready": good}, 200 if good else 503)


async def about(server: Server, request: Request) -> Response:
    """Metadata of the server."""
    extensions = list(protocol.EXTENSIONS)
    return respond({"name": "headstart", "version": headstart.__version__, "extensions": extensions})


async def model(server: Server, request: Request) -> Response:
    """Metadata of a model."""
    served = server.models.get(request.path_params["name"], request.path_params.get("version"))
    entry(request).model = served.name
    return respond(protocol.metadata(served.name, served.version, served.modality, served.tasks))


async def model_ready(server: Server, request: Request) -> Response:
    """Whether a model can be asked; one that rests can."""
    served = server.models.get(request.path_params["name"], request.path_params.get("version"))
    entry(request).model = served.name
    return respond({"name": served.name, "ready": True})


async def infer(server: Server, request: Request) -> Response:
    """Answers of a model as tensors."""
    name, version = request.path_params["name"], request.path_params.get("version")
    async with server.models.use(name, version) as served:
        known = entry(request)
        known.model = served.name
        data = await asking.body(server, request)
        asked = protocol.read(data, request.headers.get(protocol.BINARY), served.modality)
        outputs, _, _ = await asking.ask(server, request, served, asked.rows)
        task = served.task
        scores = task.scores(torch.from_numpy(outputs), served.temperature).numpy()
        made = []
        for member in task.members:
            made += protocol.tensors(member.name, member.task, scores[:, member.columns])
        if not task.members:
            made = protocol.tensors("", task, scores)
        content, headers = protocol.write(served.name, served.version, asked, known.id, made)
    return Response(content, 200, headers)


async def index(server: Server, request: Request) -> Response:
    """Every known model and its state; with {"ready": true} only those that are loaded."""
    asked = await _parameters(server, request)
    wanted = asked.get("ready", False)
    return respond([each for each in server.models.index() if not wanted or each["state"] == "READY"])


async def load(server: Server, request: Request) -> Response:
    """Load a model, or load it again from the folder that was named when the server started."""
    name = request.path_params["name"]
    _check_alone(server)
    asked = await _parameters(server, request)
    if asked.get("parameters"):
        raise bad("a model is loaded as it lies in its folder: parameters are not taken")
    try:
        served = await server.models.load(name)
    except Refused:
        server.log.say("load failed", model=name, reason=server.models.reasons.get(name))
        raise
    entry(request).model = name
    server.log.say("loaded", model=name, version=served.version, shared_bytes=served.shared)
    return respond({})


async def unload(server: Server, request: Request) -> Response:
    """Let a model go when the requests that it has are answered."""
    name = request.path_params["name"]
    _check_alone(server)
    await _parameters(server, request)
    await server.models.unload(name)
    server.log.say("unloaded", model=name)
    return respond({})


def _check_alone(server: Server) -> None:
    """Raises Refused where only one of several replicas would change."""
    if not server.alone:
        raise Refused(
            501,
            "this server has several replicas, and a request reaches one of them: serve a registry, which all follow",
        )


async def _parameters(server: Server, request: Request) -> Mapping[str, Any]:
    data = await asking.body(server, request)
    if not data.strip():
        return {}
    found = await asking.parsed(data)
    if not isinstance(found, Mapping):
        raise bad("expected a JSON object, or no body")
    return found
