"""Models on one backbone, answered in one pass, give what each gives alone."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import headstart as hs
from headstart.serve.joining import House, fits, parts, scale
from headstart.serve.limits import Limits
from headstart.serve.models import Models
from headstart.serve.trunk import Pair, Tenant, Trunk
from headstart.values import Features
from serving import Client, ask, encoded, picture
from tenancy import KINDS, TEXTS, WORDS, stirred
from tiny import TinyBackbone, make_rows

pytest.importorskip("peft")

TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)


def trunks(models: Models) -> set[Trunk]:
    return {served.bundle.model.trunk for served in models.loaded if isinstance(served.bundle.model, Tenant)}


REQUEST = st.tuples(st.sampled_from(sorted(KINDS)), st.lists(TEXT, min_size=1, max_size=5), st.integers(0, 3))


@settings(max_examples=15)
@given(st.lists(REQUEST, min_size=1, max_size=12), st.integers(1, 9))
def test_tenants_in_company_are_answered_as_alone(
    tenants: dict[str, Path], apart: dict[str, hs.Bundle], requests: list[tuple[str, list[str], int]], batch: int
) -> None:
    """Random mixes of tenants, tasks, ranks, lengths, batch sizes and times of arrival."""

    async def main() -> list[Any]:
        models = Models(tenants, Limits(batch_rows=batch))
        await models.start()
        assert len(trunks(models)) == 1 and len(models.loaded) == len(KINDS)

        async def one(name: str, texts: list[str], pause: int) -> Any:
            for _ in range(pause):
                await asyncio.sleep(0)
            async with models.use(name) as served:
                return (await served.answers(texts))[:2]

        found = await asyncio.gather(*(one(*request) for request in requests))
        await models.close()
        return found

    for (name, texts, _), (outputs, pooled) in zip(requests, asyncio.run(main()), strict=True):
        expected = np.concatenate([apart[name].outputs([text]) for text in texts])
        assert outputs.shape == expected.shape and np.allclose(outputs, expected, atol=1e-5)
        assert pooled.shape == (len(texts), apart[name].model.backbone.width)


def test_one_batch_holds_rows_of_all(tenants: dict[str, Path], apart: dict[str, hs.Bundle]) -> None:
    """Asked at once, the tenants share batches, and each gets its own answers and counts the batches it was in."""

    async def test(client: Client) -> None:
        served: Any = client.server.models.get("wide")
        served.batcher._company = float(len(tenants))  # as if they had come together before
        found = await asyncio.gather(*(client.predict(name, TEXTS) for name in tenants))
        for name, rows in zip(tenants, found, strict=True):
            assert [row["prediction"] for row in rows] == [pytest.approx(x) if isinstance(x, float) else x
                                                           for x in apart[name].predict(TEXTS)]  # fmt: skip
        sizes = client.server.metrics.batch
        assert all(sizes.labels(name)._sum.get() > len(TEXTS) for name in tenants)

    ask(tenants, test, Limits(delay_ms=20_000))


def test_factors_change_the_answers(apart: dict[str, hs.Bundle], tenants: dict[str, Path]) -> None:
    """So that the comparisons above compare something: without its factors a tenant answers otherwise."""
    for name in ("wide", "narrow", "tags", "number"):
        bundle, _ = House().read(tenants[name])
        assert np.abs(bundle.outputs(TEXTS) - apart[name].outputs(TEXTS)).max() < 1e-5
        tenant: Any = bundle.model
        tenant.factors.clear()
        assert np.abs(bundle.outputs(TEXTS) - apart[name].outputs(TEXTS)).max() > 1e-2, name


def test_a_tenant_costs_its_factors_and_joins_and_leaves(tenants: dict[str, Path], apart: dict[str, hs.Bundle]) -> None:
    async def test(client: Client) -> None:
        models = client.server.models
        (trunk,) = trunks(models)
        assert (await client.post("/v2/repository/models/wide/unload")).status_code == 200
        before = models.bytes
        assert (await client.post("/v2/repository/models/wide/load")).status_code == 200
        own = sum(v.nbytes for n, v in apart["wide"].model.state_dict().items() if "lora" in n or n[:4] == "head")
        assert models.bytes - before == own < trunk.nbytes / 2
        assert trunks(models) == {trunk}
        assert client.logged("loaded")[0]["shared_bytes"] == trunk.nbytes
        served: Any = models.get("wide")
        expected = apart["wide"].scores(TEXTS)
        assert np.allclose(list((await client.predict("wide", TEXTS))[0].values())[1:], expected[0], atol=1e-5)
        factors = [weakref.ref(pair.up) for pair in served.bundle.model.factors.values()]
        del served
        await client.post("/v2/repository/models/wide/unload")
        await client.predict("probe", TEXTS[:1])
        while models._retiring:
            await asyncio.sleep(0.01)
        gc.collect()
        assert all(factor() is None for factor in factors)
        for name in tenants:
            if name != "wide":
                await client.post(f"/v2/repository/models/{name}/unload")
        while models._retiring:
            await asyncio.sleep(0.01)
        assert models.bytes == 0 and not models._house._trunks and not models._lanes
        await client.post("/v2/repository/models/number/load")
        assert len(await client.predict("number", TEXTS)) == len(TEXTS)

    ask(tenants, test)


def test_other_backbones_and_surgeries_have_queues_of_their_own(
    tenants: dict[str, Path], text_bundle: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    dora = hs.fit(TEXTS * 3, ["a", "b"] * 9, backbone=f"file:{tiny_bert}", methods=["lora:dora=true,merge=false"])
    adapter = hs.fit(TEXTS * 3, ["a", "b"] * 9, backbone=f"file:{tiny_bert}", methods=["adapter"], epochs=1)
    others = {"dora": dora, "adapter": adapter, "tuned": hs.load(text_bundle)}
    folders = {"probe": tenants["probe"], "wide": tenants["wide"]}
    folders |= {name: model.save(tmp_path / name) for name, model in others.items()}

    async def test(client: Client) -> None:
        models: Any = client.server.models
        assert [type(models.get(name).bundle.model).__name__ for name in ("dora", "adapter")] == ["Model"] * 2
        lanes = {name: models.get(name).lane for name in folders}
        assert lanes["probe"] is lanes["wide"] and len(set(lanes.values())) == 4
        assert models.get("tuned").shared > 0  # the bottom, which was left alone
        for name, model in others.items():
            assert [row["prediction"] for row in await client.predict(name, TEXTS)] == model.predict(TEXTS)

    ask(folders, test)


@pytest.mark.parametrize("network", ["vit", "swin", "resnet"])
def test_pictures_in_company_are_answered_as_alone(
    network: str, hub: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Linear layers of a ViT, also on windows of the picture; convolutions."""
    folder = hub(network)
    pictures = [picture(seed) for seed in range(12)]
    methods = {"one": "lora:r=2,merge=false", "two": "lora:r=4,merge=false", "probe": "freeze:probe"}
    if network == "resnet":
        methods |= {
            "one": "lora:r=2,targets=convolution,merge=false",
            "two": "lora:r=4,targets=convolution,merge=false",
        }
    bundles = {}
    for seed, (name, method) in enumerate(methods.items()):
        made = hs.fit(pictures, ["light", "dark"] * 6, backbone=f"file:{folder}", methods=[method], epochs=1)
        bundles[name] = stirred(made, seed)
        bundles[name].save(tmp_path / name)

    async def main() -> dict[str, Any]:
        models = Models({name: tmp_path / name for name in methods}, Limits(batch_rows=8))
        await models.start()
        assert len(trunks(models)) == 1

        async def one(name: str) -> Any:
            async with models.use(name) as served:
                return (await served.answers([encoded(each) for each in pictures[:5]]))[0]

        found = dict(zip(methods, await asyncio.gather(*map(one, methods)), strict=True))
        await models.close()
        return found

    for name, found in asyncio.run(main()).items():
        expected = bundles[name].outputs([encoded(each) for each in pictures[:5]])
        assert np.allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_the_names_in_a_file_tell_what_a_bundle_is() -> None:
    head = ["head.weight", "head.bias"]
    lora = [f"backbone.network.q.{part}" for part in ("base_layer.weight", "lora_A.default.weight")]
    found = parts([*head, *lora, "backbone.network.q.lora_B.default.weight", "backbone.network.n.bias"])
    assert found is not None
    assert set(found.base) == {"network.q.weight", "network.n.bias"} and set(found.factors) == {"network.q"}
    for strange in ([*head, *lora], head[:1], [*head, "adapter.weight"], [*head, "backbone.q.lora_magnitude_vector"]):
        assert parts(strange) is None
    assert fits({"surgery": []}) and fits({"surgery": [{"name": "lora", "options": {"dora": False}}]})
    assert not fits({"surgery": [{"name": "lora", "options": {"dora": True}}]})
    assert not fits({"surgery": [{"name": "lora", "options": {"init": "runs/a/adapter"}}]})
    assert scale({}) == 2 and scale({"r": 4, "alpha": 6, "rslora": True}) == 3
    assert not fits({"surgery": [{"name": "prompt", "options": {}}]}) and not fits({"surgery": [], "runtime": {}})


