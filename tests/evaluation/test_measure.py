"""What is said about a split adds up."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart import tasks
from headstart.evaluation import measure_split
from headstart.evaluation.measure import shown, thumbnail

TASK = tasks.fit("classification", ["a", "b"])


def made(rows: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, rows)
    p = np.clip(rng.normal(0.8, 0.25, rows), 0.01, 0.99)
    return np.where(targets[:, None] == [0, 1], p[:, None], 1 - p[:, None]), targets


def test_it_is_plain_json_with_the_documented_parts():
    scores, targets = made()
    found = measure_split(TASK, scores, targets, inputs=[f"text {k}" for k in range(400)])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"rows", "metrics", "per_class", "confusion", "calibration", "slices", "mistakes"}
    assert found["rows"] == 400
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert sum(map(sum, found["confusion"]["counts"])) == 400


def test_worst_mistakes_come_first_with_their_rows():
    scores, targets = made()
    ids = np.arange(400) + 1000
    found = measure_split(TASK, scores, targets, inputs=[f"text {k}" for k in range(400)], row_ids=ids)["mistakes"]
    sure = [mistake["probability"] for mistake in found]
    assert sure == sorted(sure, reverse=True) and 0 < len(found) <= 24
    first = found[0]
    row = first["row"] - 1000
    assert first["text"] == f"text {row}" and first["truth"] == "ab"[targets[row]] != first["prediction"]
    wrong = scores.argmax(1) != targets
    assert first["probability"] == pytest.approx(scores.max(1)[wrong].max())


def test_a_perfect_model_has_no_mistakes_and_none_are_made_up():
    targets = np.array([0, 1, 1])
    found = measure_split(TASK, np.eye(2)[targets], targets, inputs=["x", "y", "z"])
    assert found["mistakes"] == []


def test_inputs_are_read_only_where_they_are_shown():
    scores, targets = made()

    class Lazy:
        asked: list[int]

        def __init__(self):
            self.asked = []

        def __getitem__(self, row):
            self.asked.append(row)
            return f"text {row}"

    inputs = Lazy()
    measure_split(TASK, scores, targets, inputs=inputs)
    assert 0 < len(inputs.asked) <= 24


def test_slices_cover_every_row_and_mark_the_bad_and_the_small():
    scores, targets = made(600)
    channel = np.array(["good"] * 400 + ["bad"] * 180 + ["rare"] * 19 + [None], dtype=object)
    bad = channel == "bad"
    scores[bad] = scores[bad][:, ::-1]
    found = measure_split(TASK, scores, targets, slices={"channel": channel.tolist()})["slices"]["channel"]
    by_value = {record["value"]: record for record in found}
    assert sum(record["rows"] for record in found) == 600
    assert [record["rows"] for record in found] == [400, 180, 19, 1]
    assert by_value["bad"]["worse"] and not by_value["good"]["worse"]
    assert by_value["rare"]["small"] and not by_value["good"]["small"]
    assert by_value["(missing)"]["rows"] == 1
    expected = (scores.argmax(1) == targets)[bad].mean()
    assert by_value["bad"]["score"] == pytest.approx(expected)
    assert by_value["bad"]["low"] < expected < by_value["bad"]["high"]


def test_many_numbers_become_four_ranges_in_order_and_rare_values_one_group():
    scores, targets = made()
    numbers = [float(k) for k in range(399)] + [float("nan")]
    words = [f"w{min(k, 50)}" for k in range(400)]
    found = measure_split(TASK, scores, targets, slices={"n": numbers, "w": words})["slices"]
    assert [r["value"] for r in found["n"]] == ["0 to 99.5", "99.5 to 199", "199 to 298.5", "298.5 to 398", "(missing)"]
    assert sum(r["rows"] for r in found["n"]) == 400
    assert len(found["w"]) == 31 and found["w"][0]["value"] == "w50" and found["w"][-1]["value"] == "(21 other values)"
    assert sum(r["rows"] for r in found["w"]) == 400


def test_a_lower_error_is_not_worse():
    task = tasks.fit("regression", [0.0, 10.0])
    truth = np.random.default_rng(0).normal(5, 3, (400, 1))
    noise = np.where(np.arange(400)[:, None] < 200, 0.1, 3.0) * np.random.default_rng(1).normal(size=(400, 1))
    found = measure_split(task, truth + noise, truth, slices={"half": ["first"] * 200 + ["second"] * 200})
    worse = {record["value"]: record["worse"] for record in found["slices"]["half"]}
    assert worse == {"first": False, "second": True}


def test_lengths_that_differ_are_refused():
    scores, targets = made(5)
    for wrong in ({"row_ids": [1, 2]}, {"slices": {"x": [1]}}):
        with pytest.raises(ValueError, match="as many"):
            measure_split(TASK, scores, targets, **wrong)
    with pytest.raises(ValueError, match="one or more"):
        measure_split(TASK, scores[:0], targets[:0])


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_thumbnails_of_every_form_of_picture(tmp_path: Path):
    picture = Image.new("RGB", (640, 320), (200, 30, 30))
    path = tmp_path / "a.png"
    picture.save(path)
    for value in (path, str(path), path.read_bytes(), picture, np.asarray(picture)):
        record = shown(value)
        small = decoded(record["thumbnail"])
        assert small.size == (112, 56)
        red, green, _ = small.convert("RGB").getpixel((50, 20))
        assert red > 180 and green < 60
        assert ("image" in record) == isinstance(value, str | Path)
    tiny = decoded(thumbnail(Image.new("L", (8, 8), 255)))
    assert tiny.size == (112, 112)
    sideways = Image.new("RGB", (100, 50))
    exif = sideways.getexif()
    exif[274] = 6
    sideways.save(tmp_path / "turned.jpg", exif=exif)
    assert decoded(thumbnail(tmp_path / "turned.jpg")).size == (50, 100)


def test_a_picture_that_cannot_be_read_is_shown_without_thumbnail(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG....")
    assert shown(str(tmp_path / "broken.png"))["thumbnail"] is None
    assert shown("see file.png") == {"text": "see file.png"}
    assert len(shown("x" * 5000)["text"]) == 600
