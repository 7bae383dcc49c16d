"""The verb `explain` of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headstart.errors import SpecError

if TYPE_CHECKING:
    from headstart.explanation.attribution import Explanation

MOST = 20
"""Words that are listed, those of the largest weights."""

BAR = 24
"""Characters of the longest bar."""


def explain(
    bundle: Annotated[Path, typer.Argument(help="a bundle's folder")],
    row: Annotated[str, typer.Argument(help="a text, or the file of a picture")],
    label: Annotated[str | None, typer.Option(help="whose score to explain; the predicted one when left out")] = None,
    task: Annotated[str | None, typer.Option("--task", help="of a model with several tasks, this one")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="gradients to take; as many as needed when left out")] = None,
    out: Annotated[Path | None, typer.Option(help="for a picture: a .png of it under its heat map")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="the last line of standard output is one JSON object or list")
    ] = False,
) -> None:
    """Show which words of a text, or parts of a picture, speak for an answer and which against it."""
    from headstart.bundle import load
    from headstart.explanation.attribution import explain as run
    from headstart.explanation.picture import overlay
    from headstart.terminal import Terminal

    model = load(bundle, report=False)
    image = model.modality.name == "image"
    if out is not None and (not image or out.suffix.lower() != ".png"):
        raise SpecError(f"expected --out as a .png, for the heat map of a picture, received '{out}'")
    found = run(model, row, label=label, task=task, steps=steps)
    terminal = Terminal()
    for line in lines(found):
        terminal.say(line)
    if out is not None:
        overlay(found).save(out)
        terminal.say(f"done: the heat map is in '{out}'")
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False), flush=True)


def lines(found: Explanation) -> list[str]:
    """An explanation for the terminal: the words by weight, or where in the picture the weights are."""
    what = f"{found.task}: {found.label}" if found.task else found.label
    scores = f"{what} {found.score:.4f}"
    if found.heat is not None:
        return [f"{scores}, blurred {found.baseline:.4f}; what is lost when one part is blurred:", *_parts(found)]
    said = [f"{scores}, with nothing in the row {found.baseline:.4f}; what made the difference:"]
    ranked = sorted(found.words, key=lambda word: -abs(word[2]))
    top = max((abs(weight) for _, _, weight in ranked), default=0.0) or 1.0
    text = found.text or ""
    names = [" ".join(text[start:end].split())[:30] for start, end, _ in ranked[:MOST]]
    width = max(map(len, names), default=0)
    for name, (_, _, weight) in zip(names, ranked, strict=False):
        said.append(
            f"  {weight:+.4f}  {name:{width}s}  {('+' if weight > 0 else '-') * round(BAR * abs(weight) / top)}"
        )
    if len(ranked) > MOST:
        said.append(f"  {sum(weight for _, _, weight in ranked[MOST:]):+.4f}  in {len(ranked) - MOST} more words")
    if not found.whole:
        said.append("  the end of the text is beyond what this model reads")
    return said


def _parts(found: Explanation) -> list[str]:
    """The heat of each part of the picture, as it lies there."""
    assert found.heat is not None
    return [" ".join(f"{weight:+.3f}" for weight in row) for row in found.heat.tolist()]
