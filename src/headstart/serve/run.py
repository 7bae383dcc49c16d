"""Starting and stopping a server: where it listens, who may ask, and how it leaves."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from headstart.errors import SpecError
from headstart.serve.app import make_app
from headstart.serve.following import Following
from headstart.serve.keys import Ring
from headstart.serve.limits import Limits
from headstart.serve.logs import Log
from headstart.serve.metrics import Metrics
from headstart.serve.models import Models, named
from headstart.serve.state import Server
from headstart.serve.wire import Wire

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
GRACE = 5
"""Seconds beyond a request's own deadline that are left to those under way when the server stops."""


@dataclass(frozen=True)
class Place:
    """Where a server listens and who may ask. keys: a file made by `headstart key`. log_inputs: write what clients send
    into the log. memory: bytes of weights above which models that nobody asks rest.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_inputs: bool = False
    limits: Limits = field(default_factory=Limits)
    memory: int | None = None

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> frozenset[str] | None:
        """The names it may be called by: on this machine only its own, so that no web page can lead to it."""
        literal = f"[{self.host}]" if ":" in self.host else self.host
        return LOOPBACK | {literal.lower()} if self.local else None

    def url(self, port: int) -> str:
        """Its address."""
        literal = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.tls_cert is None else 'https'}://{literal}:{port}"

    def check(self) -> None:
        """Raises SpecError where it would be open to everybody, or for TLS files that cannot be used."""
        if not self.local and self.keys is None:
            raise SpecError(
                f"'{self.host}' can be reached from other machines, so API keys are needed: make one with "
                f"'headstart key keys.json --name NAME' and pass --keys keys.json; or leave --host out"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SpecError("--tls-cert and --tls-key belong together: pass both")
        if self.tls_cert is not None:
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.tls_cert, self.tls_key, password=lambda: b"")
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise SpecError(f"cannot use '{self.tls_cert}' with '{self.tls_key}' for TLS: {reason}") from None

    def bind(self) -> socket.socket:
        """The socket that it listens on. Raises SpecError for an address that is taken or is not this machine's."""
        bound = None
        try:
            family, _, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            # Without the protocol asyncio does not see that this is TCP and leaves Nagle's algorithm on: the second
            # packet of an answer then waits for the client's delayed acknowledgement, 40 ms on Linux.
            bound = socket.socket(family, socket.SOCK_STREAM, protocol)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except (OSError, OverflowError) as error:
            if bound is not None:
                bound.close()
            reason = getattr(error, "strerror", None) or error
            raise SpecError(
                f"cannot listen on {self.host} port {self.port}: {reason}; pass another --port (0 is any free one)"
            ) from None
        return bound


class _Uvicorn(uvicorn.Server):
    """Stops on SIGTERM and SIGINT when every request is answered, and then leaves quietly."""

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None], started: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping, self._started = stopping, started

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for each in signals:
            loop.add_signal_handler(each, self.handle_exit, each, None)
        try:
            yield
        finally:
            for each in signals:
                loop.remove_signal_handler(each)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()


class _Forward(logging.Handler):
    """Passes warnings of uvicorn on to the log, without what they quote."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.say("server", level=record.levelname.lower(), message=str(record.msg)[:200])


def serve(
    folders: Sequence[Path],
    *,
    names: Sequence[str] = (),
    place: Place | None = None,
    registry: str | None = None,
    poll: float = 5.0,
    engine: str = "local",
    replicas: int = 1,
    say: Callable[[str], None] = print,
) -> None:
    """Serve bundles until SIGTERM or SIGINT, then answer what was asked and return.

    names: how clients call the bundles, in their order; else the folders' own names. registry: in place of folders, the
    champions of a registry, which is asked every `poll` seconds. engine: `local` is this process; `ray` is so many
    replicas behind Ray Serve (`cluster.serve`). say: told the address once.
    Raises SpecError for an unsafe or impossible place, BundleError or ProofError for a bundle that cannot be loaded,
    RegistryError for a registry that is not there.
    """
    if (registry is None) == (not folders) or (registry is not None and names):
        raise SpecError(
            "expected folders of bundles, or --registry for the champions of one under their own names: give either"
        )
    if engine not in ("local", "ray"):
        raise SpecError(f"expected --engine local or ray, received '{engine}'")
    if engine == "local" and replicas != 1:
        raise SpecError(f"received --replicas {replicas} for one process: add --engine ray, or leave it out")
    place = place or Place()
    place.check()
    chosen = named(list(folders), list(names))
    ring = None if place.keys is None else Ring(place.keys)
    if engine == "ray":
        from headstart.serve import cluster

        cluster.serve(chosen, place, registry, poll, replicas, say)
        return
    bound = place.bind()
    with bound:
        asyncio.run(_serve(chosen, place, ring, bound, say, registry, poll))


def make_server(
    folders: Mapping[str, Path], place: Place, ring: Ring | None, *, alone: bool = True, named: bool = True
) -> Server:
    """What the requests of one process share; its models are not loaded yet. alone and named: as for `Server`."""
    log, metrics = Log(content=place.log_inputs), Metrics()
    models = Models(
        folders, place.limits, lambda name, rows: metrics.batch.labels(name).observe(rows), memory=place.memory,
        say=log.say,
    )  # fmt: skip
    return Server(models, place.limits, metrics, log, ring, place.hosts, alone=alone, named=named)


def _open_more(files: int) -> None:
    """Let this process open so many files more, where the system allows it: each model holds one."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and (most == resource.RLIM_INFINITY or now + files <= most):
        resource.setrlimit(resource.RLIMIT_NOFILE, (now + files, most))


async def _serve(
    folders: dict[str, Path],
    place: Place,
    ring: Ring | None,
    bound: socket.socket,
    say: Callable[[str], None],
    registry: str | None,
    poll: float,
) -> None:
    _open_more(len(folders))
    server = make_server(folders, place, ring)
    log, models = server.log, server.models
    await models.start()
    following = None if registry is None else Following(registry, models, log, poll)
    if following is not None:
        await following.start()
    server.started = True
    url = place.url(bound.getsockname()[1])

    def stopping() -> None:
        if not server.draining:
            log.say("stopping")
        server.draining = True
        if following is not None:
            following.stop()

    def started() -> None:
        versions = {served.name: served.version for served in models}
        log.say("listening", url=url, models=versions, shared_bytes=sum(served.shared for served in models.loaded))
        say(f"serving {', '.join(models.names) or 'no model yet'} at {url}")

    forward = _Forward(log)
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(forward)
    logger.propagate = False
    config = uvicorn.Config(
        make_app(server), log_config=None, access_log=False, lifespan="on", server_header=False, proxy_headers=False,
        ssl_certfile=place.tls_cert, ssl_keyfile=place.tls_key, ws="none", http=Wire,
        timeout_graceful_shutdown=int(place.limits.timeout) + GRACE, limit_concurrency=4 * place.limits.queue_rows,
    )  # fmt: skip
    try:
        await _Uvicorn(config, stopping, started).serve(sockets=[bound])
    finally:
        if following is not None:
            following.stop()
        logger.removeHandler(forward)
        log.say("stopped")
