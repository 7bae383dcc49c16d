"""The weights of a backbone that a light bundle does not hold, fetched from where it was first loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headstart import backbones
from headstart.errors import BundleError, HeadstartError
from headstart.spec import BackboneSpec


def is_own(name: str) -> bool:
    """Whether a light bundle holds a tensor of its model: those of the head and of low-rank factors."""
    return not name.startswith("backbone.") or ".lora_" in name


def plain(name: str) -> str:
    """What a tensor of the model is called in the plain backbone."""
    return name.removeprefix("backbone.").replace(".base_layer.", ".")


def base(record: Mapping[str, Any]) -> dict[str, Tensor]:
    """The backbone's weights by their names in it, found by the reference in a bundle's record.

    Raises BundleError when they cannot be loaded or are not those that the bundle was made with.
    """
    ref, expected = record["backbone"]["ref"], record["backbone"]["digest"]
    try:
        spec = BackboneSpec.model_validate({**record["spec"]["backbone"], "ref": ref})
        found = backbones.load(spec, record["modality"])
    except HeadstartError as error:
        raise BundleError(
            f"this bundle is light: it borrows the weights of '{ref}', which cannot be loaded here ({error})"
        ) from None
    if found.digest != expected:
        raise BundleError(
            f"this bundle is light: it borrows weights of '{ref}' with the digest {expected[:12]}, and those found "
            f"there have {found.digest[:12]}; install the version it was made with, or use the bundle it was made from"
        )
    return dict(found.state_dict())
