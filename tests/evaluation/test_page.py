"""The pages are well formed, self-contained and safe, and say what the report says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from headstart import tasks
from headstart.evaluation import Report, measure_split, plots
from headstart.evaluation.card import render_card
from headstart.evaluation.page import render_comparison, render_report

VOID = {"meta", "link", "br", "hr", "img", "input"}
SELF_CLOSED = {"rect", "line", "circle", "polyline"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</title><svg onload=alert(3)>",
    "' onmouseover='alert(4)",
    "{{ 7 * 7 }}",
    "a\nb | c `d` *e* &lt;",
)


class Checker(HTMLParser):
    """Tags that open and close in order, attributes and ids, and all text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SELF_CLOSED, tag
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)


def checked(page: str) -> Checker:
    """The page, parsed; fails when it is not well formed, not self-contained or could run a script."""
    parser = Checker()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(parser.tags)
    ids = [value for _, name, value in parser.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for tag, name, value in parser.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "xlink:href", "data", "action"):
            assert value is not None and value.startswith(("#", "data:image/")), (tag, value)
            if value.startswith("#"):
                assert value[1:] in ids
        if tag == "img" and name == "alt":
            assert value
    assert "url(" not in page and "@import" not in page and "http" not in page.replace("<!doctype html>", "")
    return parser


def words(parser: Checker) -> str:
    return " ".join(" ".join(parser.texts).split())


@pytest.mark.parametrize("kind", ["text_report", "image_report", "regression_report"])
def test_the_page_is_well_formed_and_self_contained(kind: str, request: pytest.FixtureRequest):
    report: Report = request.getfixturevalue(kind)
    parser = checked(render_report(report.to_json()))
    assert "None" not in words(parser) and "nan" not in words(parser).split()
    for svg in (a for a in parser.attributes if a[0] == "svg" and a[1] == "role"):
        assert svg[2] == "img"


def test_it_says_what_the_report_says(text_report: Report):
    text = words(checked(render_report(text_report.to_json())))
    accuracy = text_report["metrics"]["test"]["accuracy"]
    assert f"{100 * accuracy['value']:.1f} %" in text
    assert f"{100 * accuracy['low']:.1f} % to {100 * accuracy['high']:.1f} %" in text
    worst = text_report["splits"]["test"]["mistakes"][0]
    for part in (
        "tickets", worst["text"], f"row {worst['row']}", "What transfer gained", "+0.214", "kept", "Calibration error",
        "2 training rows have labels", "labelled verify_identity", "looks like card_blocked", "row 17",
        "few rows", "left out: empty text", "7 test rows have the same text", "9,000", "2 min 11 s", "top_up_failed",
    ):  # fmt: skip
        assert part in text, part


def test_validation_only_says_that_it_flatters_and_shows_pictures(image_report: Report):
    page = render_report(image_report.to_json())
    parser = checked(page)
    assert "There were no test rows" in words(parser)
    pictures = [value for tag, name, value in parser.attributes if (tag, name) == ("img", "src")]
    mistakes = image_report["splits"]["validation"]["mistakes"]
    assert len(pictures) == len(mistakes) + len(image_report["label_errors"]) > 5
    assert "flowers" in words(parser)


def test_an_empty_report_still_makes_a_page():
    text = words(checked(render_report(Report({"task": "classification"}).to_json())))
    assert "Nothing was measured" in text


def hostile_report() -> Report:
    labels = list(HOSTILE)
    task = tasks.fit("classification", labels, labels=labels)
    rng = np.random.default_rng(0)
    targets = rng.integers(0, len(labels), 120)
    scores = rng.dirichlet(np.ones(len(labels)), 120)
    values = [HOSTILE[k % len(HOSTILE)] for k in range(120)]
    measured = measure_split(task, scores, targets, inputs=values, row_ids=values, slices={HOSTILE[1]: values})
    text = HOSTILE[0]
    return Report(
        {
            "task": "classification",
            "modality": text,
            "labels": labels,
            "metric": "accuracy",
            "metrics": {"test": measured.pop("metrics")},
            "splits": {"test": measured},
            "rows": {"read": 1, "dropped": {HOSTILE[1]: 1}},
            "stages": [
                {
                    "name": HOSTILE[2], "score": 0.5, "seconds": 1, "rows_trained": 1, "trainable": 1,
                    "stopped": text, "kept": True,
                    "history": [{"epoch": 1, "accuracy": 0.1}, {"epoch": 2, "accuracy": 0.2}],
                }
            ],
            "transfer": [{"against": text, "budget": HOSTILE[1], "value": 0.1, "low": None, "high": None, "p": None}],
            "label_errors": [
                {"row": 1, "text": text, "given": text, "suggested": HOSTILE[1], "probability": 0.9, "quality": 0.1}
            ],
            "findings": [{"level": "warning", "code": "x", "message": text, "rows": [1]}],
            "backbone": {"ref": f"pkg:{HOSTILE[1]}", "source": {HOSTILE[3]: text}, "digest": text},
            "data": {"said": [text], "fingerprint": text},
            "environment": {"packages": {HOSTILE[1]: text}, "python": text},
            "spec": {"data": {"train": f"{HOSTILE[1]}.csv"}},
            "notes": [text],
        }
    )  # fmt: skip


