"""The report's keys are the documented ones; what is written is read again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.errors import BundleError
from headstart.evaluation import Report
from headstart.evaluation.report import KEYS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "report.md"


def documented() -> list[str]:
    table = DOCS.read_text(encoding="utf-8").partition("## Keys")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)


def pattern(path: str) -> re.Pattern[str]:
    """`a.<b>.c[].d` and `a.*` as a regular expression over the paths of `leaves`."""
    text = re.escape(path)
    text = re.sub(r"<[^>]*>", r"[^.]+", text)
    text = text.replace(r"\[\]", r"(\[\])+")
    text = text.replace(r"\.\*", r"(\..+)?")
    # A label is one text or, where a row may have several, a list of them.
    return re.compile(text + (r"(\[\])?$" if path.endswith(("truth", "prediction")) else "$"))


def leaves(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path


@pytest.fixture(scope="module")
def paths(text_report: Report, image_report: Report, regression_report: Report, samples: Any) -> set[str]:
    found = {path for report in (text_report, image_report, regression_report) for path in leaves(report.to_json())}
    # One target has errors in its own units, a picture in a file has a path, and a stage may have notes.
    return found | {
        "splits.test.mistakes[].error",
        "splits.test.mistakes[].image",
        "stages[].notes[]",
        "tasks.topic.metric",
    }


def test_every_key_of_a_report_is_documented(paths: set[str]):
    known = [pattern(path) for path in documented()]
    assert not [path for path in paths if not any(one.match(path) for one in known)]


def test_every_documented_key_is_in_a_report(paths: set[str]):
    assert len(documented()) > 60
    missing = [path for path in documented() if not any(pattern(path).match(found) for found in paths)]
    assert not missing


def test_the_first_level_is_the_contract(text_report: Report):
    assert list(text_report) == list(KEYS) and set(Report({})) == set(KEYS)
    assert {path.split(".")[0].removesuffix("[]") for path in documented()} == set(KEYS)
    assert text_report["metrics"]["test"]["accuracy"]["value"] == text_report.value()


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match="metrcs"):
        Report({"metrcs": {}})


def test_what_a_run_did_not_say_is_null_or_empty():
    report = Report({"task": "classification", "cost": {"seconds": np.float32(1.5)}, "notes": ("a",)})
    assert report["cost"] == {"seconds": 1.5, "peak_memory_bytes": None, "rows_trained": None, "rows_per_second": None}
    assert report["notes"] == ["a"] and report["metrics"] == {} and report.split is None
    assert "nothing was measured" in str(report)


def test_it_is_strict_json_whatever_it_is_given():
    report = Report(
        {"cost": {"seconds": float("nan")}, "labels": np.array(["a"]), "data": {"columns": {"p": Path("x")}}}
    )
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text)["cost"]["seconds"] is None and json.loads(text)["labels"] == ["a"]
    with pytest.raises(TypeError, match="object"):
        Report({"spec": {"x": object()}})


def test_write_and_read(text_report: Report, tmp_path: Path):
    page = text_report.write(tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    assert sorted(p.name for p in page.parent.iterdir()) == ["README.md", "report.html", "report.json"]
    assert Report.read(page.parent).to_json() == text_report.to_json()
    assert Report.read(page.parent / "report.json") == text_report


def test_reading_refuses_what_is_no_report(tmp_path: Path, text_report: Report):
    with pytest.raises(BundleError, match="cannot read"):
        Report.read(tmp_path)
    text_report.write(tmp_path)
    path = tmp_path / "report.json"
    whole = path.read_text(encoding="utf-8")
    for broken in (whole[:200], "[]", "{}", whole.replace('"format": 1', '"format": 9')):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(BundleError, match="not a report of format 1"):
            Report.read(tmp_path)


def test_the_summary_says_what_matters(text_report: Report):
    text = str(text_report)
    accuracy = text_report["metrics"]["test"]["accuracy"]
    assert f"{accuracy['value']:.4g} [{accuracy['low']:.4g}, {accuracy['high']:.4g}]" in text
    for part in ("473 rows", "10,684,424 of 22,716,296", "'finetune'", "2 min 23 s", "7 test rows have the same text"):
        assert part in text
    assert repr(text_report) == text and len(text.splitlines()) < 10


def test_a_copy_cannot_change_the_report(text_report: Report):
    text_report.to_json()["labels"].clear()
    assert len(text_report["labels"]) == 8


def test_show_prints_where_the_page_is(text_report: Report, monkeypatch, capsys):
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    text_report.show()
    page = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("the page is at "))
    assert page.is_file()


def test_notebooks_get_the_page_in_a_closed_frame(text_report: Report):
    frame = text_report._repr_html_()
    assert frame.startswith("<iframe srcdoc=") and " sandbox " in frame
    assert "<script" not in frame and frame.count("<") == 2
