"""What each model takes and gives, told from its modality and tasks: JSON Schemas and an OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import headstart
from headstart.protocols import Task
from headstart.serve.limits import Limits
from headstart.serve.protocol import suffix
from headstart.serve.served import Face

if TYPE_CHECKING:
    from headstart.serve.state import Server

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def request(served: Face, limits: Limits) -> dict[str, Any]:
    """The JSON Schema of a `/predict` request."""
    column = served.columns.input
    one: dict[str, Any]
    if served.modality == "text":
        text = {"type": "string", "minLength": 1, "maxLength": limits.characters}
        one = {"anyOf": [text, {"type": "object", "properties": {column: text}, "required": [column]}]}
    else:
        one = {
            "type": "object",
            "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
            "required": ["b64"],
        }
    rows = {"type": "array", "items": one, "minItems": 1, "maxItems": limits.rows}
    return {"$schema": DRAFT, "type": "object", "properties": {"rows": rows}, "required": ["rows"]}


def _prediction(task: Task) -> dict[str, Any]:
    if task.name == "regression":
        if task.outputs == 1:
            return {"type": "number"}
        return {"type": "array", "items": {"type": "number"}, "minItems": task.outputs, "maxItems": task.outputs}
    label = {"type": "string", "enum": list(task.labels)}
    return {"type": "array", "items": label} if task.name == "multilabel" else label


def response(served: Face) -> dict[str, Any]:
    """The JSON Schema of a `/predict` answer."""
    whole = served.task
    properties = {f"prediction{suffix(name)}": _prediction(task) for name, task in served.tasks.items()}
    for name in whole.decode(np.zeros((1, whole.outputs), dtype=np.float32)).scores:
        bounds = {"minimum": 0, "maximum": 1} if name.startswith("probability_") else {}
        properties[name] = {"type": "number", **bounds}
    row = {"type": "object", "properties": properties, "required": list(properties)}
    named = {"model": {"type": "string"}, "version": {"type": "string"}}
    return {
        "$schema": DRAFT,
        "type": "object",
        "properties": {**named, "predictions": {"type": "array", "items": row}},
        "required": ["model", "version", "predictions"],
    }


def card(served: Face, limits: Limits) -> dict[str, Any]:
    """What the page and people need to know of a model."""
    return {
        "name": served.name,
        "version": served.version,
        "modality": served.modality,
        "input": served.columns.input,
        "tasks": [
            {"name": name, "kind": task.name, "labels": list(task.labels)} for name, task in served.tasks.items()
        ],
        "rows": limits.rows,
        "explains": served.unexplained is None,
        "unexplained": served.unexplained,
    }


def explanation(served: Face) -> dict[str, Any]:
    """The JSON Schema of an `/explain` answer."""
    number = {"type": "number"}
    properties: dict[str, Any] = {"model": {"type": "string"}, "version": {"type": "string"}}
    if served.names:
        properties["task"] = {"type": "string", "enum": list(served.names)}
    labels = [label for task in served.tasks.values() for label in task.labels]
    properties |= {"label": {"type": "string", "enum": labels}, "score": number, "baseline": number}
    if served.modality == "text":
        place = {"type": "integer", "minimum": 0}
        word = {"text": {"type": "string"}, "start": place, "end": place, "weight": number}
        words = {"type": "array", "items": {"type": "object", "properties": word, "required": list(word)}}
        told = {"text": {"type": "string"}, "whole": {"type": "boolean"}, "words": words}
        properties |= {"error": number, "steps": {"type": "integer"}, **told}
    else:
        picture = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
        properties |= {"picture": picture, "heat": {"type": "array", "items": {"type": "array", "items": number}}}
    return {"$schema": DRAFT, "type": "object", "properties": properties, "required": list(properties)}


def openapi(server: Server, *, named: bool = True) -> dict[str, Any]:
    """An OpenAPI 3.1 document. named: with paths of the loaded models, their labels among them."""
    paths: dict[str, Any] = {}
    for served in server.models if named else ():
        operation = _operation(
            f"Ask {served.name}", request(served, server.limits), response(served), f"predict_{served.name}"
        )
        if served.modality != "text":
            binary = {"schema": {"type": "string", "format": "binary"}}
            operation["requestBody"]["content"]["application/octet-stream"] = binary
        else:
            lines = {"schema": {"type": "string", "description": "one JSON row a line"}}
            operation["requestBody"]["content"]["application/x-ndjson"] = lines
        if served.names:
            names = {"type": "string", "enum": list(served.names)}
            operation["parameters"] = [{"name": "task", "in": "query", "schema": names}]
        paths[f"/predict/{served.name}"] = {"post": operation}
    tensors = {"type": "object", "properties": {"inputs": {"type": "array"}}, "required": ["inputs"]}
    anything = {"type": "object"}
    name = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    for path, said in (
        ("/v2", "About the server"), ("/v2/health/live", "Whether it runs"),
        ("/v2/health/ready", "Whether it takes requests"),
        ("/models", "The loaded models"), ("/v1/models", "The loaded models, as OpenAI lists them"),
    ):  # fmt: skip
        paths[path] = {"get": _operation(said, None, anything)}
    for path, said in (
        ("/v2/models/{name}", "About a model"), ("/v2/models/{name}/ready", "Whether a model is loaded"),
        ("/schema/{name}", "JSON Schemas of a model"),
    ):  # fmt: skip
        paths[path] = {"get": {**_operation(said, None, anything), "parameters": name}}
    for path, said in (
        ("/predict/{name}", "Ask a model"), ("/explain/{name}", "What in one row speaks for an answer"),
    ):  # fmt: skip
        more = [{"name": "task", "in": "query", "schema": {"type": "string"}}]
        if path == "/explain/{name}":
            more.append({"name": "label", "in": "query", "schema": {"type": "string"}})
        body = {"type": "object", "properties": {"rows": {"type": "array"}}, "required": ["rows"]}
        paths[path] = {"post": {**_operation(said, body, anything), "parameters": [*name, *more]}}
    infer = _operation("Ask a model with tensors, by the Open Inference Protocol", tensors, anything)
    paths["/v2/models/{name}/infer"] = {"post": {**infer, "parameters": name}}
    paths["/v2/repository/index"] = {"post": _operation("Every known model and its state", None, {"type": "array"})}
    for verb in ("load", "unload"):
        operation = _operation(f"{verb.capitalize()} a model (scope admin)", None, anything)
        paths[f"/v2/repository/models/{{name}}/{verb}"] = {"post": {**operation, "parameters": name}}
    embed = {"type": "object", "properties": {"model": {"type": "string"}, "input": {}}, "required": ["model", "input"]}
    paths["/v1/embeddings"] = {"post": _operation("Vectors of texts, as OpenAI gives them", embed, anything)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Headstart", "version": headstart.__version__},
        "paths": paths,
    }
    if server.ring is not None:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"key": []}]
    return document


def _operation(
    summary: str, body: dict[str, Any] | None, answer: dict[str, Any], identity: str | None = None
) -> dict[str, Any]:
    error = {"type": "object", "properties": {"error": {}}, "required": ["error"]}
    made: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "the answer", "content": {"application/json": {"schema": answer}}},
            "default": {"description": "one sentence", "content": {"application/json": {"schema": error}}},
        },
    }
    if identity:
        made["operationId"] = identity
    if body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return made
