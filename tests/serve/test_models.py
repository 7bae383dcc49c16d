"""Models that are loaded, swapped and let go while requests go on."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headstart as hs
from headstart.errors import BundleError
from headstart.serve.models import named
from headstart.serve.refusals import Refused
from serving import Client, ask, encoded, picture

TEXT = "where is my parcel"


def version(folder: Path) -> str:
    found: str = json.loads((folder / "bundle.json").read_text())["lineage"]["id"][:12]
    return found


def replace(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


@pytest.fixture
def folder(text_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(text_bundle, tmp_path / "tickets")
    return tmp_path / "tickets"


def test_a_swap_drops_no_request_and_no_answer_is_a_mixture(
    folder: Path, text_bundle: Path, other_bundle: Path
) -> None:
    """Clients keep asking while the model is swapped to and fro: each answer is wholly that of the version it names."""
    bundles = [text_bundle, other_bundle]
    expected = {version(each): hs.load(each).scores([TEXT])[0] for each in bundles}
    assert not np.allclose(*expected.values(), atol=1e-3)

    async def test(client: Client) -> None:
        seen: list[str] = []
        stop = False

        async def keep_asking() -> None:
            while not stop:
                response = await client.post("/predict/tickets", json=[TEXT])
                assert response.status_code == 200, response.text
                found = response.json()
                row = [value for name, value in found["predictions"][0].items() if name != "prediction"]
                assert np.allclose(row, expected[found["version"]], atol=1e-5)
                seen.append(found["version"])

        clients = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for turn in range(1, 5):
            replace(folder, bundles[turn % 2])
            assert (await client.post("/v2/repository/models/tickets/load")).status_code == 200
            assert (await client.get("/v2/models/tickets")).json()["versions"] == [version(bundles[turn % 2])]
            await asyncio.sleep(0.02)
        stop = True
        await asyncio.gather(*clients)
        assert set(seen) == set(expected)

    ask({"tickets": folder}, test)


def test_a_model_is_unloaded_when_its_requests_are_answered(folder: Path) -> None:
    async def test(client: Client) -> None:
        asked = [asyncio.create_task(client.predict("tickets", [TEXT] * 8)) for _ in range(4)]
        while client.server.models.get("tickets").batcher.waiting < 32:
            await asyncio.sleep(0)
        assert (await client.post("/v2/repository/models/tickets/unload")).status_code == 200
        assert [len(found) for found in await asyncio.gather(*asked)] == [8] * 4
        response = await client.post("/predict/tickets", json=[TEXT])
        assert (response.status_code, response.json()["error"]) == (503, "the model 'tickets' is not loaded")
        assert (await client.get("/v2/models/tickets/ready")).status_code == 503
        assert (await client.post("/v2/repository/models/tickets/unload")).status_code == 503
        (entry,) = (await client.post("/v2/repository/index")).json()
        assert entry == {"name": "tickets", "state": "UNAVAILABLE", "reason": "not loaded"}
        assert (await client.post("/v2/repository/index", json={"ready": True})).json() == []
        assert (await client.post("/v2/repository/models/tickets/load", json={})).status_code == 200
        assert len(await client.predict("tickets", [TEXT])) == 1
        (entry,) = (await client.post("/v2/repository/index")).json()
        assert (entry["state"], entry["version"]) == ("READY", version(folder))

    ask({"tickets": folder}, test)


def test_a_bundle_that_fails_its_proof_does_not_replace_the_one_that_works(folder: Path) -> None:
    weights = folder / "model.safetensors"

    async def test(client: Client) -> None:
        before = await client.predict("tickets", [TEXT])
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        response = await client.post("/v2/repository/models/tickets/load")
        assert response.status_code == 409
        assert response.json()["error"] == (
            "the model 'tickets' cannot be loaded, see the server's log; the one that was loaded goes on"
        )
        assert "sha256 differs" in client.logged("load failed")[0]["reason"]
        assert await client.predict("tickets", [TEXT]) == before

    ask({"tickets": folder}, test)


def test_a_model_goes_on_from_another_folder_once_that_one_has_proven_itself(
    folder: Path, other_bundle: Path, tmp_path: Path
) -> None:
    async def test(client: Client) -> None:
        models = client.server.models
        with pytest.raises(Refused, match="cannot be loaded"):
            await models.load("tickets", tmp_path / "nothing")
        assert models.folders == {"tickets": folder}
        assert (await models.load("tickets", other_bundle)).version == version(other_bundle)
        assert models.folders == {"tickets": other_bundle}
        assert (await models.load("more", folder)).version == version(folder)
        with pytest.raises(Refused, match="it is not loaded"):
            await models.load("none", tmp_path / "nothing")
        assert models.names == ["more", "tickets"]

    ask({"tickets": folder}, test)


def test_load_takes_no_parameters_and_no_other_names(folder: Path) -> None:
    async def test(client: Client) -> None:
        response = await client.post("/v2/repository/models/tickets/load", json={"parameters": {"config": "{}"}})
        assert response.status_code == 400 and "parameters are not taken" in response.json()["error"]
        response = await client.post("/v2/repository/models/other/load")
        assert (response.status_code, response.json()["error"]) == (404, "there is no such model; known: tickets")
        response = await client.post("/v2/repository/index", json=[])
        assert response.json()["error"] == "expected a JSON object, or no body"

    ask({"tickets": folder}, test)


def test_several_models_have_queues_of_their_own(text_bundle: Path, other_bundle: Path) -> None:
    async def test(client: Client) -> None:
        names = ("one", "two") * 5
        found = await asyncio.gather(*(client.predict(name, [TEXT]) for name in names))
        expected = {name: (await client.predict(name, [TEXT]))[0] for name in ("one", "two")}
        for name, (row,) in zip(names, found, strict=True):
            assert {**row, "prediction": None} == pytest.approx({**expected[name], "prediction": None}, abs=1e-5)
        for name, bundle in (("one", text_bundle), ("two", other_bundle)):
            (row,) = await client.predict(name, [TEXT])
            assert row["prediction"] == hs.load(bundle).predict([TEXT])[0]

    ask({"one": text_bundle, "two": other_bundle}, test)


def test_names_of_models(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    assert named(folders, []) == {"a": folders[0], "b": folders[1]}
    assert named(folders, ["x", "y"]) == {"x": folders[0], "y": folders[1]}
    for given, names, sentence in (
        (folders, ["x"], "a --name for each of the 2 bundles, received 1"),
        ([tmp_path / "a", tmp_path / "c" / "a"], [], "two bundles are called 'a'"),
        ([tmp_path / "a b"], [], "'a b' cannot be the name of a model"),
        ([tmp_path], ["../x"], "'../x' cannot be the name of a model"),
    ):
        with pytest.raises(BundleError, match=sentence):
            named(given, names)


@pytest.mark.parametrize("kind", ["text", "picture", "onnx"])
def test_a_model_that_is_let_go_goes_at_once(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Not only when Python looks for objects that hold each other, which may be after many swaps."""
    bundle: Path = request.getfixturevalue("image_bundle" if kind == "picture" else "text_bundle")
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        hs.export(bundle, tmp_path / "onnx")
        bundle = tmp_path / "onnx"

    async def test(client: Client) -> None:
        models = client.server.models
        for _ in range(2):
            served: Any = models.get("model")
            network: Any = served.bundle.model
            modules = [weakref.ref(network), weakref.ref(network.backbone), weakref.ref(served)]
            rows = [{"b64": base64.b64encode(encoded(picture(1))).decode()}] if kind == "picture" else [TEXT]
            await client.predict("model", rows)
            del served, network
            assert (await client.post("/v2/repository/models/model/unload")).status_code == 200
            for _ in range(200):
                if not any(module() for module in modules):
                    break
                await asyncio.sleep(0.01)
            assert [module() is None for module in modules] == [True] * 3
            assert (await client.post("/v2/repository/models/model/load")).status_code == 200

    gc.collect()
    gc.disable()
    try:
        ask({"model": bundle}, test)
    finally:
        gc.enable()