class Mixing(TinyBackbone):
    """A network that turns rows and tokens around before its layers, as some do."""

    def features(self, batch: Any) -> Features:
        x = self.network.embedding(batch.inputs["input_ids"]).transpose(0, 1)
        for layer in self.network.layers:
            x = layer(x)
        return Features(x.mean(0))


def pair(seed: int) -> Pair:
    draws = torch.Generator().manual_seed(seed)
    return Pair(torch.randn(2, 16, generator=draws), torch.randn(16, 2, generator=draws))


@pytest.mark.parametrize(("backbone", "right"), [(TinyBackbone, True), (Mixing, False)])
def test_a_network_that_mixes_its_rows_is_noticed(backbone: type[TinyBackbone], right: bool) -> None:
    trunk = Trunk(backbone())
    tenant = Tenant(trunk, nn.Linear(16, 3), {"network.layers.1.linear": pair(0)})
    assert trunk.hook(tenant.factors) == ["network.layers.1.linear"] and trunk.hook(tenant.factors) == []
    batch = make_rows(6, same_length=True).batch(range(6))
    if right:
        trunk.prove(batch, tenant)
    else:
        with pytest.raises(hs.errors.ProofError, match="this network mixes rows"):
            trunk.prove(batch, tenant)


def test_a_tenant_of_such_a_network_is_served_alone(
    tenants: dict[str, Path], apart: dict[str, hs.Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Trunk, batch: Any, tenant: Tenant) -> None:
        raise hs.errors.ProofError("rows are mixed")

    monkeypatch.setattr(Trunk, "prove", wrong)
    house = House()
    probe, _ = house.read(tenants["probe"])
    assert isinstance(probe.model, Tenant)
    for _ in range(2):  # the layers were let go again, so the second is looked at like the first
        bundle, _ = house.read(tenants["wide"])
        assert type(bundle.model).__name__ == "Model" and not probe.model.trunk._hooks
        assert np.array_equal(bundle.outputs(TEXTS), apart["wide"].outputs(TEXTS))
    assert list(house._members.values()) == [1]


class Folding(TinyBackbone):
    """Cuts each row into two halves that stand side by side in the batch, as networks with windows do."""

    def features(self, batch: Any) -> Features:
        x: Tensor = self.network.embedding(batch.inputs["input_ids"])
        rows, tokens, width = x.shape
        x = x.reshape(rows * 2, tokens // 2, width)
        for layer in self.network.layers:
            x = layer(x)
        return Features(x.reshape(rows, tokens, width).mean(1))


def test_parts_of_a_row_get_its_factors() -> None:
    trunk = Trunk(Folding())
    batch = make_rows(6, same_length=True).batch(range(6))
    tenants = [Tenant(trunk, nn.Linear(16, 3), {f"network.layers.{n % 2}.linear": pair(n)}) for n in range(3)]
    for tenant in tenants:
        trunk.hook(tenant.factors)
        trunk.prove(batch, tenant)
    with torch.inference_mode():
        mixed = trunk.answer(batch, tenants * 2)[1]
        for row, tenant in enumerate(tenants * 2):
            assert torch.allclose(mixed[row], tenant(batch)[1][row], atol=1e-5)


def test_a_bundle_that_does_not_load_leaves_nothing_behind(tenants: dict[str, Path], tmp_path: Path) -> None:
    house = House()
    probe, _ = house.read(tenants["probe"])
    trunk: Any = probe.model
    for broken in ("factors", "answers"):
        folder = Path(shutil.copytree(tenants["wide"], tmp_path / broken))
        weights = load_file(folder / "model.safetensors")
        if broken == "factors":
            found = next(name for name in weights if "layer.0" in name and "lora_A" in name)
            for part in ("A", "B"):
                name = found.replace("lora_A", f"lora_{part}")
                weights[name.replace("layer.0", "layer.7")] = weights.pop(name)
        else:
            weights["head.bias"] += 1.0
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        record = json.loads((folder / "bundle.json").read_text())
        content = (folder / "model.safetensors").read_bytes()
        record["files"]["model.safetensors"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        (folder / "bundle.json").write_text(json.dumps(record))
        with pytest.raises((hs.errors.ProofError, AttributeError)):
            house.read(folder)
        assert list(house._members.values()) == [1] and not trunk.trunk._hooks
