"""Vectors of texts in the form that OpenAI's clients expect."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np

import headstart as hs
from headstart import inference
from headstart.encoded import Encoded
from serving import Client, ask

TEXTS = ["where is my parcel", "refund please today"]


def test_vectors_are_the_pooled_features_of_the_backbone(text_bundle: Path) -> None:
    model = hs.load(text_bundle)
    backbone = model.model.backbone
    rows = Encoded.of(model.modality, backbone, TEXTS)
    expected = inference.pooled(backbone, rows)

    async def test(client: Client) -> None:
        response = await client.post("/v1/embeddings", json={"model": "tickets", "input": TEXTS})
        found = response.json()
        assert (found["object"], found["model"]) == ("list", "tickets")
        assert [(entry["object"], entry["index"]) for entry in found["data"]] == [("embedding", 0), ("embedding", 1)]
        assert np.allclose([entry["embedding"] for entry in found["data"]], expected, atol=1e-5)
        assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] == int(rows.prepared.lengths.sum())
        asked = {"model": "tickets", "input": TEXTS[0], "encoding_format": "base64", "dimensions": backbone.width}
        (entry,) = (await client.post("/v1/embeddings", json=asked)).json()["data"]
        vector = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")
        assert np.allclose(vector, expected[0], atol=1e-5)
        (listed,) = (await client.get("/v1/models")).json()["data"]
        assert (listed["id"], listed["object"], listed["owned_by"]) == ("tickets", "model", "headstart")

    ask({"tickets": text_bundle}, test)


def test_what_cannot_be_embedded_is_refused_in_openais_form(text_bundle: Path, image_bundle: Path) -> None:
    asked = {"model": "tickets", "input": "a"}

    async def test(client: Client) -> None:
        for body, status, sentence in (
            ([], 400, "expected a JSON object with 'model' and 'input'"),
            ({"input": "a"}, 400, "expected a JSON object with 'model' and 'input'"),
            ({"model": "tickets"}, 400, "expected 'input' to be a text or a list of texts"),
            ({**asked, "input": [1, 2]}, 400, "row 0: expected a text, received a number"),
            ({**asked, "encoding_format": "int8"}, 400, "expected encoding_format to be float or base64"),
            ({**asked, "dimensions": 7}, 400, "the vectors of this model have 32 dimensions and no other number"),
            ({**asked, "model": "gpt"}, 404, "there is no such model; loaded: shades, tickets"),
            (
                {**asked, "model": "shades"},
                400,
                "the model 'shades' reads image, and this route gives vectors of texts",
            ),
        ):
            response = await client.post("/v1/embeddings", json=body)
            assert response.status_code == status, body
            assert response.json() == {
                "error": {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}
            }

    ask({"tickets": text_bundle, "shades": image_bundle}, test)
