"""Models above the budget of memory rest and come back, and no request notices."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headstart as hs
from headstart.cli import run
from headstart.errors import SpecError
from headstart.serve.limits import Limits
from headstart.serve.models import Models
from headstart.serve.sharing import held
from serving import Client, ask
from tenancy import KINDS, TEXTS


@pytest.fixture(scope="module")
def sizes(tenants: dict[str, Path]) -> dict[str, int]:
    """Bytes of each tenant's weights beside the backbone's, and of the backbone."""

    async def main() -> dict[str, int]:
        models = Models(tenants, Limits())
        await models.start()
        found: dict[str, Any] = {served.name: served.bundle.model for served in models.loaded}
        whole = {name: model.nbytes for name, model in found.items()}
        whole["backbone"] = models.bytes - sum(whole.values())
        assert 0 <= whole["backbone"] - found["probe"].trunk.nbytes < 2000  # positions, which no file holds
        await models.close()
        return whole

    return asyncio.run(main())


def states(client: Client) -> list[str]:
    return [served.name for served in client.server.models.loaded]


async def same(client: Client, name: str, model: hs.Bundle) -> None:
    (row,) = await client.predict(name, TEXTS[:1])
    assert np.allclose([v for k, v in row.items() if k != "prediction"], model.scores(TEXTS[:1])[0], atol=1e-5)


def test_those_asked_longest_ago_rest_and_the_next_request_wakes_them(
    tenants: dict[str, Path], apart: dict[str, hs.Bundle], sizes: dict[str, int]
) -> None:
    folders = {name: tenants[name] for name in ("wide", "tags", "narrow", "probe")}

    async def test(client: Client) -> None:
        models = client.server.models
        assert states(client) == ["narrow", "probe", "tags"]  # the first that was loaded made room
        (entry,) = [each for each in (await client.post("/v2/repository/index")).json() if each["name"] == "wide"]
        assert (entry["state"], entry["reason"]) == ("READY", "not in memory: the next request loads it")
        assert (await client.get("/v2/models/wide/ready")).status_code == 200
        listed = (await client.get("/models")).json()["models"]
        assert [each["name"] for each in listed] == ["narrow", "probe", "tags", "wide"]
        assert listed[3]["tasks"][0]["labels"] == list(apart["wide"].labels)
        assert (await client.get("/schema/wide")).status_code == 200 and states(client) == ["narrow", "probe", "tags"]
        text = (await client.get("/metrics")).text
        assert 'headstart_model_loaded{model="wide"} 0.0' in text and f"headstart_weights_bytes {models.bytes}" in text

        await same(client, "tags", apart["tags"])
        await same(client, "wide", apart["wide"])  # needs the room of more than one
        assert "wide" in states(client) and "tags" in states(client) and "narrow" not in states(client)
        assert models.bytes <= (models.memory or 0)
        created = models.get("wide").created
        await same(client, "narrow", apart["narrow"])
        await same(client, "wide", apart["wide"])
        assert models.get("wide").created == created
        assert {entry["model"] for entry in client.logged("resting")} >= {"wide", "narrow"}
        assert {entry["model"] for entry in client.logged("loaded")} >= {"wide", "narrow"}

    ask(folders, test, memory=sum(sizes[name] for name in ("backbone", "wide", "tags")) + sizes["probe"] // 2)


REQUEST = st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 3), st.integers(0, 6))


@settings(max_examples=8)
@given(st.lists(REQUEST, min_size=4, max_size=20), st.floats(0.0, 1.0))
def test_no_request_is_dropped_however_small_the_budget(
    tenants: dict[str, Path], apart: dict[str, hs.Bundle], sizes: dict[str, int], requests: list[Any], share: float
) -> None:
    least = sizes["backbone"] + sizes["wide"]
    budget = least + int(share * (sum(sizes.values()) - least))

    async def test(client: Client) -> None:
        async def one(name: str, rows: int, pause: int) -> None:
            await asyncio.sleep(0.002 * pause)
            found = await client.predict(name, TEXTS[:rows])
            scores = [[v for k, v in row.items() if k != "prediction"] for row in found]
            expected = apart[name].scores(TEXTS[:rows])
            if name != "number":  # whose prediction is its score
                assert np.allclose(scores, expected, atol=1e-5)
            else:
                assert np.allclose([row["prediction"] for row in found], expected[:, 0], rtol=1e-4)

        await asyncio.gather(*(one(*request) for request in requests))
        assert client.server.models.bytes <= budget

    ask(tenants, test, memory=budget)


def test_many_who_ask_a_resting_model_wait_for_one_load(
    tenants: dict[str, Path], apart: dict[str, hs.Bundle], sizes: dict[str, int]
) -> None:
    folders = {name: tenants[name] for name in ("narrow", "wide")}

    async def test(client: Client) -> None:
        assert states(client) == ["wide"]
        left = asyncio.create_task(client.predict("narrow", TEXTS))
        await asyncio.sleep(0)
        asked = [asyncio.create_task(same(client, "narrow", apart["narrow"])) for _ in range(5)]
        while not client.server.models._waking:
            await asyncio.sleep(0)
        left.cancel()  # whoever started the load may leave
        await asyncio.gather(*asked)
        assert [entry["model"] for entry in client.logged("loaded")] == ["narrow"]
        assert not client.server.models._wanted

    ask(folders, test, memory=sizes["backbone"] + sizes["wide"])


def test_a_model_that_cannot_come_back_says_so_and_may_come_later(
    tenants: dict[str, Path], apart: dict[str, hs.Bundle], sizes: dict[str, int], tmp_path: Path
) -> None:
    folders = {"narrow": Path(shutil.copytree(tenants["narrow"], tmp_path / "narrow")), "wide": tenants["wide"]}

    async def test(client: Client) -> None:
        folders["narrow"].rename(tmp_path / "away")
        response = await client.post("/predict/narrow", json=TEXTS)
        assert response.status_code == 503
        assert response.json()["error"] == "the model 'narrow' cannot be loaded again, see the server's log"
        assert "there is no bundle at" in client.logged("load failed")[0]["reason"]
        assert states(client) == ["wide"]
        (tmp_path / "away").rename(folders["narrow"])
        await same(client, "narrow", apart["narrow"])
        assert (await client.post("/v2/repository/models/wide/unload")).status_code == 200  # while it rests
        assert (await client.post("/predict/wide", json=TEXTS)).status_code == 503
        assert (await client.post("/v2/repository/models/wide/load")).status_code == 200
        await same(client, "wide", apart["wide"])

    ask(folders, test, memory=sizes["backbone"] + sizes["wide"])


def test_models_with_backbones_of_their_own_rest_too(text_bundle: Path, other_bundle: Path) -> None:
    whole = held([hs.load(text_bundle)])

    async def test(client: Client) -> None:
        assert states(client) == ["two"]
        assert (await client.predict("one", TEXTS[:1]))[0]["prediction"] == hs.load(text_bundle).predict(TEXTS[:1])[0]
        assert states(client) == ["one"]

    ask({"one": text_bundle, "two": other_bundle}, test, memory=whole + 1)


def test_a_budget_below_one_model_ends_the_start(text_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpecError, match="expected a budget of memory of at least 1MB, which the weights of 'tickets'"):
        ask({"tickets": text_bundle}, lambda client: client.get("/"), memory=1000)
    assert run(["serve", str(text_bundle), "--port", "0", "--memory", "1KB"]) == 2
    assert "raise --memory or leave it out" in capsys.readouterr().err
    assert run(["serve", str(text_bundle), "--port", "0", "--memory", "lots"]) == 2
    assert "expected a size such as 500MB or 2GB, received 'lots'" in capsys.readouterr().err
