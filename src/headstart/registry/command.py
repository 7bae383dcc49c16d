"""The verbs `register`, `models`, `promote`, `rollback` and `remove` of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from headstart.errors import GateError, RegistryError

Name = Annotated[str, typer.Argument(help="of the model in the registry")]
Place = Annotated[
    str, typer.Option("--registry", help="its folder, sqlite:///FILE.db, or the address of an MLflow server")
]
Json = Annotated[bool, typer.Option("--json", help="the last line of standard output is one JSON object or list")]
HERE = "registry"


def register(
    bundle: Annotated[Path, typer.Argument(help="a bundle's folder")],
    name: Annotated[str, typer.Option(help="of the model; the bundle becomes its next version")],
    alias: Annotated[str | None, typer.Option(help="challenger, or champion for a model that has none yet")] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="key=value to keep with the version; repeat it")
    ] = None,
    registry: Place = HERE,
    as_json: Json = False,
) -> None:
    """Copy a bundle into a registry as the next version of a model, with its lineage."""
    from headstart.registry import verbs
    from headstart.terminal import Terminal

    tags = {}
    for text in tag or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RegistryError(f"expected --tag key=value, received '{text}'")
        tags[key.strip()] = value
    made = verbs.register(bundle, name, alias=alias, tags=tags, registry=registry)
    serves = f", {alias}" if alias else ""
    Terminal().say(f"done: version {made.version} of '{name}'{serves}, in the registry '{registry}'")
    if as_json:
        _print_json(made.to_json())


def models(
    name: Annotated[str | None, typer.Argument(help="only this model")] = None,
    registry: Place = HERE,
    as_json: Json = False,
) -> None:
    """List the models of a registry: versions, aliases, main metric, when."""
    from headstart.registry import verbs

    found = verbs.models(name, registry=registry)
    if as_json:
        _print_json([version.to_json() for version in found])
    else:
        print("\n".join(verbs.table(found)))


def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="a number or an alias")] = "challenger",
    test: Annotated[
        str | None, typer.Option(help="labelled rows to measure on; the champion's test rows when left out")
    ] = None,
    gate: Annotated[str, typer.Option(help="largest loss of the main metric, such as 0.5%")] = "0%",
    slice_: Annotated[
        list[str] | None, typer.Option("--slice", help="a column; its worst value may not be worse either")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(min=0.0, help="largest median time of one row, measured on this machine")
    ] = None,
    force: Annotated[str | None, typer.Option(help="a reason to promote it all the same; it is kept")] = None,
    registry: Place = HERE,
    as_json: Json = False,
) -> None:
    """Make a version the champion, if it is no worse than the champion on the same rows."""
    from headstart.registry import verbs
    from headstart.terminal import Terminal

    terminal = Terminal()
    try:
        done = verbs.promote(
            name, version, registry=registry, test=test, gate=gate, slices=slice_ or (), latency_ms=latency_ms,
            force=force, say=terminal.say,
        )  # fmt: skip
    except GateError as error:
        if as_json:
            _print_json(error.figures)
        raise
    before = "the first" if done.before is None else f"in place of version {done.before}"
    terminal.say(f"done: version {done.version} of '{name}' is the champion, {before}")
    if as_json:
        _print_json({"promoted": True, **done.to_json()})


def rollback(name: Name, registry: Place = HERE, as_json: Json = False) -> None:
    """Make the version champion again that was it before."""
    from headstart.registry import verbs
    from headstart.terminal import Terminal

    done = verbs.rollback(name, registry=registry)
    Terminal().say(f"done: version {done.version} of '{name}' is the champion again, in place of version {done.before}")
    if as_json:
        _print_json(done.to_json())


def remove(
    name: Name,
    versions: Annotated[list[str] | None, typer.Argument(help="numbers of versions that are to go")] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="instead of numbers: all go but so many of the newest and what is needed")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go and how large it is, and stop")] = False,
    registry: Place = HERE,
    as_json: Json = False,
) -> None:
    """Remove old versions and their files, never one with an alias or one that is being served."""
    from headstart.registry import removal
    from headstart.terminal import Terminal

    terminal = Terminal()
    done = removal.remove(name, versions or (), keep=keep, dry_run=dry_run, registry=registry, say=terminal.say)
    many = "1 version" if len(done.removed) == 1 else f"{len(done.removed)} versions"
    what = "would go" if dry_run else "removed"
    terminal.say(f"done: {many} of '{name}' {what}, {done.bytes / 1e6:.1f} MB; {done.left} left")
    if as_json:
        _print_json(done.to_json())


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str), flush=True)
