"""What one does with a registry: register a bundle, look, promote behind a gate, roll back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headstart import bundle as bundles
from headstart.bundle import Bundle
from headstart.errors import GateError, HeadstartError, RegistryError, did_you_mean
from headstart.registry import gate as gates
from headstart.registry import history, records
from headstart.registry.place import Registry
from headstart.registry.records import CHALLENGER, CHAMPION, Version
from headstart.spec.notation import parse_gate

ALIASES = (CHAMPION, CHALLENGER)
PLACE = "registry"
"""The folder of the registry when none is named."""


@dataclass(frozen=True)
class Change:
    """Who serves now. before: the version that served until now, None where none did. forced: why a gate was passed by.

    judgement: what the gate measured, as plain JSON; None where nothing was.
    """

    name: str
    version: int
    before: int | None
    forced: str | None = None
    judgement: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return dict(vars(self))


def register(
    bundle: Bundle | str | Path,
    name: str,
    *,
    alias: str | None = None,
    tags: Mapping[str, str] | None = None,
    registry: str | Path = PLACE,
) -> Version:
    """Copy a bundle into the registry as the next version of the model `name`, with its lineage as tags.

    The registry is made where there is none. alias: 'challenger', or 'champion' for a model that has none yet: later
    champions are promoted. Raises RegistryError for a name, alias or tag that cannot be used, BundleError or ProofError
    for a bundle that cannot be loaded; nothing is registered then.
    """
    records.check_name(name)
    own = records.check_tags(tags or {})
    if alias is not None and alias not in ALIASES:
        raise RegistryError(
            f"expected --alias {' or '.join(ALIASES)}, received '{alias}': {did_you_mean(alias, ALIASES)}"
        )
    with _written(bundle) as folder:
        loaded = bundles.load(folder)
        place = Registry(registry, create=True)
        if alias == CHAMPION:
            _without_champion(place, name)
        version = place.add(name, loaded, folder, own, lambda made: _named(place, made, alias))
    return version if alias is None else place.version(name, version.version)


def _named(place: Registry, version: Version, alias: str | None) -> None:
    """Give a new version its alias."""
    if alias is None:
        return
    with place.lock():
        if alias == CHAMPION:
            _without_champion(place, version.name)
            _crown(place, version, None)
        else:
            place.point(version.name, alias, version.version)


@contextmanager
def _written(bundle: Bundle | str | Path) -> Iterator[Path]:
    """The folder of a bundle; one that lives in memory is written for a while."""
    if not isinstance(bundle, Bundle):
        yield Path(bundle)
        return
    with tempfile.TemporaryDirectory() as made:
        kept = bundle.folder
        try:
            yield bundle.save(Path(made) / "bundle")
        finally:
            bundle.folder = kept


def _without_champion(place: Registry, name: str) -> None:
    serving = place.holder(name, CHAMPION)
    if serving is not None:
        raise RegistryError(
            f"'{name}' has a champion, version {serving}, which only a promotion replaces: register this one with "
            f"--alias challenger, then 'headstart promote {name}'"
        )


def models(name: str | None = None, *, registry: str | Path = PLACE) -> list[Version]:
    """Every version of every model, or of one: by name, the newest first. Raises RegistryError for no such registry or
    name."""
    return Registry(registry).versions(name)


def promote(
    name: str,
    version: str | int = CHALLENGER,
    *,
    registry: str | Path = PLACE,
    test: str | Path | None = None,
    gate: str | float = 0.0,
    slices: Sequence[str] = (),
    latency_ms: float | None = None,
    force: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Change:
    """Make a version the champion, if it passes the gate against the one that is (`registry.gate`).

    version: a number or an alias. test: labelled rows; the champion's own test rows when left out. gate: largest loss
    of the main metric, such as `0.5%`. slices: columns; on the worst value of each the challenger may not be worse
    either. latency_ms: largest p50 of one row. force: a reason to promote whatever the figures are; it is kept in the
    registry. say: told the figures, a line at a time. The first champion has nobody to be compared with.

    Raises GateError, whose `figures` say what was measured, when the gate is not passed: nothing is changed then.
    RegistryError for a version that is not there, serves already or cannot be compared.
    """
    allowed = parse_gate(gate)
    if force is not None and not force.strip():
        raise RegistryError("expected a reason with --force, such as 'the old labels were wrong', received none")
    place = Registry(registry)
    chosen, serving = place.version(name, version), place.holder(name, CHAMPION)
    if serving == chosen.version:
        raise RegistryError(f"version {serving} of '{name}' is the champion already")
    with ExitStack() as using:  # so that nobody removes a version while it is measured

        def opened(version: Version) -> Bundle:
            return bundles.load(using.enter_context(place.using(version)))

        challenger = opened(chosen)
        judgement = None
        try:
            champion = None if serving is None else opened(place.version(name, serving))
            judgement = gates.judge(champion, challenger, test=test, gate=allowed, slices=slices, latency_ms=latency_ms)
        except HeadstartError as error:
            if force is None:
                raise
            say(f"not measured: {error}")
        return _decide(place, chosen, serving, judgement, force, say)


def _decide(
    place: Registry,
    chosen: Version,
    serving: int | None,
    judgement: gates.Judgement | None,
    force: str | None,
    say: Callable[[str], None],
) -> Change:
    """Say what was measured and make the version champion, or raise GateError."""
    name = chosen.name
    for line in gates.lines(judgement) if judgement is not None else ():
        say(line)
    figures = None if judgement is None else judgement.to_json()
    if judgement is not None and judgement.reasons and force is None:
        what = f"does not replace version {serving}" if serving is not None else "does not become the first champion"
        raise GateError(
            f"version {chosen.version} of '{name}' {what}: {'; '.join(judgement.reasons)}; nothing was changed "
            f"(--force REASON promotes it all the same)",
            {"promoted": False, "name": name, "version": chosen.version, "before": serving, "judgement": figures},
        )
    _take_over(place, chosen, serving, force, figures)
    return Change(name, chosen.version, serving, force, figures)


def _take_over(
    place: Registry, version: Version, serving: int | None, force: str | None, figures: dict[str, Any] | None
) -> None:
    """Make a version the champion in place of the one that it was measured against. Raises RegistryError."""
    with place.lock():
        now = place.holder(version.name, CHAMPION)
        if now != serving:
            raise RegistryError(
                f"the champion of '{version.name}' changed from version {serving} to {now} while version "
                f"{version.version} was measured: promote again"
            )
        if force is not None:
            place.note(version, "forced", force)
        _crown(place, version, serving)
        if figures is not None and (figures["measured"] or figures["latency_ms"]):
            place.note(version, "gate", json.dumps(figures))


def _crown(place: Registry, version: Version, serving: int | None) -> None:
    """Make a version the champion; the order of the writes is that of `registry.history`."""
    served = history.up_to(history.read(place.stack(version.name)), serving)
    place.keep_stack(version.name, history.write([*served, version.version]))
    place.point(version.name, CHAMPION, version.version)
    if place.holder(version.name, CHALLENGER) == version.version:
        place.point(version.name, CHALLENGER, None)
    place.note(version, "promoted", _now())


def rollback(name: str, *, registry: str | Path = PLACE) -> Change:
    """Make the version champion again that was it before; a second time goes further back.

    Its bundle proves itself first. Raises RegistryError where no version was champion before, BundleError or ProofError
    for one that cannot be loaded; nothing is changed then.
    """
    place = Registry(registry)
    with place.lock():
        there = {version.version: version for version in place.versions(name)}
        serving = place.holder(name, CHAMPION)
        if serving is None:
            raise RegistryError(f"'{name}' has no champion: 'headstart promote {name} VERSION' makes one")
        stack = place.stack(name)
        served = history.up_to(history.read(stack), serving)
        previous = history.before(served, serving, there)
        if previous is None:
            raise RegistryError(
                f"no version of '{name}' was champion before version {serving}: there is nothing to go back to"
            )
        bundles.load(place.fetch(there[previous]))
        if history.write(served) != stack:  # left by a rollback that was cut off, and misread after a second one
            place.keep_stack(name, history.write(served))
        place.point(name, CHAMPION, previous)
        place.keep_stack(name, history.write(history.up_to(served[:-1], previous)))
        if serving in there:
            place.note(there[serving], "rolled_back", _now())
    return Change(name, previous, serving)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def table(versions: Sequence[Version]) -> list[str]:
    """Versions for the terminal, one a line."""
    heads = ("name", "version", "alias", "metric", "size", "registered (UTC)")
    rows = [
        (
            each.name,
            str(each.version),
            ", ".join(each.aliases) or "-",
            _figure(each),
            f"{each.bytes / 1e6:.1f} MB",
            each.when.strftime("%Y-%m-%d %H:%M"),
        )
        for each in versions
    ]
    widths = [max(len(row[place]) for row in (heads, *rows)) for place in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)
    ]


def _figure(version: Version) -> str:
    if version.value is None:
        return "-"
    interval = "" if version.low is None or version.high is None else f" [{version.low:.4f}, {version.high:.4f}]"
    return f"{version.metric} {version.value:.4f}{interval} ({version.split})"
