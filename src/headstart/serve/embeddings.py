"""Vectors of texts in the form of OpenAI's embeddings endpoint, from the backbones of text models.

The vector of a text is the pooled feature that the model's head reads: the backbone as it was fine-tuned.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from headstart.serve import asking
from headstart.serve.front import respond
from headstart.serve.refusals import bad
from headstart.serve.state import Server, entry


async def embeddings(server: Server, request: Request) -> Response:
    """One vector a text."""
    asked = await asking.parsed(await asking.body(server, request))
    if not isinstance(asked, Mapping) or not isinstance(asked.get("model"), str):
        raise bad("expected a JSON object with 'model' and 'input'")
    texts = asked.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list):
        raise bad("expected 'input' to be a text or a list of texts")
    form = asked.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise bad("expected encoding_format to be float or base64")
    async with server.models.use(asked["model"]) as served:
        entry(request).model = served.name
        if served.modality != "text":
            raise bad(f"the model '{served.name}' reads {served.modality}, and this route gives vectors of texts")
        width = served.width
        if asked.get("dimensions") not in (None, width):
            raise bad(f"the vectors of this model have {width} dimensions and no other number")
        _, pooled, tokens = await asking.ask(server, request, served, texts)
    data = [
        {"object": "embedding", "index": row, "embedding": _vector(values, form)} for row, values in enumerate(pooled)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return respond({"object": "list", "data": data, "model": served.name, "usage": usage})


def _vector(values: np.ndarray, form: str) -> Any:
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()
    return values.tolist()


async def models(server: Server, request: Request) -> Response:
    """The loaded text models, as OpenAI lists them."""
    data = [
        {"id": served.name, "object": "model", "created": served.created, "owned_by": "headstart"}
        for served in server.models
        if served.modality == "text"
    ]
    return respond({"object": "list", "data": data})
