"""The page that compares ways to a smaller model: what each step lost, and what it brought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstart.evaluation import plots, wording
from headstart.evaluation.page import _environment, _version


def render_compression(record: Mapping[str, Any]) -> str:
    """`compress.html` from `Compression.to_json()`."""
    table = [{**row, "number": None} for row in record["table"]]
    shown = [row for row in table if row["value"] is not None and row["latency_ms"] is not None]
    for place, row in enumerate(shown, 1):
        row["number"] = place
    best = next(row for row in table if row["best"])
    start = table[0]
    name = wording.metric_name(record["metric"])
    points = record["greater_is_better"] and 0 <= start["value"] <= 1
    floor = start["value"] - record["gate"] if points else None

    def plot(key: str, scale: float, label: str) -> Any:
        choices = [plots.Choice(row["name"], row[key] / scale, row["value"], False) for row in shown]
        marked = [plots.Choice(c.name, c.x, c.y, _front(c, choices, record["greater_is_better"])) for c in choices]
        return plots.trade_off(marked, title=f"{name} against {label}", x_label=label, y_label=name, floor=floor)

    return _environment().get_template("compress.html").render(
        version=_version(),
        r=record,
        metric=name,
        table=table,
        best=best,
        start=start,
        gate=f"{100 * record['gate']:g} %",
        floor=floor,
        tested=any(row["test"] is not None for row in table),

        by_time=plot("latency_ms", 1, "milliseconds for one row"),
        by_size=plot("bytes", 1e6, "megabytes of weights"),
    )  # fmt: skip


def _front(one: plots.Choice, choices: list[plots.Choice], greater: bool) -> bool:
    """Whether no other choice costs no more, is no worse, and is better in one of the two."""
    sign = 1 if greater else -1

    def beats(c: plots.Choice) -> bool:
        return c.x <= one.x and sign * c.y >= sign * one.y and (c.x, c.y) != (one.x, one.y)

    return not any(beats(c) for c in choices)
