"""Pretrained networks, one file per source of weights.

A reference is `hf:organisation/name`, `timm:name`, `file:path` or `pkg:package`. `load` makes the network with its
weights, `rebuild` makes it again from what a bundle keeps, `known` lists what there is without loading anything.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.backbones._known import DEFAULTS, STARTERS, shipping_weights, stand_in, version
from headstart.errors import BackboneError, OutOfReach, did_you_mean

if TYPE_CHECKING:
    from headstart.protocols import Backbone
    from headstart.spec import BackboneSpec

SOURCES: Mapping[str, str] = {"hf": "hf", "timm": "timm", "file": "local", "pkg": "package"}
"""Prefix of a reference -> module of this package that reads it."""

__all__ = ["DEFAULTS", "SOURCES", "known", "load", "rebuild", "shorten"]


def load(spec: BackboneSpec, modality: str, *, seed: int = 0) -> Backbone:
    """The network that a spec names, for rows of a modality ('text', 'image' or 'audio'), with its weights.

    It is in evaluation mode. Without `spec.ref` it is the modality's default, from the `starter` extra.
    With `spec.pretrained = False` it is the same architecture with random weights drawn from `seed`. The global random
    state is left as it was.

    Where the hub cannot be reached, an installed package of the same weights stands in, and `source` says so.

    Raises MissingExtra when a library or the starter is not installed (with the pip command), and BackboneError when
    the reference cannot be found, fetched, read, trusted, or does not read this modality.
    """
    if modality not in (*DEFAULTS, "audio"):
        raise BackboneError(f"expected rows of audio, image or text for a backbone, received '{modality}'")
    if spec.ref is None and modality not in DEFAULTS:
        raise BackboneError(
            f"no package of weights is the default for {modality}: name a backbone, such as "
            f"--backbone hf:openai/whisper-tiny or --backbone file:FOLDER"
        )
    ref = spec.ref or DEFAULTS[modality]
    prefix, colon, rest = ref.partition(":")
    if not colon or prefix not in SOURCES or not rest:
        raise BackboneError(
            f"expected a backbone as hf:, timm:, file: or pkg: and a name, received '{ref}': {_hint(ref)}"
        )
    source = importlib.import_module(f"headstart.backbones.{SOURCES[prefix]}")
    try:
        loaded: Backbone = source.load(rest, spec, modality, seed, ref)
    except OutOfReach:
        packaged = stand_in(ref)
        if packaged is None:
            raise
        loaded = load(spec.model_copy(update={"ref": packaged, "revision": None}), modality, seed=seed)
        loaded.source = {**loaded.source, "instead_of": ref}
    return loaded


def rebuild(record: Mapping[str, Any], folder: Path, *, trust_remote_code: bool = False) -> Backbone:
    """The same network from `Backbone.describe()` and the files of `Backbone.save_files(folder)`.

    Its weights are yet to be loaded. Neither the network nor the package or folder of the weights is needed.
    Raises BackboneError when the record or the folder is not one of these, or when the network runs code that came
    with its weights and `trust_remote_code` is not given.
    """
    family = record.get("family")
    if family not in ("hf", "timm"):
        raise BackboneError(f"expected the record of a backbone of family 'hf' or 'timm', received '{family}'")
    made: Any
    if family == "timm":
        from headstart.backbones import _timm_net

        made = _timm_net.rebuild(record)
    else:
        from headstart.backbones import _hf

        made = _hf.rebuild(record, Path(folder), trust_remote_code)
    made.source = dict(record["source"])
    made.digest = record["digest"]
    if made.width != record["width"]:
        raise BackboneError(f"the rebuilt '{record['ref']}' is {made.width} wide; its record says {record['width']}")
    backbone: Backbone = made
    return backbone


def shorten(backbone: Any, layers: int | Sequence[int]) -> dict[str, str]:
    """Keep some blocks of a finished model's backbone, in place, as `backbone.layers` does of a pretrained one.

    What was cut out of these blocks stays cut. Each module that is left: its path before -> after. Raises BackboneError
    for a network that cannot be shortened.
    """
    from headstart.backbones import _shorter

    return _shorter.shorten(backbone, layers)


def known() -> list[dict[str, Any]]:
    """What can be named, without importing anything heavy: packages of weights first, then the kinds of reference.

    Each has `name`, `summary` and `source`; packages also `modality`, `installed` (their version or None) and
    `default` (whether the modality starts from it when no backbone is named).
    """
    found: list[dict[str, Any]] = []
    for module, starter in STARTERS.items():
        name = f"pkg:{module}"
        has = version(starter.distribution)
        state = f"installed, {has}" if has else f"not installed: pip install {starter.distribution}"
        first = name == DEFAULTS[starter.modality]
        summary = f"{starter.summary} ({f'default for {starter.modality}, ' if first else ''}{state})"
        facts = {"modality": starter.modality, "installed": has, "default": first}
        found.append({"name": name, "summary": summary, "source": starter.distribution, **facts})
    for module, distribution in shipping_weights():
        if module not in STARTERS:
            has = version(distribution)
            facts = {"modality": None, "installed": has, "default": False}
            summary = f"weights in the package {distribution} (installed, {has})"
            found.append({"name": f"pkg:{module}", "summary": summary, "source": distribution, **facts})
    for prefix, module in SOURCES.items():
        text = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(text)) or "").split("\n", 1)[0]
        found.append({"name": f"{prefix}:", "summary": summary, "source": "headstart"})
    return found


def _hint(ref: str) -> str:
    """What was probably meant by a reference without a known prefix."""
    prefix, colon, rest = ref.partition(":")
    if Path(ref).expanduser().exists():
        return f"did you mean 'file:{ref}'?"
    if colon and rest:
        near = did_you_mean(prefix.lower(), SOURCES)
        return f"did you mean '{near.split(chr(39))[1]}:{rest}'?" if near.startswith("did") else near
    if not colon and ref.replace("-", "_") in STARTERS:
        return f"did you mean 'pkg:{ref.replace('-', '_')}'?"
    if not colon and ref.count("/") == 1:
        return f"did you mean 'hf:{ref}'?"
    return "`headstart backbones` lists what there is"
