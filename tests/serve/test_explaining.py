"""Explanations over HTTP: the same as in Python, limited like answers, and no burden for them."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("captum")

import headstart as hs
from headstart.explanation import attribution
from headstart.serve import keys
from headstart.serve.explainer import IN_LINE
from headstart.serve.limits import Limits
from serving import Client, ask, encoded, picture

TEXT = "where is my parcel"


def test_a_text_is_explained_as_in_python(text_bundle: Path) -> None:
    expected = hs.explain(hs.load(text_bundle), TEXT)

    async def test(client: Client) -> None:
        response = await client.post("/explain/tickets", json={"rows": [TEXT]})
        assert response.status_code == 200, response.text
        found = response.json()
        assert (found["model"], found["label"], found["text"]) == ("tickets", expected.label, TEXT)
        assert [word["text"] for word in found["words"]] == TEXT.split()
        assert [word["weight"] for word in found["words"]] == pytest.approx([w for *_, w in expected.words], abs=1e-5)
        schema = (await client.get("/schema/tickets")).json()["explanation"]
        assert set(schema["required"]) == set(found)
        other = next(label for label in hs.load(text_bundle).labels if label != expected.label)
        response = await client.post(
            f"/explain/tickets?label={other}", content=TEXT, headers={"content-type": "text/plain"}
        )
        assert response.json()["label"] == other

    ask({"tickets": text_bundle}, test)


def test_a_picture_is_explained(image_bundle: Path) -> None:
    expected = hs.explain(hs.load(image_bundle), encoded(picture(20)))

    async def test(client: Client) -> None:
        response = await client.post("/explain/shades", files=[("file", ("a.png", encoded(picture(20)), "image/png"))])
        found = response.json()
        assert np.allclose(found["heat"], expected.heat, atol=1e-5)
        with Image.open(io.BytesIO(base64.b64decode(found["picture"]))) as seen:
            assert np.array_equal(np.asarray(seen), expected.picture)
        assert set((await client.get("/schema/shades")).json()["explanation"]["required"]) == set(found)
        broken = encoded(picture(20))[:-300]
        response = await client.post("/explain/shades", content=broken, headers={"content-type": "image/png"})
        assert (response.status_code, response.json()["error"][:21]) == (400, "row 0: it is damaged,")

    ask({"shades": image_bundle}, test)


def test_one_task_of_several_is_explained(double_bundle: Path) -> None:
    async def test(client: Client) -> None:
        response = await client.post("/explain/double?task=tags&label=money", json=[TEXT])
        assert (response.json()["task"], response.json()["label"]) == ("tags", "money")
        for query, sentence in (
            ("", "this model has several tasks (intent, tags): say which is to be explained"),
            ("?task=tagz", "there is no task 'tagz' in this model: did you mean 'tags'?"),
            ("?task=tags&label=monee", "there is no label 'monee' in this model: did you mean 'money'?"),
        ):
            response = await client.post(f"/explain/double{query}", json=[TEXT])
            assert (response.status_code, response.json()["error"]) == (400, sentence)

    ask({"double": double_bundle}, test)


def test_what_cannot_be_explained_is_refused(
    text_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    secret = {"authorization": f"Bearer {keys.make(path, 'web', 'predict')}"}

    async def test(client: Client) -> None:
        assert (await client.post("/explain/tickets", json=[TEXT])).status_code == 401
        for options, status, sentence in (
            ({"json": [TEXT, TEXT]}, 400, "expected one row to explain, received 2: send them one by one"),
            ({"json": [""]}, 400, "row 0: the text is empty"),
            ({"json": ["a" * 101]}, 413, "row 0: 101 characters, more than the 100 allowed"),
        ):
            response = await client.post("/explain/tickets", headers=secret, **options)
            assert (response.status_code, response.json()["error"]) == (status, sentence)
        assert (await client.post("/explain/none", headers=secret, json=[TEXT])).status_code == 404
        monkeypatch.setattr(attribution, "ready", lambda: False)
        response = await client.post("/explain/tickets", headers=secret, json=[TEXT])
        assert response.status_code == 501 and "pip install 'headstart[explain]'" in response.json()["error"]

    ask({"tickets": text_bundle}, test, Limits(characters=100), path)


def test_exported_models_say_that_they_cannot(text_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rows = tmp_path / "rows.csv"
    lines = [f"{text},{label}" for text, label in zip(
        ["where is my parcel today", "refund please now", "password lost again"] * 4,
        ["delivery", "refund", "login"] * 4, strict=True)]  # fmt: skip
    rows.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    hs.export(text_bundle, tmp_path / "fast", format="onnx", rows=str(rows))

    async def test(client: Client) -> None:
        response = await client.post("/explain/fast", json=[TEXT])
        assert response.status_code == 501
        assert response.json()["error"].startswith("this model was exported and is run by ONNX Runtime")
        (card,) = (await client.get("/models")).json()["models"]
        assert card["explains"] is False and card["unexplained"] == response.json()["error"]
        assert "explanation" not in (await client.get("/schema/fast")).json()

    ask({"fast": tmp_path / "fast"}, test)


def test_tenants_of_one_backbone_are_explained_apart(tenants: dict[str, Path], apart: dict[str, hs.Bundle]) -> None:
    """Also while others on the same backbone are answered."""

    async def test(client: Client) -> None:
        many = [client.predict(name, [TEXT] * 3) for name in tenants for _ in range(4)]
        asked = [client.post(f"/explain/{name}", json=[TEXT]) for name in ("wide", "narrow", "tags", "number")]
        answers, found = await asyncio.gather(asyncio.gather(*many), asyncio.gather(*asked))
        for name, response in zip(("wide", "narrow", "tags", "number"), found, strict=True):
            expected = hs.explain(apart[name], TEXT)
            weights = [word["weight"] for word in response.json()["words"]]
            assert weights == pytest.approx([weight for *_, weight in expected.words], abs=2e-4), name
        for name, rows in zip((name for name in tenants for _ in range(4)), answers, strict=True):
            for row, again in zip(rows, await client.predict(name, [TEXT] * 3), strict=True):
                numbers = {key: value for key, value in again.items() if isinstance(value, float)}
                assert numbers and {key: row[key] for key in numbers} == pytest.approx(numbers, abs=1e-4)
        for served in client.server.models.loaded:
            assert all(each.grad is None for each in served.bundle.model.parameters())

    ask(tenants, test)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Explanations that wait for `go`, and count how often they were entered and given up."""

    class Slow:
        go, entered, left = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)

    real = attribution.answer

    def answer(question: Any, *, tell: Any = None, steps: Any = None) -> Any:
        Slow.entered.release()
        try:
            while not Slow.go.wait(0.01):
                tell()
            return real(question, steps=2)
        finally:
            Slow.left.release()

    monkeypatch.setattr(attribution, "answer", answer)
    return Slow


