"""A server that serves what a registry says: the champion of every model, also after it has changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from headstart.errors import HeadstartError
from headstart.registry.place import Registry
from headstart.serve.logs import Log
from headstart.serve.models import Models
from headstart.serve.refusals import Refused

RETRY = 60.0
"""Seconds until a champion that could not be loaded is tried again: most causes do not go away by themselves."""


class Following:
    """Keeps the models of a server as the registry has them. poll: seconds between two looks.

    Folders of bundles come from the registry alone, never from a request. retry: as `RETRY`.
    """

    def __init__(self, registry: str, models: Models, log: Log, poll: float, retry: float = RETRY) -> None:
        self.registry, self.models, self.log = registry, models, log
        self.poll, self.retry = poll, retry
        self.live: dict[str, int] = {}
        self._place: Registry | None = None
        self._failed: dict[str, tuple[int, float]] = {}
        self._trouble: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load every champion, then go on looking. Raises RegistryError where there is no registry.

        A champion that cannot be loaded does not keep the others from being served: the log says why.
        """
        self._place = await self._ask(Registry, self.registry)
        await self.look()
        self._task = asyncio.create_task(self._go_on())

    def stop(self) -> None:
        """Look no more; what is served stays."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=False)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(self.poll)
            try:
                await self.look()
            except Exception as error:  # whatever it was, the next look may go well
                self.log.failure(error, registry=self.registry)

    async def look(self) -> None:
        """Ask who the champions are and load those that are new. What cannot be read changes nothing."""
        assert self._place is not None
        try:
            champions = await self._ask(self._place.champions)
        except HeadstartError as error:
            if str(error) != self._trouble:
                self.log.say("registry not readable", reason=str(error))
            self._trouble = str(error)
            return
        if self._trouble is not None:
            self.log.say("registry readable again")
        self._trouble = None
        for name in sorted(self.live.keys() - champions.keys()):
            await self._let_go(name)
        for name, version in sorted(champions.items()):
            if self.live.get(name) != version and self._due(name, version):
                await self._follow(name, version)

    def _due(self, name: str, version: int) -> bool:
        failed, again = self._failed.get(name, (None, 0.0))
        return failed != version or time.monotonic() >= again

    async def _follow(self, name: str, version: int) -> None:
        with ExitStack() as held:  # then the models hold it themselves
            try:
                served = await self.models.load(name, await self._ask(self._folder, name, version, held))
            except (HeadstartError, Refused) as error:
                reason = self.models.reasons.get(name) if isinstance(error, Refused) else str(error)
                if self._failed.get(name, (None, 0.0))[0] != version:
                    kept = self.live.get(name)
                    self.log.say("load failed", model=name, champion=version, goes_on=kept, reason=reason)
                self._failed[name] = (version, time.monotonic() + self.retry)
                return
        self._failed.pop(name, None)
        self.live[name] = version
        self.log.say("loaded", model=name, version=served.version, champion=version, shared_bytes=served.shared)

    def _folder(self, name: str, version: int, held: ExitStack) -> Path:
        assert self._place is not None
        return held.enter_context(self._place.using(self._place.version(name, version)))

    async def _let_go(self, name: str) -> None:
        """A model that has no champion any more is served no more."""
        with suppress(Refused):  # somebody unloaded it before
            await self.models.unload(name)
        self.models.forget(name)
        self.log.say("unloaded", model=name, champion=self.live.pop(name))

    async def _ask(self, what: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what, *args)
