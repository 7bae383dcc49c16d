"""What the processes do that the tests of a registry start and kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headstart as hs
from headstart.registry import copies
from headstart.registry.place import Registry

STEPS = ((copies, "_copy_file"), (copies, "_flush"), (Registry, "_list"), (Registry, "keep_stack"), (Registry, "point"),
         (Registry, "note"), (Registry, "_drop"), (Path, "rename"), (Path, "touch"), (os, "unlink"),
         (os, "rmdir"))  # fmt: skip
"""The functions that change something."""


def register(bundle: Path, registry: Path, alias: str | None = None) -> None:
    """Register a bundle as tickets."""
    hs.register(bundle, "tickets", alias=alias, registry=registry)


def promote(registry: Path) -> None:
    """Promote the challenger."""
    hs.promote("tickets", registry=registry, force="for the test")


def rollback(registry: Path) -> None:
    """Roll back."""
    hs.rollback("tickets", registry=registry)


def remove(registry: Path, keep: int) -> None:
    """Remove all versions that nobody needs but the newest."""
    hs.remove("tickets", keep=keep, registry=registry)


def until(step: int, work: Callable[..., None], *args: Any) -> None:
    """Do `work`, and die instead of changing something for the `step`-th time, counted from 1."""
    done = 0

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            nonlocal done
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        return counted

    for owner, name in STEPS:
        setattr(owner, name, counting(getattr(owner, name)))
    work(*args)


def hold(lock: Path) -> None:
    """Hold a lock until killed."""
    with copies.locked(lock):
        (lock.parent / "held").touch()
        signal.pause()