def test_hostile_labels_and_texts_stay_texts():
    page = render_report(hostile_report().to_json())
    parser = checked(page)
    text = " ".join(parser.texts)
    assert HOSTILE[0] in text and HOSTILE[1] in text and "{{ 7 * 7 }}" in text
    assert not re.search(r"<(script|svg onload|img src=x)", page)


def test_hostile_labels_cannot_break_the_card():
    import yaml

    card = render_card(hostile_report().to_json())
    _, front, body = card.split("---\n", 2)
    record = yaml.safe_load(front)
    assert record["model-index"][0]["results"][0]["metrics"][0]["name"] == "Accuracy"
    outside = re.sub(r"`[^`\n]*`", "", body)
    assert not re.search(r"(?<!\\)<(script|img|svg)", outside)


def test_many_labels_fold_away_and_the_heat_map_stays_bounded(samples: Any):
    labels = tuple(f"intent_{k:02d}" for k in range(77))
    report = samples.text_report(labels)
    page = render_report(report.to_json())
    parser = checked(page)
    text = words(parser)
    assert "The other 65 labels" in text and "Commonest mistakes" in text
    assert all(text.count(label) >= 1 for label in labels)
    assert len(page) < 600_000
    weakest = min((c for c in report["splits"]["test"]["per_class"] if c["f1"] is not None), key=lambda c: c["f1"])
    assert page.index(weakest["label"]) < page.index("The other 65 labels")


def test_the_comparison_page(comparison: dict[str, Any]):
    parser = checked(render_comparison(comparison))
    text = words(parser)
    for part in (
        "recipe",
        "scratch",
        "lora",
        "9,000 rows",
        "22,716,296",
        "2 min 30 s",
        "+0.630",
        "3 seeds",
        "36 fits",
        "3 of 3",
        "0.006",
        "87 MiB",
        "95 % intervals",
    ):
        assert part in text, part
    best = max(s["mean"] for s in comparison["summary"] if s["budget"] == "100%")
    bold = [entry for entry in parser.texts if entry.strip() == f"{best:.3f}"]
    assert bold
    one = {
        **comparison,
        "summary": [{**s, "sd": None, "low": None, "high": None, "seeds": 1} for s in comparison["summary"]],
        "transfer": [],
    }
    assert "with one seed there is no spread" in words(checked(render_comparison(one)))
    hostile = {
        **comparison,
        "summary": [{**s, "arm": HOSTILE[0], "budget": HOSTILE[1]} for s in comparison["summary"][:1]],
    }
    checked(render_comparison(hostile))


def test_best_of_a_loss_is_the_smallest(comparison: dict[str, Any]):
    page = render_comparison({**comparison, "metric": "rmse"})
    least = min(s["mean"] for s in comparison["summary"] if s["budget"] == "1%")
    assert f"<b>{least:.3f}</b>" in page


def test_ticks_are_round_and_inside():
    assert plots.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    for low, high in ((0.813, 0.822), (-3, 17), (1e-5, 3e-5), (120, 98_000)):
        found = plots.ticks(low, high)
        assert 3 <= len(found) <= 7 and min(found) >= low - 1e-9 and max(found) <= high * (1 + 1e-9)
    assert plots.ticks(2, 2) == [2]


def test_points_of_a_line_chart_lie_inside_and_in_order():
    series = plots.Series("a", [(1, 0.5), (10, 0.7), (100, 0.6)], [(0.4, 0.6), None, (0.55, 0.65)])
    svg = plots.line_chart([series], title="t", x_label="x", y_label="y", log=True, width=400, height=200)
    found = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert all(0 < x < 400 and 0 < y < 200 for x, y in found) and len(found) == 3
    assert found[0][1] > found[2][1] > found[1][1]
    line = re.search(r'points="([^"]+)"', svg)
    xs = [float(pair.split(",")[0]) for pair in line[1].split()]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert plots.line_chart([], title="t", x_label="x", y_label="y") == ""
    assert "nan" not in plots.line_chart([plots.Series("a", [(0, 0)])], title="t", x_label="x", y_label="y", log=True)


def test_heat_map_draws_what_is_there():
    svg = plots.heat_map([[5, 0], [2, 3]], ["no", "yes"])
    assert svg.count('class="cell right"') == 2 and svg.count('class="cell wrong"') == 1
    assert "yes answered as no: 2 of 5" in svg


def test_colours_are_told_apart_in_both_themes(text_report: Report):
    page = render_report(text_report.to_json())
    assert "prefers-color-scheme: dark" in page

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for block in re.findall(r":root \{([^}]*--page[^}]*)\}", page):
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for name, least in (
            ("ink", 7),
            ("soft", 4.5),
            ("good", 4.5),
            ("bad", 4.5),
            ("accent", 4.5),
            ("s1", 3),
            ("s2", 3),
        ):
            for ground in ("card", "page"):
                pair = sorted((luminance(colours[name]), luminance(colours[ground])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (name, ground)
