"""The page that compares ways to a smaller model."""

from __future__ import annotations

from typing import Any

from headstart.evaluation.compression import render_compression
from headstart.evaluation.plots import Choice, trade_off


def row(name: str, value: float | None, ms: float | None, size: int, **more: Any) -> dict[str, Any]:
    found = {
        "name": name, "state": "done", "folder": None, "reason": "", "value": value, "test": None, "loss": 0.0,
        "agreement": 1.0, "gate": 0.01, "parameters": 1, "bytes": size, "latency_ms": ms, "rows_per_second": 10.0,
        "once": 1.0, "many": 1.0, "frontier": False, "best": False,
    }  # fmt: skip
    return {**found, **more}


def record(table: list[dict[str, Any]]) -> dict[str, Any]:
    return {"start": "runs/<b>", "metric": "accuracy", "greater_is_better": True, "rows": 100, "data": "test.csv",
            "gate": 0.01, "plans": [], "table": table, "best": "start"}  # fmt: skip


def test_every_model_is_shown_and_texts_are_escaped() -> None:
    page = render_compression(
        record(
            [
                row("start", 0.9, 10.0, 90_000_000, best=True, test=0.88),
                row("prune:0.4", 0.85, 8.0, 70_000_000, state="stopped", reason="loses 5 < 6"),
                row("distil:layers=9", None, None, 0, state="failed", reason="has 6 blocks"),
            ]
        )
    )
    assert "runs/&lt;b&gt;" in page and "loses 5 &lt; 6" in page and "has 6 blocks" in page
    assert "stopped by the gate" in page and "not possible" in page and ">0.880<" in page
    assert "so <code>best</code> is the start itself" in page and "the test rows chose nothing" in page
    assert page.count('class="plot') == 2 and "<script" not in page and "http" not in page


def test_the_best_is_named_with_what_it_brings() -> None:
    better = row("int8", 0.9, 2.5, 22_500_000, best=True, once=4.0, many=3.0)
    page = render_compression(record([row("start", 0.9, 10.0, 90_000_000), better]))
    assert "3.00\u00d7" in page and "<code>int8</code> is the fastest within the gate of 1 %" in page
    assert "22.5 MB" in page and "from 90.0 MB" in page
    assert "the test rows chose nothing" not in page


def test_choices_on_the_front_are_joined_and_those_that_cover_each_other_share_a_label() -> None:
    choices = [
        Choice("a", 10, 0.9, True),
        Choice("b", 10, 0.9, True),
        Choice("c", 2, 0.8, True),
        Choice("d", 9, 0.7, False),
    ]
    drawn = str(trade_off(choices, title="t", x_label="x", y_label="y", floor=0.75))
    assert ">1, 2</text>" in drawn and ">3</text>" in drawn
    assert drawn.count('class="dot s1"') == 3 and drawn.count('class="dot s2"') == 1
    assert drawn.count("<polyline") == 1 and 'class="ideal"' in drawn
    assert trade_off([], title="t", x_label="x", y_label="y") == ""
