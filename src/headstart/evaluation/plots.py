"""Small plots as inline SVG. Colours are CSS classes of the page, so that they follow its light or dark theme.

Every function returns Markup; every text that comes from data goes through `markupsafe.escape`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

COLOURS = 6
"""Distinct series colours of the page, `s1` to `s6`; further series repeat them with other dashes."""


@dataclass(frozen=True)
class Series:
    """A line: points (x, y) in order, each with an interval (low, high) or None."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float] | None] = field(default=())


@dataclass(frozen=True)
class _Frame:
    """Maps data to pixels inside the margins; `log` puts x on a logarithmic axis."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False
    left: int = 52
    right: int = 22
    top: int = 12
    bottom: int = 40

    def px(self, value: float) -> float:
        low, high, at = (math.log(v) for v in (*self.x, value)) if self.log else (*self.x, value)
        return self.left + (at - low) / ((high - low) or 1) * (self.width - self.left - self.right)

    def py(self, value: float) -> float:
        low, high = self.y
        return self.height - self.bottom - (value - low) / ((high - low) or 1) * (self.height - self.top - self.bottom)


def _svg(width: int, height: int, title: str, body: str, style: str = "") -> Markup:
    """`body` is markup made here, with its texts escaped."""
    return Markup(
        f'<svg class="plot {style}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def _text(x: float, y: float, text: object, style: str = "tick", anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def _turned(x: float, y: float, text: object, angle: int, style: str = "label", anchor: str = "middle") -> str:
    turn = f'transform="rotate({angle} {x:.1f} {y:.1f})"'
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}" {turn}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _rect(x: float, y: float, width: float, height: float, style: str, title: object = "", more: str = "") -> str:
    tip = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0, width):.1f}" height="{max(0, height):.1f}" class="{style}" '
        f"{more}>{tip}</rect>"
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, about)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round((first + k) * step, 10) for k in range(int((high - first * step) / step + 1e-9) + 1)]


def number(value: float | None) -> str:
    """A number for an axis: 1,200, 12k, 0.25."""
    if value is None:
        return ""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _axes(frame: _Frame, x_ticks: Sequence[float], x_label: str, y_label: str, y_ticks: Sequence[float]) -> str:
    parts = []
    for value in y_ticks:
        parts.append(_line(frame.left, frame.py(value), frame.width - frame.right, frame.py(value), "grid"))
        parts.append(_text(frame.left - 7, frame.py(value) + 4, number(value), anchor="end"))
    base = frame.height - frame.bottom
    parts.append(_line(frame.left, base, frame.width - frame.right, base, "axis"))
    for value in x_ticks:
        parts.append(_text(frame.px(value), base + 16, number(value)))
    parts.append(_text((frame.left + frame.width - frame.right) / 2, frame.height - 5, x_label, "label"))
    parts.append(_turned(13, (frame.top + base) / 2, y_label, -90))
    return "".join(parts)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    x_ticks: Sequence[float] | None = None,
    width: int = 460,
    height: int = 260,
) -> Markup:
    """Lines with their points; an interval becomes a whisker. Empty markup when there is no point."""
    points = [point for one in series for point in one.points]
    if not points:
        return Markup("")
    ends = [end for one in series for pair in one.intervals if pair for end in pair]
    ys = [y for _, y in points] + ends
    margin = (max(ys) - min(ys)) * 0.08 or abs(ys[0]) * 0.05 or 0.5
    xs = [x for x, _ in points]
    log = log and min(xs) > 0
    spread = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) * 0.5, max(xs) * 1.5 or 1.0)
    span = (min(ys) - margin, max(ys) + margin)
    widest = max(len(number(value)) for value in ticks(*span))
    frame = _Frame(width, height, spread, span, log, left=34 + 7 * widest)
    marks = sorted(set(xs)) if x_ticks is None and (log or len(set(xs)) <= 8) else (x_ticks or ticks(*spread))
    body = _axes(frame, _apart(frame, marks), x_label, y_label, ticks(*frame.y))
    drawn = "".join(_drawn(frame, one, place) for place, one in enumerate(series))
    return _svg(width, height, title, body + drawn, "wide" if width > 600 else "")


def _apart(frame: _Frame, marks: Sequence[float]) -> list[float]:
    """The ticks whose labels do not run into the one before."""
    kept: list[float] = []
    for value in marks:
        if not kept or frame.px(value) - frame.px(kept[-1]) >= 6 * len(number(value)) + 8:
            kept.append(value)
    return kept


def _drawn(frame: _Frame, series: Series, place: int) -> str:
    colour = f"s{place % COLOURS + 1}"
    dash = "" if place < COLOURS else " dashed"
    path = " ".join(f"{frame.px(x):.1f},{frame.py(y):.1f}" for x, y in series.points)
    parts = [f'<polyline points="{path}" class="line {colour}{dash}"/>'] if len(series.points) > 1 else []
    shift = (place - 1) * 2.5 if series.intervals else 0
    for index, (x, y) in enumerate(series.points):
        pair = series.intervals[index] if index < len(series.intervals) else None
        if pair is not None:
            parts.append(
                _line(
                    frame.px(x) + shift, frame.py(pair[0]), frame.px(x) + shift, frame.py(pair[1]), f"whisker {colour}"
                )
            )
        tip = f"{series.name}: {y:.4g} at {number(x)}" + (f" [{pair[0]:.4g}, {pair[1]:.4g}]" if pair else "")
        parts.append(
            f'<circle cx="{frame.px(x) + (shift if pair else 0):.1f}" cy="{frame.py(y):.1f}" r="3.2" '
            f'class="dot {colour}"><title>{escape(tip)}</title></circle>'
        )
    return "".join(parts)


def reliability_diagram(bins: Sequence[Mapping[str, Any]], width: int = 340, height: int = 320) -> Markup:
    """Accuracy against confidence, bin by bin, with the gap to the diagonal and the share of rows below."""
    frame = _Frame(width, height, (0, 1), (0, 1), bottom=84)
    total = sum(record["count"] for record in bins) or 1
    marks = [0, 0.25, 0.5, 0.75, 1]
    parts = []
    for value in marks:
        parts.append(_line(frame.left, frame.py(value), width - frame.right, frame.py(value), "grid"))
        parts.append(_text(frame.left - 7, frame.py(value) + 4, number(value), anchor="end"))
    strip = height - 42
    for record in bins:
        if not record["count"]:
            continue
        x, across = frame.px(record["low"]), frame.px(record["high"]) - frame.px(record["low"])
        accuracy, confidence = record["accuracy"], record["confidence"]
        tip = f"confidence {confidence:.3f}, right {accuracy:.3f}, {record['count']} answers"
        parts.append(_rect(x + 1, frame.py(accuracy), across - 2, frame.py(0) - frame.py(accuracy), "bar s1", tip))
        if confidence > accuracy:
            missing = frame.py(accuracy) - frame.py(confidence)
            parts.append(_rect(x + 1, frame.py(confidence), across - 2, missing, "gap", tip))
        tall = 30 * math.sqrt(record["count"] / total)
        parts.append(_rect(x + 1, strip - tall, across - 2, tall, "bar quiet", tip))
    parts.append(_line(frame.px(0), frame.py(0), frame.px(1), frame.py(1), "ideal"))
    parts.append(_line(frame.left, frame.py(0), width - frame.right, frame.py(0), "axis"))
    parts.append(_line(frame.left, strip, width - frame.right, strip, "axis"))
    parts.append(_text(frame.left - 7, strip - 4, "rows", anchor="end"))
    parts += [_text(frame.px(value), strip + 16, number(value)) for value in marks]
    parts.append(_text((frame.left + width - frame.right) / 2, height - 6, "confidence", "label"))
    parts.append(_turned(13, (frame.top + frame.py(0)) / 2, "share right", -90))
    return _svg(width, height, "Reliability: share of right answers against confidence", "".join(parts), "square")


def heat_map(counts: Sequence[Sequence[int]], labels: Sequence[str], size: int = 520) -> Markup:
    """A confusion matrix, truth down and answer across, each row as shares. Up to 20 labels are named and numbered;
    beyond that cells carry their names on hover and only those that are not empty are drawn.
    """
    many = len(labels) > 20
    short = [_cut(label, 18) for label in labels]
    gutter = 30 if many else min(160, 14 + int(7 * max(len(text) for text in short)))
    size = min(size, gutter + 6 + 64 * max(4, len(labels)))
    cell = min(64.0, (size - gutter - 6) / max(1, len(labels)))
    parts = [_rect(gutter, 6, cell * len(labels), cell * len(labels), "empty")]
    for i, row in enumerate(counts):
        whole = sum(row) or 1
        for j, count in enumerate(row):
            if not count:
                continue
            style = "cell right" if i == j else "cell wrong"
            strength = max(0.12, math.sqrt(count / whole))
            tip = f"{labels[i]} answered as {labels[j]}: {count} of {whole}"
            at = gutter + j * cell, 6 + i * cell
            gap = 0.5 if cell > 8 else 0
            parts.append(_rect(*at, cell - gap, cell - gap, style, tip, f'fill-opacity="{strength:.2f}"'))
            if not many and cell >= 18:
                tone = "count" + (" strong" if strength > 0.6 else "")
                parts.append(_text(at[0] + cell / 2, at[1] + cell / 2 + 4, number(count), tone))
    if not many:
        for k, text in enumerate(short):
            centre = 6 + (k + 0.5) * cell
            parts.append(_text(gutter - 6, centre + 4, text, "tick", "end"))
            x, y = gutter + (k + 0.5) * cell, 6 + cell * len(labels) + 10
            parts.append(_turned(x, y, text, -45, "tick", "end"))
    bottom = 6 + cell * len(labels) + (24 if many else 0.72 * gutter + 30)
    if many:
        parts.append(_turned(16, 6 + cell * len(labels) / 2, "truth", -90))
    parts.append(_text(gutter + cell * len(labels) / 2, bottom - 6, "answer", "label"))
    return _svg(
        size,
        math.ceil(bottom),
        "Confusion matrix: truth down, answer across",
        "".join(parts),
        "wide" if size > 500 else "square",
    )


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def interval_bar(
    value: float,
    low: float | None,
    high: float | None,
    span: tuple[float, float] = (0, 1),
    reference: float | None = None,
) -> Markup:
    """A thin track from one end of `span` to the other, the interval as a band, the value as a mark."""
    width, height = 200, 14

    def at(x: float) -> float:
        return 2 + (min(max(x, span[0]), span[1]) - span[0]) / ((span[1] - span[0]) or 1) * (width - 4)

    parts = [_rect(2, 6, width - 4, 2, "track")]
    if reference is not None:
        parts.append(_line(at(reference), 0, at(reference), height, "axis"))
    if low is not None and high is not None:
        parts.append(_rect(at(low), 4, max(1.5, at(high) - at(low)), 6, "band"))
    parts.append(_rect(at(value) - 1, 1, 2, 12, "mark"))
    says = f"{value:.3g}" + ("" if low is None or high is None else f", from {low:.3g} to {high:.3g}")
    return _svg(width, height, says, "".join(parts), "inline")


def effect_bar(value: float, low: float | None, high: float | None, reach: float) -> Markup:
    """A difference with its interval around zero; `reach` is the axis' end on both sides."""
    width, height = 200, 16

    def at(x: float) -> float:
        return width / 2 + max(-1.0, min(1.0, x / (reach or 1))) * (width / 2 - 4)

    style = "up" if value > 0 else "down"
    parts = [_rect(4, 7, width - 8, 2, "track"), _line(width / 2, 0, width / 2, height, "axis")]
    if low is not None and high is not None:
        parts.append(_rect(at(low), 5, max(1.5, at(high) - at(low)), 6, f"band {style}"))
    parts.append(_rect(at(value) - 1.5, 1, 3, 14, f"mark {style}"))
    return _svg(width, height, f"difference {value:+.3g}", "".join(parts), "inline")


