"""What all requests of a server share, and what one request has told so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from headstart.serve.explainer import Explainer
from headstart.serve.keys import Ring
from headstart.serve.limits import Limits
from headstart.serve.logs import Log
from headstart.serve.metrics import Metrics
from headstart.serve.models import Models
from headstart.serve.refusals import Refused

ENTRY = "headstart.entry"
"""Where the scope of a request keeps its `Entry`."""


@dataclass
class Entry:
    """One request: its id, the route's pattern, the model and rows once they are known, whose key it carries."""

    id: str
    route: str = "none"
    model: str = ""
    rows: int = 0
    key: str | None = None
    inputs: list[Any] | None = None
    start: float = field(default_factory=time.perf_counter)


def entry(request: Request) -> Entry:
    """What is known of a request."""
    found: Entry = request.scope[ENTRY]
    return found


@dataclass
class Server:
    """What all requests share. ring: None where no keys are needed. hosts: names that the server may be called by, None
    for any. draining: whether it is about to stop. alone: whether no other process answers under the same address.
    named: whether answers get their request's id here, not by what stands in front.
    """

    models: Models
    limits: Limits
    metrics: Metrics
    log: Log
    ring: Ring | None = None
    hosts: frozenset[str] | None = None
    draining: bool = False
    started: bool = False
    alone: bool = True
    named: bool = True
    explainer: Explainer = field(default_factory=Explainer)

    def authorise(self, request: Request, scope: str) -> None:
        """Let a request pass whose key has the scope. Raises Refused: 401 for no known key, 403 for another scope."""
        if self.ring is None:
            return
        how, _, secret = request.headers.get("authorization", "").partition(" ")
        given = secret.strip() if how.lower() == "bearer" else request.headers.get("x-api-key")
        key = self.ring.find(given)
        if key is None:
            said = "is not known" if given else "is needed"
            raise Refused(
                401, f"an API key {said}: send it as 'Authorization: Bearer KEY'", {"WWW-Authenticate": "Bearer"}
            )
        entry(request).key = key.name
        if not key.may(scope):
            raise Refused(403, f"this API key has the scope {key.scope}, and this needs {scope}")
