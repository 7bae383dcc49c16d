"""The same server behind Ray Serve: replicas on one machine or several, each a whole server with its models."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from headstart.bundle import read_record
from headstart.errors import HeadstartError, MissingExtra
from headstart.serve.app import make_app
from headstart.serve.following import Following
from headstart.serve.front import Front
from headstart.serve.keys import Ring
from headstart.serve.run import GRACE, Place, make_server

NAME = "headstart"
"""Of the application in Ray Serve."""

QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""The server has a log of its own."""


def serve(
    folders: Mapping[str, Path],
    place: Place,
    registry: str | None,
    poll: float,
    replicas: int,
    say: Callable[[str], None],
) -> None:
    """Serve bundles, or the champions of a registry, by so many replicas until SIGTERM or SIGINT.

    On the Ray cluster that the environment names, or on one that is made on this machine. The folders and the file of
    keys must be reachable from each machine. At the end what was asked is answered, and what was started is stopped.
    Raises BundleError for a folder that is not a bundle, MissingExtra without Ray Serve, HeadstartError where the
    replicas do not start.
    """
    ray, engine = _libraries()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    for folder in folders.values():
        read_record(folder)  # so that the usual mistakes are told here and not in the log of a replica
    with place.bind() as bound:
        port = int(bound.getsockname()[1])
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, logging_level="ERROR")
    try:
        # Ray's own handler of signals would abort, so they are taken from it before anything is started.
        with _signals() as over:
            _run(ray, engine, _builder(folders, place, registry, poll, replicas), place, port, replicas)
            many = "1 replica" if replicas == 1 else f"{replicas} replicas"
            say(f"serving {', '.join(sorted(folders)) or registry} by {many} at {place.url(port)}")
            while not over.wait(0.5):  # a wait without an end would keep the signal from being handled
                pass
            engine.delete(NAME)
            if not engine.status().applications:
                engine.shutdown()
    finally:
        if started:
            ray.shutdown()


def _libraries() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve as engine
    except ImportError as error:
        raise MissingExtra(error.name or "ray", "ray", "--engine ray") from None
    return ray, engine


def _builder(
    folders: Mapping[str, Path], place: Place, registry: str | None, poll: float, replicas: int
) -> Callable[[], Front]:
    """What makes the application in each replica; it loads its models when it starts."""
    known = {name: folder.resolve() for name, folder in folders.items()}
    there = str(Path(registry).resolve()) if registry is not None and Path(registry).exists() else registry
    placed = replace(place, keys=None if place.keys is None else place.keys.resolve())

    def build() -> Front:
        ring = None if placed.keys is None else Ring(placed.keys)
        server = make_server(known, placed, ring, alone=replicas == 1, named=False)
        following = None if there is None else Following(there, server.models, server.log, poll)
        return make_app(server, following)

    return build


def _run(ray: Any, engine: Any, build: Callable[[], Front], place: Place, port: int, replicas: int) -> None:
    """Start the proxies and the replicas. The limits are the server's own: Ray's are set so that they never count."""
    cores = int(max(node["Resources"].get("CPU", 1) for node in ray.nodes()))
    share = ray.cluster_resources().get("CPU", 1) / replicas
    engine.start(
        http_options={
            "host": place.host, "port": port, "request_timeout_s": None,
            "ssl_certfile": None if place.tls_cert is None else str(place.tls_cert.resolve()),
            "ssl_keyfile": None if place.tls_key is None else str(place.tls_key.resolve()),
        },
        logging_config=QUIET,
    )  # fmt: skip
    # Whole cores where there is one for each, which Ray makes the number of threads.
    cpus = min(cores, int(share)) if share >= 1 else share
    made = engine.deployment(
        name=NAME, num_replicas=replicas, max_ongoing_requests=4 * place.limits.queue_rows,
        graceful_shutdown_timeout_s=place.limits.timeout + GRACE, graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": cpus}, logging_config=QUIET,
    )(engine.ingress(build)())  # fmt: skip
    try:
        engine.run(made.bind(), name=NAME, route_prefix="/")
    except RuntimeError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "they failed")
        raise HeadstartError(f"the replicas did not start, see what they wrote above: {reason[:300]}") from None


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Inside, SIGTERM and SIGINT set the event."""
    over = threading.Event()
    before = {each: signal.signal(each, lambda *_: over.set()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield over
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
