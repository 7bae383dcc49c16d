"""Equal weights are kept once, and nobody notices."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import headstart as hs
from headstart.serve.sharing import SMALLEST, Pool
from serving import Client, ask

TEXTS = ["where is my parcel", "refund please"]


def places(module: nn.Module) -> dict[str, int]:
    return {name: value.data_ptr() for name, value in module.state_dict().items() if value.nbytes >= SMALLEST}


@pytest.fixture(scope="module")
def probes(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three bundles with heads of their own on the same frozen backbone."""
    root = tmp_path_factory.mktemp("probes")
    found = []
    for number, labels in enumerate((["a", "b"], ["x", "y"], ["low", "high"])):
        model = hs.fit(TEXTS * 6, labels * 6, backbone=f"file:{tiny_bert}", methods=["freeze:probe"])
        found.append(model.save(root / f"model{number}"))
    return found


def test_models_of_one_frozen_backbone_share_its_memory(probes: list[Path]) -> None:
    pool = Pool()
    first, second = hs.load(probes[0]), hs.load(probes[1])
    expected = second.scores(TEXTS)
    size = sum(v.nbytes for v in second.model.backbone.state_dict().values() if v.nbytes >= SMALLEST)
    assert pool.share(first.model) == 0
    assert pool.share(second.model) == size > 0
    assert places(first.model.backbone) == places(second.model.backbone)
    assert np.array_equal(second.scores(TEXTS), expected)
    assert second.prove() == 0.0
    assert pool.share(second.model) == 0


def test_the_memory_is_found_as_long_as_one_of_the_models_lives(probes: list[Path]) -> None:
    pool = Pool()
    first, second = hs.load(probes[0]), hs.load(probes[1])
    pool.share(first.model)
    pool.share(second.model)
    expected = second.scores(TEXTS)
    del first
    gc.collect()
    third = hs.load(probes[2])
    assert pool.share(third.model) > 0
    assert places(third.model.backbone) == places(second.model.backbone)
    assert np.array_equal(second.scores(TEXTS), expected)


def test_weights_that_differ_are_not_shared(probes: list[Path], text_bundle: Path) -> None:
    """A fine-tuned backbone shares what it left alone and nothing else."""
    pool = Pool()
    probe, tuned = hs.load(probes[0]), hs.load(text_bundle)
    expected = tuned.scores(TEXTS)
    pool.share(probe.model)
    pool.share(tuned.model)
    assert np.array_equal(tuned.scores(TEXTS), expected)
    probe_at, tuned_at = places(probe.model.backbone), places(tuned.model.backbone)
    weights = probe.model.backbone.state_dict()
    for name, value in tuned.model.backbone.state_dict().items():
        if value.nbytes >= SMALLEST:
            assert (tuned_at[name] == probe_at[name]) == torch.equal(value, weights[name]), name
    assert tuned_at != probe_at and set(tuned_at.values()) & set(probe_at.values())


@pytest.mark.parametrize("other", [torch.zeros(64, 64), torch.ones(128, 32), torch.ones(64, 64, dtype=torch.float64)])
def test_content_shape_and_type_must_be_equal(other: torch.Tensor) -> None:
    pool, first, second = Pool(), nn.Module(), nn.Module()
    first.register_buffer("weight", torch.ones(64, 64))
    second.register_buffer("weight", other)
    assert pool.share(first) == pool.share(second) == 0


def test_small_and_scattered_tensors_are_left_alone() -> None:
    pool = Pool()
    for value in (torch.ones(8), torch.tensor(1.0), torch.ones(64, 128).t()):
        modules = [nn.Module(), nn.Module()]
        for module in modules:
            module.register_buffer("weight", value.clone(memory_format=torch.preserve_format))
        assert [pool.share(module) for module in modules] == [0, 0]


def test_a_server_shares_and_says_so(probes: list[Path]) -> None:
    async def test(client: Client) -> None:
        one, two = (client.server.models.get(name) for name in ("one", "two"))
        assert places(one.bundle.model.backbone) == places(two.bundle.model.backbone)
        assert (one.shared, two.shared > 0) == (0, True)
        assert (await client.predict("two", TEXTS))[0]["prediction"] == hs.load(probes[1]).predict(TEXTS)[0]
        await client.post("/v2/repository/models/one/load")
        assert client.logged("loaded")[0]["shared_bytes"] == two.shared

    ask({"one": probes[0], "two": probes[1]}, test)


def test_convolutions_with_their_channels_last_are_shared_too() -> None:
    pool, made = Pool(), [nn.Conv2d(16, 32, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    plain = nn.Conv2d(16, 32, 3)
    for other in (made[1], plain):
        other.load_state_dict(made[0].state_dict())
    picture = torch.rand(1, 16, 8, 8)
    expected = made[1](picture)
    assert pool.share(made[0]) == 0
    assert pool.share(made[1]) == made[1].weight.nbytes
    assert made[1].weight.data_ptr() == made[0].weight.data_ptr()
    assert torch.equal(made[1](picture), expected)
    assert pool.share(plain) == 0  # the same numbers in another order in memory
    assert torch.equal(plain.weight, made[0].weight)


def test_depthwise_convolutions_are_shared_whichever_way_they_lie() -> None:
    """Their axis of size 1 may have any stride; without this no EfficientNet could be served."""
    pool, made = Pool(), [nn.Conv2d(128, 128, 3, groups=128) for _ in range(3)]
    made[2].to(memory_format=torch.channels_last)
    for other in made[1:]:
        other.load_state_dict(made[0].state_dict())
    picture = torch.rand(1, 128, 8, 8)
    expected = [module(picture) for module in made]
    shared = [pool.share(module) for module in made]
    assert shared == [0, made[1].weight.nbytes, 0]
    assert all(torch.equal(module(picture), before) for module, before in zip(made, expected, strict=True))