@dataclass(frozen=True)
class Choice:
    """A model among others: what it costs (x) and how good it is (y). front: none is better in both."""

    name: str
    x: float
    y: float
    front: bool


def trade_off(
    choices: Sequence[Choice], *, title: str, x_label: str, y_label: str, floor: float | None = None
) -> Markup:
    """Quality against cost, each choice numbered from 1 in order; a line along the front, a dashed one at `floor`.

    Choices that would cover each other share one label. Empty markup when there is none.
    """
    if not choices:
        return Markup("")
    xs, ys = [c.x for c in choices], [c.y for c in choices] + ([] if floor is None else [floor])
    across, up = (max(xs) - min(xs)) * 0.08 or max(xs) * 0.1 or 1, (max(ys) - min(ys)) * 0.1 or 0.01
    span_x, span_y = (min(xs) - across, max(xs) + across), (min(ys) - up, max(ys) + up)
    widest = max(len(number(value)) for value in ticks(*span_y))
    frame = _Frame(460, 300, span_x, span_y, left=34 + 7 * widest)
    body = _axes(frame, _apart(frame, ticks(*span_x, 7)), x_label, y_label, ticks(*span_y))
    if floor is not None:
        body += _line(frame.left, frame.py(floor), frame.width - frame.right, frame.py(floor), "ideal")
    edge = sorted((c for c in choices if c.front), key=lambda c: (c.x, c.y))
    path = " ".join(f"{frame.px(c.x):.1f},{frame.py(c.y):.1f}" for c in edge)
    body += f'<polyline points="{path}" class="line s1"/>' if len(edge) > 1 else ""
    labels: list[tuple[float, float, list[str]]] = []
    for place, c in enumerate(choices, 1):
        x, y = frame.px(c.x), frame.py(c.y)
        tip = f"{place}. {c.name}: {c.y:.4g} at {c.x:.4g}"
        style = "dot s1" if c.front else "dot s2"
        body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{style}"><title>{escape(tip)}</title></circle>'
        near = next((label for label in labels if abs(label[0] - x) < 16 and abs(label[1] - y) < 12), None)
        if near is None:
            labels.append((x, y, [str(place)]))
        else:
            near[2].append(str(place))
    for x, y, places in labels:
        right = x < frame.width - 90
        body += _text(x + 9 if right else x - 9, y - 7, ", ".join(places), "label", "start" if right else "end")
    return _svg(frame.width, frame.height, title, body)


def scatter(pairs: Sequence[Sequence[float]], title: str, size: int = 340) -> Markup:
    """Prediction against truth with the diagonal where both agree."""
    values = [v for pair in pairs for v in pair]
    if not values:
        return Markup("")
    margin = (max(values) - min(values)) * 0.05 or 1
    span = (min(values) - margin, max(values) + margin)
    widest = max(len(number(value)) for value in ticks(*span))
    frame = _Frame(size, size - 20, span, span, left=34 + 7 * widest)
    body = _axes(frame, _apart(frame, ticks(*span)), "truth", "prediction", ticks(*span))
    body += _line(frame.px(span[0]), frame.py(span[0]), frame.px(span[1]), frame.py(span[1]), "ideal")
    for x, y in pairs:
        body += f'<circle cx="{frame.px(x):.1f}" cy="{frame.py(y):.1f}" r="2.6" class="dot s1 faint"/>'
    return _svg(size, size - 20, title, body, "square")
