"""Removing versions that nobody needs any more, with their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headstart.errors import RegistryError
from headstart.registry import history
from headstart.registry.place import Registry
from headstart.registry.records import CHALLENGER, CHAMPION, Version, check_name

_FREED = {
    CHAMPION: "promote another one first",
    CHALLENGER: "promote it, or register another one with --alias challenger first",
}


@dataclass(frozen=True)
class Removal:
    """What went, or would go. removed: the versions, oldest first. bytes: of their files.

    kept: those that are not among the newest and stay, with the reason. left: how many versions there are now. back:
    the one that `rollback` goes back to from now on, None where there is none; moved: whether it was another one until
    now. dry_run: whether nothing was done.
    """

    name: str
    removed: tuple[int, ...]
    bytes: int
    kept: Mapping[int, str]
    left: int
    back: int | None
    moved: bool
    dry_run: bool
    stayed: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        whys = {key: {str(n): why for n, why in getattr(self, key).items()} for key in ("kept", "stayed")}
        return {**vars(self), "removed": list(self.removed), **whys}


def remove(
    name: str,
    versions: Sequence[int | str] = (),
    *,
    keep: int | None = None,
    dry_run: bool = False,
    registry: str | Path = "registry",
    say: Callable[[str], None] = lambda line: None,
) -> Removal:
    """Remove versions of a model and their files: those that are named, or all but the newest that nobody needs.

    versions: their numbers; all of them go or, when one cannot, none. keep: in place of numbers, how many of the newest
    stay; so do those that have an alias, the one that `rollback` goes back to, and those that a process reads or
    serves. dry_run: change nothing. say: told a line for each version that goes and for each that stays all the same.

    A process that is killed at any moment leaves each version listed and whole, or not listed; files that it left are
    removed by the next `register` or `remove` of this model. Numbers are not given again.
    Raises RegistryError for a version that is not there, has an alias, or is read or served by a process.
    """
    if (keep is None) == (not versions):
        raise RegistryError("expected either numbers of versions to remove, such as 3, or --keep and how many to keep")
    check_name(name)  # it also names a folder
    if keep is not None and keep < 0:
        raise RegistryError(f"expected --keep of 0 or more, received {keep}")
    place = Registry(registry)
    # A dry run takes no turn, so that it writes nothing and waits for nobody.
    with nullcontext() if dry_run else place.turn(), ExitStack() as held:
        if not dry_run:
            place.sweep(name)
        with nullcontext() if dry_run else place.lock():
            going, done = _choose(place, name, versions, keep, dry_run, held)
            for version in () if dry_run else going:
                place.unlist(version)
        stayed = {} if dry_run else {version.version: place.discard(version) for version in going}
    done = replace(done, stayed={number: why for number, why in stayed.items() if why})
    for version in going:
        say(f"{'would remove' if dry_run else 'removed'} version {version.version}, {version.bytes / 1e6:.1f} MB")
    for number, why in done.stayed.items():
        say(f"version {number} is not listed any more, and its files are still there: {why}")
    for number, why in done.kept.items():
        say(f"kept version {number}: {why}")
    if done.moved:
        say(f"rollback goes back to {'no version' if done.back is None else f'version {done.back}'} from now on")
    return done


def _choose(
    place: Registry, name: str, numbers: Sequence[int | str], keep: int | None, dry_run: bool, held: ExitStack
) -> tuple[list[Version], Removal]:
    """Which versions go, the oldest first. held: as long as it is open, no other process begins to read them."""
    there = {version.version: version for version in reversed(place.versions(name))}
    serving, served = place.holder(name, CHAMPION), history.read(place.stack(name))
    back = None if serving is None else history.before(served, serving, there)
    if keep is None:
        asked = {place.version(name, number).version for number in numbers}
        chosen = [version for number, version in there.items() if number in asked]
    else:
        chosen = list(there.values())[: max(0, len(there) - keep)]
    going, kept = [], {}
    for version in chosen:
        why, advice = _needed(version, None if keep is None else back)
        if not why and not held.enter_context(place.unused(version)):
            why, advice = "a process reads or serves it", "try again when that has ended"
        if why and keep is None:
            raise RegistryError(f"version {version.version} of '{name}' is not removed: {why}; {advice}")
        if why:
            kept[version.version] = why
        else:
            going.append(there.pop(version.version))
    gone = tuple(version.version for version in going)
    size = sum(version.bytes for version in going)
    now = None if serving is None else history.before(served, serving, there)
    return going, Removal(name, gone, size, kept, len(there), now, now != back, dry_run)


def _needed(version: Version, back: int | None) -> tuple[str, str]:
    """Why a version has to stay and what frees it; empty texts where it may go."""
    if version.aliases:
        alias = version.aliases[0]
        why = f"it is the {alias}" if alias in _FREED else f"it has the alias '{alias}'"
        return why, _FREED.get(alias, "take the alias away first")
    return ("rollback goes back to it", "") if version.version == back else ("", "")
