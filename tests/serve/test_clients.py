"""Other people's clients, where they are installed: NVIDIA's for the Open Inference Protocol, and OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import headstart as hs
from headstart import inference
from headstart.encoded import Encoded
from serving import process

TEXTS = ["where is my parcel", "refund please today", "password lost"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(text_bundle: Path) -> Iterator[str]:
    with process(str(text_bundle), "--name", "tickets") as (_, url):
        yield url


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient(binary: bool, text_bundle: Path, request: pytest.FixtureRequest) -> None:
    triton = pytest.importorskip("tritonclient.http")
    model = hs.load(text_bundle)
    client = triton.InferenceServerClient(request.getfixturevalue("address").removeprefix("http://"))
    try:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tickets")
        assert client.get_server_metadata()["name"] == "headstart"
        (described,) = client.get_model_metadata("tickets")["inputs"]
        given = triton.InferInput(described["name"], [3], described["datatype"])
        given.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=binary)
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("prediction", "scores")]
        found = client.infer("tickets", [given], outputs=wanted, request_id="7")
        labels = [each.decode() if isinstance(each, bytes) else each for each in found.as_numpy("prediction")]
        assert labels == model.predict(TEXTS)
        assert np.allclose(found.as_numpy("scores"), model.scores(TEXTS), atol=1e-5)
        assert client.get_model_repository_index()[0]["state"] == "READY"
        client.load_model("tickets")
        with pytest.raises(triton.InferenceServerException, match="there is no such model"):
            client.infer("nothing", [given])
    finally:
        client.close()


@pytest.mark.filterwarnings("ignore")
def test_openai(text_bundle: Path, request: pytest.FixtureRequest) -> None:
    openai = pytest.importorskip("openai")
    model = hs.load(text_bundle)
    backbone = model.model.backbone
    expected = inference.pooled(backbone, Encoded.of(model.modality, backbone, TEXTS))
    with openai.OpenAI(base_url=request.getfixturevalue("address") + "/v1", api_key="none") as client:
        found = client.embeddings.create(model="tickets", input=TEXTS)
        assert np.allclose([entry.embedding for entry in found.data], expected, atol=1e-5)
        assert [entry.id for entry in client.models.list()] == ["tickets"]
        with pytest.raises(openai.NotFoundError, match="there is no such model"):
            client.embeddings.create(model="nothing", input="a")
