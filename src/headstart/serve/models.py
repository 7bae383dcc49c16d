"""The models of a server: by name, loaded, swapped and let go while requests go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.bundle import Bundle
from headstart.errors import BundleError, HeadstartError
from headstart.serve.limits import Limits
from headstart.serve.refusals import Refused
from headstart.serve.served import Served, load
from headstart.serve.sharing import Pool


class Models:
    """Names and the folders they may be loaded from, fixed when the server starts: a request can only name a name."""

    def __init__(
        self, folders: Mapping[str, Path], limits: Limits, watch: Callable[[str, int], None] = lambda name, rows: None
    ) -> None:
        self.folders = dict(folders)
        self.limits = limits
        self.reasons: dict[str, str] = {}
        self._watch = watch
        self._live: dict[str, Served] = {}
        self._users: dict[Served, int] = {}
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._pool = Pool()
        # One thread for all networks: each already uses the machine's cores, and two at once would share them.
        self._network = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    @property
    def names(self) -> list[str]:
        """Those that are loaded."""
        return sorted(self._live)

    def __iter__(self) -> Iterator[Served]:
        return iter([self._live[name] for name in self.names])

    def get(self, name: str, version: str | None = None) -> Served:
        """A loaded model. Raises Refused: 404 for an unknown name or version, 503 for a model that is not loaded."""
        served = self._live.get(name)
        if served is None:
            if name in self.folders:
                raise Refused(503, f"the model '{name}' is not loaded")
            raise Refused(404, f"there is no such model; loaded: {', '.join(self.names) or 'none'}")
        if version is not None and version != served.version:
            raise Refused(404, f"the model '{name}' has the version {served.version} and no other")
        return served

    @contextmanager
    def use(self, name: str, version: str | None = None) -> Iterator[Served]:
        """A model that stays until the block is left, even if it is swapped or unloaded meanwhile."""
        served = self.get(name, version)
        self._users[served] = self._users.get(served, 0) + 1
        try:
            yield served
        finally:
            self._users[served] -= 1
            if not self._users[served]:
                del self._users[served]

    async def load(self, name: str, folder: Path | None = None) -> Served:
        """Load or load again; requests go to the old one until the new one has proven itself. Raises Refused.

        folder: where it is to be loaded from, from now on if that goes well. Never what a client sent.
        """
        if name not in self.folders and folder is None:
            raise Refused(404, f"there is no such model; known: {', '.join(sorted(self.folders)) or 'none'}")
        async with self._changing:
            before = self.folders.get(name)
            if folder is not None:
                self.folders[name] = folder
            try:
                served = await self._open(name)
            except HeadstartError:
                self.folders[name] = before or self.folders[name]
                kept = "the one that was loaded goes on" if name in self._live else "it is not loaded"
                raise Refused(409, f"the model '{name}' cannot be loaded, see the server's log; {kept}") from None
            self._replace(name, served)
        return served

    async def start(self) -> None:
        """Load every model. Raises BundleError or ProofError for the first that cannot be."""
        for name in self.folders:
            self._replace(name, await self._open(name))

    async def _open(self, name: str) -> Served:
        loop = asyncio.get_running_loop()
        try:
            model, shared = await loop.run_in_executor(self._loader, self._read, self.folders[name])
        except HeadstartError as error:
            self.reasons[name] = str(error)
            raise
        except Exception as error:  # a folder half written over fails in many ways
            self.reasons[name] = f"{type(error).__name__}: {error}"
            raise BundleError(f"'{self.folders[name]}' cannot be loaded: {type(error).__name__}") from error
        self.reasons.pop(name, None)
        return Served(name, model, self.limits, self._network, lambda rows: self._watch(name, rows), shared)

    def _read(self, folder: Path) -> tuple[Bundle, int]:
        model = load(folder)
        return model, self._pool.share(model.model)

    def _replace(self, name: str, served: Served | None) -> None:
        old = self._live.pop(name, None)
        if served is not None:
            self._live[name] = served
        if old is not None:
            task = asyncio.create_task(self._retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _retire(self, served: Served) -> None:
        while self._users.get(served):
            await asyncio.sleep(0.01)
        await served.close()

    async def unload(self, name: str) -> None:
        """Take a model away; the requests that it has are answered. Raises Refused when it is not loaded."""
        async with self._changing:
            self.get(name)
            self._replace(name, None)

    async def close(self) -> None:
        """Answer what waits everywhere, then let go of everything."""
        for name in self.names:
            self._replace(name, None)
        await asyncio.gather(*self._retiring)
        self._network.shutdown(wait=True)
        self._loader.shutdown(wait=False)

    def index(self) -> list[dict[str, Any]]:
        """Every known name with its state, as the model repository extension lists them."""
        found = []
        for name in sorted(self.folders):
            served = self._live.get(name)
            entry = {"name": name, "state": "READY" if served else "UNAVAILABLE", "reason": ""}
            if served:
                entry["version"] = served.version
            else:
                entry["reason"] = "it could not be loaded" if name in self.reasons else "not loaded"
            found.append(entry)
        return found


def named(folders: list[Path], names: list[str]) -> dict[str, Path]:
    """Folders by the name that clients use: `names` in the same order, else the folder's own.

    Raises BundleError for two of the same name, a name that does not fit into an address, or a wrong number of names.
    """
    import re

    if names and len(names) != len(folders):
        raise BundleError(f"expected a --name for each of the {len(folders)} bundles, received {len(names)}")
    found: dict[str, Path] = {}
    for place, folder in enumerate(folders):
        name = names[place] if names else folder.resolve().name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise BundleError(f"'{name}' cannot be the name of a model: letters, digits, . _ and - only; pass --name")
        if name in found:
            raise BundleError(f"two bundles are called '{name}': pass --name for each")
        found[name] = folder
    return found
