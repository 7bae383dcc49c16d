"""Plain routes: JSON, lines, forms and files in, the columns of `headstart predict` out."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest

import headstart as hs
from headstart.serve.limits import Limits
from serving import Client, ask, encoded, picture, sound

TEXTS = ["where is my parcel", "refund please today", "password lost"]
JSON = {"content-type": "application/json"}


def test_answers_are_those_of_predict(text_bundle: Path, tmp_path: Path) -> None:
    """The same columns, in the same order, with the same numbers as the verb writes them."""
    source, out = tmp_path / "new.csv", tmp_path / "out.csv"
    source.write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    hs.predict(text_bundle, source, out)
    with out.open(encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file))

    async def test(client: Client) -> Any:
        return await client.predict("tickets", TEXTS)

    for row, found in zip(expected, ask({"tickets": text_bundle}, test), strict=True):
        row.pop("text")
        assert list(found) == list(row)
        assert found["prediction"] == row["prediction"]
        for name, value in row.items():
            if name != "prediction":
                assert found[name] == pytest.approx(float(value), abs=1e-6)


def test_every_way_of_sending_texts_gives_the_same_answers(text_bundle: Path) -> None:
    lines = {"content-type": "application/x-ndjson"}

    async def test(client: Client) -> None:
        expected = await client.predict("tickets", TEXTS[:2])
        for options in (
            {"json": TEXTS[:2]},
            {"json": [{"text": text} for text in TEXTS[:2]]},
            {"json": {"rows": [TEXTS[0], {"text": TEXTS[1], "other": 1}]}},
            {"content": "\n".join(json.dumps(text) for text in TEXTS[:2]) + "\n\n", "headers": lines},
            {"content": json.dumps(TEXTS[:2])},
            {"files": [("text", (None, text)) for text in TEXTS[:2]]},
            {"files": [("text", ("a.txt", text)) for text in TEXTS[:2]]},
        ):
            response = await client.post("/predict/tickets", **options)
            assert response.status_code == 200, response.text
            for got, wanted in zip(response.json()["predictions"], expected, strict=True):
                assert got == pytest.approx(wanted, abs=1e-5)
        for options in ({"json": TEXTS[0]}, {"json": {"text": TEXTS[0]}},
                        {"content": TEXTS[0], "headers": {"content-type": "text/plain; charset=utf-8"}}):  # fmt: skip
            response = await client.post("/predict/tickets", **options)
            assert response.json()["predictions"] == [pytest.approx(expected[0], abs=1e-5)]

    ask({"tickets": text_bundle}, test)


def test_several_tasks_answer_together_or_one_alone(double_bundle: Path) -> None:
    model = hs.load(double_bundle)

    async def test(client: Client) -> None:
        (row,) = await client.predict("double", TEXTS[:1])
        assert set(row) > {"prediction_intent", "prediction_tags"}
        (expected,) = model.predict(TEXTS[:1])
        assert {"intent": row["prediction_intent"], "tags": row["prediction_tags"]} == expected
        response = await client.post("/predict/double?task=tags", json=TEXTS[:1])
        (alone,) = response.json()["predictions"]
        assert set(alone) == {"prediction", "probability_late", "probability_money", "probability_refund"}
        assert alone["prediction"] == expected["tags"]
        response = await client.post("/predict/double?task=mood", json=TEXTS[:1])
        assert response.status_code == 400
        assert response.json()["error"] == "this model has no such task; it has intent, tags"

    ask({"double": double_bundle}, test)


def test_numbers_are_answered_as_numbers(number_bundle: Path) -> None:
    async def test(client: Client) -> None:
        (row,) = await client.predict("lengths", TEXTS[:1])
        (expected,) = hs.load(number_bundle).predict(TEXTS[:1])
        assert row["prediction"] == pytest.approx(expected, abs=1e-4)
        assert [row[f"predicted_{name}"] for name in hs.load(number_bundle).labels] == row["prediction"]
        response = await client.post("/predict/lengths?task=a", json=TEXTS[:1])
        assert response.json()["error"] == "this model has a single task, without a name"

    ask({"lengths": number_bundle}, test)


def test_pictures_arrive_as_files_forms_or_base64(image_bundle: Path) -> None:
    files = [encoded(picture(seed), kind) for seed, kind in ((20, "PNG"), (21, "JPEG"))]
    expected = hs.load(image_bundle).predict(files)

    async def test(client: Client) -> None:
        packed = [{"b64": base64.b64encode(data).decode()} for data in files]
        assert [row["prediction"] for row in await client.predict("shades", packed)] == expected
        nested = [{"image": each} for each in packed]
        assert [row["prediction"] for row in await client.predict("shades", nested)] == expected
        form = [("file", ("a.png", data, "image/png")) for data in files]
        response = await client.post("/predict/shades", files=form)
        assert [row["prediction"] for row in response.json()["predictions"]] == expected
        for kind in ("image/png", "application/octet-stream"):
            response = await client.post("/predict/shades", content=files[0], headers={"content-type": kind})
            assert [row["prediction"] for row in response.json()["predictions"]] == expected[:1]

    ask({"shades": image_bundle}, test)


def test_sounds_arrive_as_files(audio_bundle: Path) -> None:
    data = sound(30)

    async def test(client: Client) -> None:
        response = await client.post("/predict/tones", content=data, headers={"content-type": "audio/wav"})
        assert [row["prediction"] for row in response.json()["predictions"]] == hs.load(audio_bundle).predict([data])
        long = await client.post("/predict/tones", content=sound(1, 1.5), headers={"content-type": "audio/wav"})
        assert (long.status_code, long.json()["error"]) == (413, "row 0: 2 seconds of sound, more than the 1 allowed")

    ask({"tones": audio_bundle}, test, Limits(seconds=1.0))


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"content": "{", "headers": JSON}, 400, "the body is not valid JSON at line 1"),
    ({"content": "", "headers": JSON}, 400, "the body is not valid JSON at line 1"),
    ({"content": "[NaN]", "headers": JSON}, 400, "the body is not valid JSON"),
    ({"content": "[" * 100_000, "headers": JSON}, 400, "the JSON is nested too deeply"),
    ({"content": b'["\xff"]', "headers": JSON}, 400, "the body is not valid JSON"),
    ({"json": 3}, 400, 'expected {"rows": [...]} or a list of rows'),
    ({"json": {"rows": 3}}, 400, 'expected {"rows": [...]} or a list of rows'),
    ({"json": []}, 400, "expected at least one row, received none; send a text"),
    ({"json": [3]}, 400, "row 0: expected a text, received a number"),
    ({"json": ["a", None]}, 400, "row 1: expected a text, received null"),
    ({"json": [["a"]]}, 400, "row 0: expected a text, received a list"),
    ({"json": [True]}, 400, "row 0: expected a text, received true or false"),
    ({"json": [{"text": {}}]}, 400, "row 0: expected a text, received an object"),
    ({"json": [" \n"]}, 400, "row 0: the text is empty"),
    ({"content": '["\\ud800"]', "headers": JSON}, 400, "row 0: the text is not valid Unicode"),
    (
        {"content": '[{"\\ud800": 1}]', "headers": JSON},
        400,
        "row 0: expected an object with 'text', received one with ?",
    ),
    ({"json": [{"txt": "a"}]}, 400, "row 0: expected an object with 'text', received one with txt"),
    ({"json": [{}]}, 400, "row 0: expected an object with 'text', received an empty one"),
    ({"json": ["a" * 101]}, 413, "row 0: 101 characters, more than the 100 allowed"),
    ({"json": ["a"] * 5}, 413, "5 rows in one request, more than the 4 allowed; send them in parts"),
    ({"json": ["a" * 200_000]}, 413, "the body has 200004 bytes, more than the 150000 allowed"),
    (
        {"content": '"a"\n{\n', "headers": {"content-type": "application/jsonl"}},
        400,
        "line 2 is not valid JSON",
    ),
    ({"content": b"\xff", "headers": {"content-type": "text/plain"}}, 400, "row 0: the text is not valid UTF-8"),
    (
        {"content": b"\x89PNG", "headers": {"content-type": "image/png"}},
        415,
        'this model reads text: send JSON, such as {"rows": ["a text"]}',
    ),
    (
        {"content": "a", "headers": {"content-type": "application/xml"}},
        415,
        "bodies of this content type are not read; send application/json, application/x-ndjson or a file",
    ),
    (
        {"content": "a", "headers": {"content-encoding": "gzip"}},
        415,
        "compressed bodies are not read: send it as it is",
    ),
    (
        {"content": "a", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        400,
        "the form is cut short or not valid multipart/form-data",
    ),
    (
        {"content": "a", "headers": {"content-type": "multipart/form-data"}},
        400,
        "the form is cut short or not valid multipart/form-data",
    ),
    ({"files": [("a", (None, "a"))] * 5}, 413, "more than 4 rows in one request; send them in parts"),
    ({"json": ["a"], "headers": {"x-timeout-ms": "soon"}}, 400, "expected x-timeout-ms to be a whole number above 0"),
]


def test_what_cannot_be_read_is_refused_with_one_sentence(text_bundle: Path) -> None:
    async def test(client: Client) -> None:
        for options, status, sentence in BAD:
            response = await client.post("/predict/tickets", **options)
            assert (response.status_code, response.json()["error"]) == (status, sentence), options
        assert len(await client.predict("tickets", ["still here"])) == 1

    ask({"tickets": text_bundle}, test, Limits(characters=100, rows=4, body_bytes=150_000))


def test_a_body_without_a_stated_length_is_cut_off_at_the_limit(text_bundle: Path) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b"a" * 100

    async def test(client: Client) -> None:
        response = await client.post("/predict/tickets", content=endless())
        assert (response.status_code, response.json()["error"]) == (
            413,
            "the body has more than the 2000 bytes allowed",
        )

    ask({"tickets": text_bundle}, test, Limits(body_bytes=2000))


def test_the_schemas_fit_what_is_sent_and_answered(
    text_bundle: Path, double_bundle: Path, number_bundle: Path, image_bundle: Path
) -> None:
    async def test(client: Client) -> None:
        for name in ("tickets", "double", "lengths"):
            schema = (await client.get(f"/schema/{name}")).json()
            (row,) = await client.predict(name, TEXTS[:1])
            described = schema["response"]["properties"]["predictions"]["items"]
            assert set(described["properties"]) == set(described["required"]) == set(row)
            label = described["properties"].get("prediction", {})
            assert row.get("prediction") in label.get("enum", [row.get("prediction")])
        schema = (await client.get("/schema/shades")).json()
        assert schema["request"]["properties"]["rows"]["items"]["required"] == ["b64"]
        document = (await client.get("/openapi.json")).json()
        assert document["openapi"] == "3.1.0"
        for name in ("tickets", "double", "lengths", "shades"):
            assert f"/predict/{name}" in document["paths"]
        assert document["paths"]["/predict/double"]["post"]["parameters"][0]["schema"]["enum"] == ["intent", "tags"]
        cards = {card["name"]: card for card in (await client.get("/models")).json()["models"]}
        assert cards["shades"]["modality"] == "image"
        assert cards["tickets"]["tasks"][0]["labels"] == list(hs.load(text_bundle).labels)

    ask({"tickets": text_bundle, "double": double_bundle, "lengths": number_bundle, "shades": image_bundle}, test)


def test_every_documented_path_is_a_route_and_every_route_is_documented(text_bundle: Path) -> None:
    from headstart.serve.app import ROUTES

    async def test(client: Client) -> None:
        documented = set((await client.get("/openapi.json")).json()["paths"]) - {"/predict/tickets"}
        routes = {path for _, path, _, _ in ROUTES if "{version}" not in path}
        assert documented == routes - {"/openapi.json", "/metrics"}

    ask({"tickets": text_bundle}, test)


def test_metrics_count_requests_rows_and_batches(text_bundle: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families as families

    async def test(client: Client) -> None:
        await client.predict("tickets", TEXTS)
        await client.post("/predict/tickets", json=[""])
        await client.get("/nowhere/at/all")
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        samples = {
            (each.name, tuple(sorted(each.labels.items()))): each.value
            for family in families(response.text)
            for each in family.samples
        }

        def value(name: str, **labels: str) -> float | None:
            return samples.get((name, tuple(sorted(labels.items()))))

        asked = {"route": "/predict/{name}", "model": "tickets"}
        assert value("headstart_requests_total", **asked, status="200") == 1
        assert value("headstart_requests_total", **asked, status="400") == 1
        assert value("headstart_requests_total", route="none", model="", status="404") == 1
        assert value("headstart_rows_total", model="tickets") == 3
        assert value("headstart_batch_rows_sum", model="tickets") == 3
        assert value("headstart_waiting_rows", model="tickets") == 0
        assert value("headstart_model_loaded", model="tickets") == 1

    ask({"tickets": text_bundle}, test)
