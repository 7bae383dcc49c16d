"""The models of a server: by name, loaded, swapped and let go while requests go on.

With a budget of memory, those that were not asked for longest rest: their weights are let go, and the next request
brings them back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from headstart import heap
from headstart.errors import BundleError, HeadstartError, SpecError
from headstart.registry import copies
from headstart.serve.joining import House
from headstart.serve.lane import Lane
from headstart.serve.limits import Limits
from headstart.serve.refusals import Refused
from headstart.serve.served import Face, Served, told
from headstart.serve.sharing import Pool, held
from headstart.serve.trunk import Tenant, Trunk


class Models:
    """Names and the folders they may be loaded from, fixed when the server starts: a request can only name a name.

    watch: told name and rows of each batch. memory: bytes of weights above which idle models rest; None is no bound.
    say: told an event and its facts, for the log.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        limits: Limits,
        watch: Callable[[str, int], None] = lambda name, rows: None,
        *,
        memory: int | None = None,
        say: Callable[..., None] = lambda event, **facts: None,
    ) -> None:
        self.folders = dict(folders)
        self.limits, self.memory = limits, memory
        self.reasons: dict[str, str] = {}
        self._watch, self._say = watch, say
        self._live: dict[str, Served] = {}  # the one that was asked for longest ago comes first
        self._resting: dict[str, Face] = {}
        self._held: dict[str, ExitStack] = {}  # keeps the folders from being removed from a registry
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._wanted: Counter[str] = Counter()  # requests that wait for a model to wake
        self._over = False
        self._users: dict[Served, int] = {}
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._house = House(Pool().share)
        self._lanes: dict[Trunk, Lane] = {}
        # One thread for all networks: each already uses the machine's cores, and two at once would share them.
        self._network = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    @property
    def names(self) -> list[str]:
        """Those that can be asked: loaded, or resting."""
        return sorted([*self._live, *self._resting])

    @property
    def loaded(self) -> list[Served]:
        """Those whose weights are in memory."""
        return [self._live[name] for name in sorted(self._live)]

    @property
    def bytes(self) -> int:
        """Bytes of the weights in memory, each counted once."""
        return held(served.bundle for served in self._live.values())

    def __iter__(self) -> Iterator[Face]:
        return iter([self.get(name) for name in self.names])

    def get(self, name: str, version: str | None = None) -> Face:
        """What is known of a model that can be asked; it stays as it is if the model is loaded (`Served`) or rests.

        Raises Refused: 404 for an unknown name or version, 503 for a model that is not loaded.
        """
        served = self._live.get(name) or self._resting.get(name)
        if served is None:
            if name in self.folders:
                raise Refused(503, f"the model '{name}' is not loaded")
            raise Refused(404, f"there is no such model; loaded: {', '.join(self.names) or 'none'}")
        if version is not None and version != served.version:
            raise Refused(404, f"the model '{name}' has the version {served.version} and no other")
        return served

    @asynccontextmanager
    async def use(self, name: str, version: str | None = None) -> AsyncIterator[Served]:
        """A model that stays until the block is left, even if it is swapped or unloaded meanwhile.

        One that rests is loaded first. Raises Refused as `get` does, and 503 where it cannot be loaded any more.
        """
        self._wanted[name] += 1
        try:
            while not isinstance(served := self.get(name, version), Served):
                await self._wake(name)
        finally:
            self._wanted -= Counter([name])
        self._live[name] = self._live.pop(name)
        self._users[served] = self._users.get(served, 0) + 1
        try:
            yield served
        finally:
            self._users[served] -= 1
            if not self._users[served]:
                del self._users[served]
                if self._over:
                    self._rest()

    async def _wake(self, name: str) -> None:
        """Load a model that rests; those who ask meanwhile wait for the same load, which goes on if they leave."""
        task = self._waking.get(name)
        if task is None:
            task = self._waking[name] = asyncio.create_task(self._return(name))
            task.add_done_callback(lambda done: self._woken(name, done))
        await asyncio.shield(task)

    def _woken(self, name: str, task: asyncio.Task[None]) -> None:
        del self._waking[name]
        if not task.cancelled():
            task.exception()  # told to those who wait; nobody may be left

    async def _return(self, name: str) -> None:
        async with self._changing:
            if name not in self._resting:
                return
            try:
                served = await self._open(name)
            except HeadstartError:
                self._say("load failed", model=name, reason=self.reasons.get(name))
                raise Refused(503, f"the model '{name}' cannot be loaded again, see the server's log") from None
            if name not in self._resting:  # closed meanwhile
                await self._retire(served)
                return
            self._say("loaded", model=name, version=served.version, shared_bytes=served.shared)
            served.created = self._resting[name].created
            self._replace(name, served)

    def _rest(self, fresh: Served | None = None) -> None:
        """Let idle models rest, longest unused first, until the weights fit into the budget. fresh: not this one."""
        if self.memory is None:
            return
        while self._over_budget():
            idle = next((each for each in self._live.values() if each is not fresh and self._idle(each)), None)
            if idle is None:
                return
            self._say("resting", model=idle.name)
            self._replace(idle.name, None)
            self._resting[idle.name] = idle.resting()

    def _idle(self, served: Served) -> bool:
        return not self._users.get(served) and not self._wanted[served.name]

    def _over_budget(self) -> bool:
        self._over = self.memory is not None and self.bytes > self.memory
        return self._over

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
        """Load every model; those that do not fit into the budget rest when they have proven themselves.

        Raises BundleError or ProofError for the first that cannot be loaded, SpecError for a budget below one model.
        """
        for name in self.folders:
            served = await self._open(name)
            needed = held([served.bundle])
            if self.memory is not None and needed > self.memory:
                await self._retire(served)
                raise SpecError(
                    f"expected a budget of memory of at least {-(-needed // 10**6)}MB, which the weights of '{name}' "
                    f"take by themselves, received {self.memory / 1e6:g}MB: raise --memory or leave it out"
                )
            self._replace(name, served)

    async def _open(self, name: str) -> Served:
        loop = asyncio.get_running_loop()
        with ExitStack() as held:
            try:
                model, shared = await loop.run_in_executor(self._loader, self._read, self.folders[name], held)
            except HeadstartError as error:
                self.reasons[name] = str(error)
                raise
            except Exception as error:  # a folder half written over fails in many ways
                self.reasons[name] = f"{type(error).__name__}: {error}"
                raise BundleError(f"'{self.folders[name]}' cannot be loaded: {type(error).__name__}") from error
            self._free(name)
            self._held[name] = held.pop_all()
        self.reasons.pop(name, None)
        lane = self._lane(model.model, model) if isinstance(model.model, Tenant) else None
        return Served(name, model, self.limits, self._network, lambda rows: self._watch(name, rows), shared, lane)

    def _read(self, folder: Path, held: ExitStack) -> tuple[Any, int]:
        """As `House.read`. held: as long as it is open, `headstart remove` takes the folder as used."""
        if (folder / "bundle.json").is_file():
            with suppress(OSError):  # some file systems have no locks
                held.enter_context(copies.used(folder))
        return self._house.read(folder)

    def _free(self, name: str) -> None:
        """What is not loaded again may be removed: on its way out it answers from memory."""
        if name in self._held:
            self._held.pop(name).close()

    def _lane(self, tenant: Tenant, model: Any) -> Lane:
        """The queue of a shared backbone."""
        trunk = tenant.trunk
        if trunk not in self._lanes:

            def network(batch: Any, owners: Iterable[Any]) -> Any:
                features, outputs = trunk.answer(batch, [owner.bundle.model for owner in owners])
                return features.pooled, outputs

            self._lanes[trunk] = Lane(model.modality, trunk.backbone, network, self._network, self.limits, told)
        return self._lanes[trunk]

    def _replace(self, name: str, served: Served | None) -> None:
        old = self._live.pop(name, None)
        self._resting.pop(name, None)
        if served is not None:
            self._live[name] = served
            self._rest(served)
        if old is not None:
            task = asyncio.create_task(self._retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _retire(self, served: Served) -> None:
        while self._users.get(served):
            await asyncio.sleep(0.01)
        await served.close()
        tenant = served.bundle.model
        if isinstance(tenant, Tenant) and self._house.release(tenant.trunk):
            await self._lanes.pop(tenant.trunk).close()
        asyncio.get_running_loop().call_soon(self._loader.submit, heap.give_back)  # once nothing here holds the weights

    async def unload(self, name: str) -> None:
        """Take a model away; the requests that it has are answered. Raises Refused when it is not loaded."""
        async with self._changing:
            self.get(name)
            self._replace(name, None)

    def forget(self, name: str) -> None:
        """A name that was unloaded cannot be loaded again, and its folder may be removed."""
        self.folders.pop(name, None)
        self._free(name)

    async def close(self) -> None:
        """Answer what waits everywhere, then let go of everything."""
        await asyncio.gather(*self._waking.values(), return_exceptions=True)
        for name in self.names:
            self._replace(name, None)
        await asyncio.gather(*self._retiring)
        await asyncio.sleep(0)
        self._network.shutdown(wait=True)
        self._loader.shutdown(wait=False)
        for name in list(self._held):
            self._free(name)

    def index(self) -> list[dict[str, Any]]:
        """Every known name with its state, as the model repository extension lists them."""
        found = []
        for name in sorted(self.folders):
            served = self._live.get(name) or self._resting.get(name)
            entry = {"name": name, "state": "READY" if served else "UNAVAILABLE", "reason": ""}
            if served:
                entry["version"] = served.version
                entry["reason"] = "" if name in self._live else "not in memory: the next request loads it"
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
