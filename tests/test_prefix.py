"""The frozen bottom computed once: the run is the one that computes it in each epoch, and doubt switches it off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headstart import backbones
from headstart.encoded import Encoded
from headstart.hooks import Hooks
from headstart.loop import Loop, Trained
from headstart.methods.freeze import Freeze
from headstart.modalities.image import ImageModality
from headstart.modalities.text import TextModality
from headstart.model import Model
from headstart.protocols import Method
from headstart.spec import BackboneSpec, TrainingSpec
from headstart.tasks.classification import Classification
from hub_folders import IMAGE, TEXT, WORDS, hub
from tiny import make_loop, make_rows

__all__ = ["hub"]
"""A fixture that pytest finds by its name."""

SHARES_BLOCKS = {"albert"}
TIMM = {"timm_efficientnet": "test_efficientnet", "timm_vit": "test_vit", "timm_resnet": "test_resnet"}


def losses_of(loop: Loop, *, resume: bool = False) -> tuple[Trained, list[float]]:
    found: list[float] = []
    old = loop.listen

    def listen(event: str, figures: Mapping[str, Any]) -> None:
        old(event, figures)
        if event == "step":
            found.append(figures["loss"])

    loop.listen = listen
    torch.manual_seed(0)
    return loop.train(resume=resume), found


def difference(a: nn.Module, b: nn.Module) -> float:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


def both(make: Callable[[str], Loop]) -> tuple[Trained, Trained]:
    """The run with the bottom kept, and the one that computes it in each epoch, which it must equal."""
    (kept, a), (plain, b) = losses_of(make("auto")), losses_of(make("off"))
    assert len(a) == len(b) and np.allclose(a, b, rtol=0, atol=1e-5)
    assert difference(kept.model, plain.model) < 1e-5
    for one, other in zip(kept.history, plain.history, strict=True):
        assert one.keys() == other.keys()
        assert all(abs(one[key] - other[key]) < 1e-5 for key in one if key != "seconds")
    assert not plain.bottom
    return kept, plain


def once(result: Trained) -> list[str]:
    return [note for note in result.bottom if "computed once" in note]


def tiny(method: Method, **more: Any) -> Callable[[str], Loop]:
    def make(cache: str) -> Loop:
        rows, held = make_rows(60), make_rows(24, seed=1)
        options = {"rows": rows, "validation": held, "epochs": 4, "patience": None, **more}
        return make_loop({"freeze": method}, cache=cache, **options)

    return make


@pytest.mark.parametrize(
    "method", [Freeze(), Freeze(top=1), Freeze(top=2), Freeze(bottom=1)], ids=["head", "top=1", "top=2", "bottom=1"]
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_is_the_one_that_computes_the_bottom_each_epoch(method: Freeze, accumulate: int) -> None:
    kept, _ = both(tiny(method, accumulate=accumulate))
    assert len(once(kept)) == 1


def texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    draws = np.random.default_rng(seed)
    rows = [" ".join(draws.choice(WORDS, draws.integers(1, 12))) for _ in range(count)]
    return rows, [str(len(row) % 3) for row in rows]


def pictures(count: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    draws = np.random.default_rng(seed)
    return [draws.integers(0, 255, (40, 36, 3), dtype=np.uint8) for _ in range(count)], [
        str(i % 3) for i in range(count)
    ]


def network_loop(ref: str, method: Method, cache: str, image: bool, **training: Any) -> Loop:
    """A loop over a real network of the libraries with random weights."""
    modality = ImageModality() if image else TextModality()
    size = {"image_size": 64} if image and ref.startswith("timm") else {}
    spec = BackboneSpec(ref=ref, pretrained=not ref.startswith("timm"), **size)
    backbone = backbones.load(spec, modality.name, seed=0)
    task = Classification.fit(["0", "1", "2"])
    torch.manual_seed(0)
    model = Model(backbone, nn.Linear(backbone.width, 3))
    parts = []
    for count, seed in ((22, 0), (9, 1)):
        values, labels = (pictures if image else texts)(count, seed)
        parts.append(Encoded.of(modality, backbone, values, task, labels))
    settings = TrainingSpec(batch_size=4, patience=None, cache=cache, optimizer="sgd", head_scale=1.0, **training)
    hooks = Hooks({"freeze": method}, task, modality, seed=0)
    return Loop(model, hooks, parts[0], parts[1], settings, 3, 1e-2, torch.device("cpu"))


@pytest.mark.parametrize("family", [*TEXT, *IMAGE, *TIMM])
@pytest.mark.parametrize("method", [Freeze(top=1), Freeze()], ids=["top", "head"])
def test_networks_of_the_libraries(family: str, method: Freeze, hub: Callable[[str], Path]) -> None:
    if family in TIMM:
        pytest.importorskip("timm")
    ref = f"timm:{TIMM[family]}" if family in TIMM else f"file:{hub(family)}"
    kept, _ = both(lambda cache: network_loop(ref, method, cache, family not in TEXT))
    if method.top is None or family not in SHARES_BLOCKS:
        assert len(once(kept)) == 1, kept.bottom
