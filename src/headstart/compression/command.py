"""`headstart export` and `headstart compress`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Folder = Annotated[Path, typer.Argument(help="a bundle's folder")]
Gate = Annotated[str | None, typer.Option(help="largest loss of the main metric, such as 0.5%; 1% when left out")]
Rows = Annotated[str | None, typer.Option(help="labelled rows to measure on, in any format that fit reads")]
OneTask = Annotated[str | None, typer.Option("--task", help="of a model with several tasks, this one")]
Json = Annotated[bool, typer.Option("--json", help="the last line of standard output is one JSON object or list")]


def _print(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str), flush=True)


def export(
    bundle: Folder,
    out: Annotated[Path, typer.Option(help="folder of the new bundle")],
    format: Annotated[str, typer.Option(help="onnx, openvino, or auto: the fastest on this machine")] = "onnx",
    quantize: Annotated[str | None, typer.Option(help="int8; full precision when left out")] = None,
    gate: Gate = None,
    rows: Rows = None,
    task: OneTask = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a bundle at --out")] = False,
    as_json: Json = False,
) -> None:
    """Write a bundle as one that another engine answers from, in full precision or 8 bits, with its measured loss."""
    from headstart.compression import export as made
    from headstart.terminal import Terminal

    found = made.export(
        bundle, out, format=format, quantize=quantize, gate=gate, rows=rows, task=task, overwrite=overwrite
    )
    for line in made.lines(found):
        Terminal().say(line)
    if as_json:
        _print(found.to_json())


def compress(
    bundle: Folder,
    out: Annotated[Path, typer.Option(help="folder for the steps, the table and the best")],
    plan: Annotated[
        list[str] | None, typer.Option(help="steps such as 'prune:0.4 distil:layers=3 int8'; repeat for alternatives")
    ] = None,
    prune: Annotated[float | None, typer.Option(help="share to prune: the plan of this one step")] = None,
    heal_epochs: Annotated[int | None, typer.Option(help="passes over the training rows after a cut; 2")] = None,
    gate: Gate = None,
    rows: Rows = None,
    train: Annotated[str | None, typer.Option(help="training rows, where those of the bundle have moved")] = None,
    task: OneTask = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="do steps again that --out holds")] = False,
    as_json: Json = False,
) -> None:
    """Make smaller, faster models of a finished one, step by step behind a gate, and compare what each is worth."""
    from headstart.compression import run
    from headstart.terminal import Terminal

    terminal = Terminal()
    try:
        found = run.compress(
            bundle, out, plan or (), prune=prune, heal_epochs=heal_epochs, gate=gate, rows=rows, train=train, task=task,
            overwrite=overwrite, listen=terminal,
        )  # fmt: skip
    finally:
        terminal.close()
    for line in run.lines(found):
        terminal.say(line)
    terminal.say(f"done: the best is in '{out / run.BEST}', the comparison in '{out / run.PAGE}'")
    if as_json:
        _print(found.to_json())
