"""The Open Inference Protocol, version 2, as JSON and in binary."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headstart as hs
from headstart.serve import protocol
from headstart.serve.refusals import Refused
from serving import Client, ask, encoded, picture

TEXTS = ["where is my parcel", "refund please today", "password lost"]
INPUT = {"name": "text", "shape": [2], "datatype": "BYTES", "data": TEXTS[:2]}


def test_health_and_metadata(text_bundle: Path) -> None:
    model = hs.load(text_bundle)

    async def test(client: Client) -> None:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        about = (await client.get("/v2")).json()
        assert (about["name"], about["version"]) == ("headstart", hs.__version__)
        found = (await client.get("/v2/models/tickets")).json()
        version = model.record["lineage"]["id"][:12]
        assert found["versions"] == [version] and found["platform"] == "headstart"
        assert found["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert found["outputs"] == [
            {"name": "prediction", "datatype": "BYTES", "shape": [-1]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
        ]
        assert found["parameters"]["labels"] == list(model.labels)
        for path in ("/v2/models/tickets", f"/v2/models/tickets/versions/{version}"):
            assert (await client.get(f"{path}/ready")).json() == {"name": "tickets", "ready": True}
            assert (await client.post(f"{path}/infer", json={"inputs": [INPUT]})).status_code == 200
        assert (await client.get(f"/v2/models/tickets/versions/{version}")).json() == found
        for path in ("/v2/models/nothing", "/v2/models/tickets/versions/7", "/v2/models/nothing/ready"):
            assert (await client.get(path)).status_code == 404
        client.server.draining = True
        response = await client.get("/v2/health/ready")
        assert (response.status_code, response.json()) == (503, {"ready": False})
        assert (await client.get("/v2/health/live")).status_code == 200

    ask({"tickets": text_bundle}, test)


def test_tensors_in_json(text_bundle: Path) -> None:
    model = hs.load(text_bundle)

    async def test(client: Client) -> None:
        body = {"id": "seven", "inputs": [INPUT]}
        found = (await client.post("/v2/models/tickets/infer", json=body)).json()
        assert (found["model_name"], found["id"]) == ("tickets", "seven")
        prediction, scores = found["outputs"]
        assert prediction == {
            "name": "prediction", "datatype": "BYTES", "shape": [2], "data": model.predict(TEXTS[:2]),
        }  # fmt: skip
        assert scores["shape"] == [2, 3] and scores["datatype"] == "FP32"
        assert np.allclose(np.reshape(scores["data"], (2, 3)), model.scores(TEXTS[:2]), atol=1e-5)
        column = {**INPUT, "shape": [2, 1], "data": [[text] for text in TEXTS[:2]]}
        asked = {"inputs": [column], "outputs": [{"name": "scores"}]}
        found = (await client.post("/v2/models/tickets/infer", json=asked)).json()
        assert [output["name"] for output in found["outputs"]] == ["scores"]
        assert np.allclose(found["outputs"][0]["data"], scores["data"], atol=1e-5)

    ask({"tickets": text_bundle}, test)


def test_tensors_in_binary(text_bundle: Path) -> None:
    model = hs.load(text_bundle)
    data = b"".join(struct.pack("<I", len(text)) + text.encode() for text in TEXTS)
    tensor = {"name": "text", "shape": [3], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "prediction"}]

    async def test(client: Client) -> None:
        head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        response = await client.post("/v2/models/tickets/infer", content=head + data, headers=headers)
        assert response.headers["content-type"] == "application/octet-stream"
        size = int(response.headers["Inference-Header-Content-Length"])
        scores, prediction = json.loads(response.content[:size])["outputs"]
        assert scores["parameters"] == {"binary_data_size": 3 * 3 * 4} and "data" not in scores
        found = np.frombuffer(response.content[size:], "<f4").reshape(scores["shape"])
        assert np.allclose(found, model.scores(TEXTS), atol=1e-5)
        assert prediction["data"] == model.predict(TEXTS)
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        response = await client.post("/v2/models/tickets/infer", content=head + data, headers=headers)
        size = int(response.headers["Inference-Header-Content-Length"])
        first = json.loads(response.content[:size])["outputs"][0]["parameters"]["binary_data_size"]
        labels, at = [], size
        while at < size + first:
            (length,) = struct.unpack_from("<I", response.content, at)
            labels.append(response.content[at + 4 : at + 4 + length].decode())
            at += 4 + length
        assert labels == model.predict(TEXTS)

    ask({"tickets": text_bundle}, test)


def test_pictures_as_base64_and_in_binary(image_bundle: Path) -> None:
    files = [encoded(picture(seed)) for seed in (20, 21)]
    expected = hs.load(image_bundle).predict(files)

    async def test(client: Client) -> None:
        tensor: dict[str, Any] = {"name": "image", "shape": [2], "datatype": "BYTES"}
        inline = {**tensor, "data": [base64.b64encode(data).decode() for data in files]}
        found = (await client.post("/v2/models/shades/infer", json={"inputs": [inline]})).json()
        assert found["outputs"][0]["data"] == expected
        data = b"".join(struct.pack("<I", len(each)) + each for each in files)
        head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        response = await client.post("/v2/models/shades/infer", content=head + data, headers=headers)
        assert response.json()["outputs"][0]["data"] == expected

    ask({"shades": image_bundle}, test)


def test_outputs_of_several_tasks_and_of_numbers(double_bundle: Path, number_bundle: Path) -> None:
    async def test(client: Client) -> None:
        for name, bundle in (("double", double_bundle), ("lengths", number_bundle)):
            described = (await client.get(f"/v2/models/{name}")).json()["outputs"]
            found = (await client.post(f"/v2/models/{name}/infer", json={"inputs": [INPUT]})).json()["outputs"]
            assert [(o["name"], o["datatype"]) for o in found] == [(o["name"], o["datatype"]) for o in described]
            for output, shape in zip(found, (o["shape"] for o in described), strict=True):
                assert output["shape"] == [2, *shape[1:]] and len(output["data"]) == np.prod(output["shape"])
            answers = hs.load(bundle).predict(TEXTS[:2])
            if name == "double":
                assert found[0]["data"] == [answer["intent"] for answer in answers]
                assert found[2]["data"] == ["|".join(answer["tags"]) for answer in answers]
            else:
                assert np.allclose(found[0]["data"], np.ravel(answers), atol=1e-4)

    ask({"double": double_bundle, "lengths": number_bundle}, test)


def refusal(record: Any, length: str | None = None, rest: bytes = b"", modality: str = "text") -> str:
    with pytest.raises(Refused) as refused:
        protocol.read(json.dumps(record).encode() + rest, length, modality)
    assert refused.value.status == 400
    return refused.value.sentence


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ([], "expected a JSON object with 'inputs'"),
        ({}, "expected 'inputs' to be a list of one tensor named 'text'"),
        ({"inputs": [INPUT, INPUT]}, "expected 'inputs' to be a list of one tensor named 'text'"),
        ({"inputs": ["a"]}, "expected 'inputs' to be a list of one tensor named 'text'"),
        ({"inputs": [INPUT], "id": 3}, "expected 'id' to be a string of at most 256 characters"),
        ({"inputs": [INPUT], "parameters": 3}, "expected 'parameters' to be an object"),
        (
            {"inputs": [INPUT], "parameters": {"binary_data_output": 1}},
            "expected the parameter 'binary_data_output' to be true or false",
        ),
        ({"inputs": [INPUT], "outputs": "scores"}, "expected 'outputs' to be a list of objects with a 'name'"),
        ({"inputs": [INPUT], "outputs": ["scores"]}, "expected 'outputs' to be a list of objects with a 'name'"),
        ({"inputs": [{**INPUT, "name": "x"}]}, "expected an input named 'text'"),
        ({"inputs": [{**INPUT, "datatype": "FP32"}]}, "the input 'text' has the datatype BYTES and no other"),
        ({"inputs": [{**INPUT, "shape": [2, 2]}]}, "expected the shape [rows] or [rows, 1]"),
        ({"inputs": [{**INPUT, "shape": [True]}]}, "expected the shape [rows] or [rows, 1]"),
        ({"inputs": [{**INPUT, "shape": [-1]}]}, "expected the shape [rows] or [rows, 1]"),
        ({"inputs": [{**INPUT, "shape": "2"}]}, "expected the shape [rows] or [rows, 1]"),
        ({"inputs": [{**INPUT, "shape": [3]}]}, "the shape says 3 rows and the data holds 2"),
        ({"inputs": [{**INPUT, "data": "a"}]}, "expected 'data' to be a list"),
        ({"inputs": [{**INPUT, "data": ["a", 3]}]}, "row 1: expected a string"),
        (
            {"inputs": [{**INPUT, "parameters": {"binary_data_size": 4}}]},
            "expected binary_data_size to be the 0 bytes that follow the JSON",
        ),
    ],
)
def test_requests_that_are_wrong_say_what_is(record: Any, sentence: str) -> None:
    assert refusal(record) == sentence


def test_binary_requests_that_are_wrong_say_what_is() -> None:
    for rest in (b"\x01", b"\x05\0\0\0a"):
        record = {"inputs": [{**INPUT, "parameters": {"binary_data_size": len(rest)}}]}
        assert refusal(record, str(len(json.dumps(record))), rest) == "the binary data is cut short"
    for length in ("x", "-1", "10000"):
        assert refusal({}, length).startswith("expected the length of the JSON in inference-header-content-length")


def test_an_output_that_is_not_there_is_refused(text_bundle: Path) -> None:
    async def test(client: Client) -> None:
        asked = {"inputs": [INPUT], "outputs": [{"name": "logits"}]}
        response = await client.post("/v2/models/tickets/infer", json=asked)
        assert response.status_code == 400
        assert response.json()["error"] == "there is no output of that name; the model has prediction, scores"

    ask({"tickets": text_bundle}, test)


@given(st.binary(max_size=40), st.one_of(st.none(), st.text(max_size=4)))
def test_any_bytes_are_read_or_refused(body: bytes, length: str | None) -> None:
    with pytest.raises(Refused):
        protocol.read(body, length, "text")


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_binary_rows_arrive_as_they_were_sent(rows: list[bytes]) -> None:
    data = b"".join(struct.pack("<I", len(row)) + row for row in rows)
    tensor = {"name": "image", "shape": [len(rows)], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    assert protocol.read(head + data, str(len(head)), "image").rows == rows


@pytest.mark.parametrize("identity", ["\ud800", "a\udfff", "x" * 257, 7])
def test_an_id_that_cannot_be_sent_back_is_refused(text_bundle: Path, identity: Any) -> None:
    async def test(client: Client) -> None:
        response = await client.post(
            "/v2/models/tickets/infer", content=json.dumps({"id": identity, "inputs": [INPUT]})
        )
        assert response.status_code == 400
        assert response.json()["error"] == "expected 'id' to be a string of at most 256 characters"

    ask({"tickets": text_bundle}, test)
