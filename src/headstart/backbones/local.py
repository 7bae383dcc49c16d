"""`file:folder` or `file:weights.safetensors?arch=NAME`: weights on this machine.

A folder is read as transformers or timm writes it (config.json, weights, tokenizer). A single file of weights does not
say which network it belongs to, so `?arch=` names it, by timm's name: `file:runs/best.safetensors?arch=resnet18`.
"""

from __future__ import annotations

from pathlib import Path

from headstart.backbones import _files, _folder
from headstart.backbones._structure import NetworkBackbone
from headstart.errors import BackboneError
from headstart.spec import BackboneSpec


def split(rest: str, ref: str) -> tuple[str, str | None]:
    """The path and the architecture of `path[?arch=name]`. Raises BackboneError for another option."""
    path, mark, query = rest.partition("?")
    if not mark:
        return path, None
    key, _, value = query.partition("=")
    if key != "arch" or not value:
        raise BackboneError(f"expected '?arch=NAME' after the path, received '?{query}' in '{ref}'")
    return path, value


def load(rest: str, spec: BackboneSpec, modality: str, seed: int, ref: str) -> NetworkBackbone:
    """The network of a folder or of a file of weights.

    Raises BackboneError when there is none, when a file comes without `?arch=`, or when the weights do not fit it.
    """
    name, architecture = split(rest, ref)
    path = Path(name).expanduser()
    if spec.revision is not None:
        raise BackboneError(f"revision '{spec.revision}' was given, and '{ref}' is a local path, which has none")
    source = {"kind": "file", "path": str(path)}
    if path.is_dir():
        if architecture is not None:
            raise BackboneError(f"'{path}' is a folder, whose config.json names the network: leave out '?arch='")
        return _folder.load(path, spec, modality, source, seed, ref)
    if not path.is_file():
        raise BackboneError(f"there is nothing at '{path}': expected a folder in hub layout or a file of weights")
    if architecture is None:
        raise BackboneError(
            f"'{path.name}' does not say which network it belongs to: name it as 'file:{name}?arch=resnet18' "
            f"(a timm name), or give the folder with its config.json"
        )
    from headstart.backbones import _timm_net

    if modality != "image":
        raise BackboneError(f"'{ref}' is a timm network, which reads image, and the rows are {modality}")
    _timm_net.known_architecture(architecture, ref)
    weights = _files.read_weights(path, spec.allow_pickle) if spec.pretrained else None
    return _timm_net.build(architecture, weights, spec, source, seed, ref)