def test_answers_go_on_and_the_line_is_short(text_bundle: Path, slow: Any) -> None:
    async def test(client: Client) -> None:
        waiting = [asyncio.create_task(client.post("/explain/tickets", json=[TEXT])) for _ in range(IN_LINE)]
        await asyncio.to_thread(slow.entered.acquire)
        while client.server.explainer._here < IN_LINE:
            await asyncio.sleep(0.01)
        response = await client.post("/explain/tickets", json=[TEXT])
        assert (response.status_code, response.headers["retry-after"]) == (429, "5")
        assert response.json()["error"] == "too many explanations are asked for; try again in 5 seconds"
        assert len(await client.predict("tickets", [TEXT])) == 1
        assert not any(task.done() for task in waiting)
        slow.go.set()
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * IN_LINE
        assert (await client.post("/explain/tickets", json=[TEXT])).status_code == 200

    ask({"tickets": text_bundle}, test)


def test_an_explanation_that_nobody_waits_for_is_given_up(text_bundle: Path, slow: Any) -> None:
    async def test(client: Client) -> None:
        response = await client.post("/explain/tickets", json=[TEXT], headers={"x-timeout-ms": "200"})
        assert response.status_code == 504
        assert slow.left.acquire(timeout=10), "the thread noticed"
        slow.go.set()
        assert (await client.post("/explain/tickets", json=[TEXT])).status_code == 200

    ask({"tickets": text_bundle}, test)


def test_routes_are_told_to_all_and_models_to_those_with_a_key(text_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = keys.make(path, "web", "predict")

    async def test(client: Client) -> None:
        stranger = await client.get("/openapi.json")
        assert stranger.status_code == 200
        assert "tickets" not in stranger.text and "delivery" not in stranger.text
        assert "/predict/{name}" in stranger.json()["paths"] and stranger.json()["security"] == [{"key": []}]
        for header in ({"authorization": f"Bearer {secret}"}, {"x-api-key": secret}):
            known = await client.get("/openapi.json", headers=header)
            assert "/predict/tickets" in known.json()["paths"]
        wrong: httpx.Response = await client.get("/openapi.json", headers={"x-api-key": "hsk_wrong"})
        assert (wrong.status_code, wrong.json()["error"][:23]) == (401, "an API key is not known")
        assert (await client.get("/models")).status_code == 401

    ask({"tickets": text_bundle}, test, keys=path)
