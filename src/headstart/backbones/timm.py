"""`timm:name[.tag]` or `timm:hf-hub:organisation/name`: a vision network of the timm library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headstart.backbones import _files, _timm_net
from headstart.backbones._structure import NetworkBackbone
from headstart.errors import BackboneError
from headstart.spec import BackboneSpec


def load(rest: str, spec: BackboneSpec, modality: str, seed: int, ref: str) -> NetworkBackbone:
    """The network called `rest`, with weights from the hub's cache or the hub.

    Raises MissingExtra without timm, BackboneError for an unknown name (with the nearest) or weights out of reach.
    """
    timm = _timm_net.require_timm(ref)
    if modality != "image":
        raise BackboneError(f"'{ref}' is a timm network, which reads image, and the rows are {modality}")
    kind, colon, place = rest.partition(":")
    if colon and kind in ("hf-hub", "hf_hub"):
        repo, _, revision = place.partition("@")
        revision = spec.revision or revision
        folder, commit = _files.snapshot(repo, revision or None, spec.allow_pickle, False)
        source = {"kind": "timm", "repo": repo, "revision": revision or None, "commit": commit}
        return _timm_net.load_folder(folder, spec, {**source, "version": timm.__version__}, seed, ref)
    if colon and kind == "local-dir":
        path = Path(place).expanduser()
        if not (path / "config.json").is_file():
            raise BackboneError(f"expected a folder with a config.json written by timm at '{path}' (from '{ref}')")
        return _timm_net.load_folder(path, spec, {"kind": "timm", "path": str(path)}, seed, ref)
    if spec.revision is not None:
        raise BackboneError(f"'{ref}' has no revisions: name the weights by a tag, as in 'timm:resnet18.a1_in1k'")
    name = _timm_net.known_architecture(rest, ref)
    source = {"kind": "timm", "version": timm.__version__}
    if not spec.pretrained:
        return _timm_net.build(name, None, spec, source, seed, ref)
    path, facts = _weights(name, spec, ref)
    return _timm_net.build(facts["name"], _files.read_weights(path, True), spec, {**source, **facts}, seed, ref)


def _weights(name: str, spec: BackboneSpec, ref: str) -> tuple[Path, dict[str, Any]]:
    """The file of weights that timm names for this network, from the cache or the hub, and where it came from."""
    timm = _timm_net.require_timm(ref)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        raise BackboneError(
            f"there are no weights on the hub for timm's '{name}': give your own as file:path?arch={name}, "
            f"or start from random ones with backbone.pretrained = false"
        )
    full = name if "." in name or not cfg.tag else f"{name}.{cfg.tag}"
    path = _download(cfg.hf_hub_id, cfg.hf_hub_filename or "model.safetensors", spec)
    return path, {"name": full, "repo": cfg.hf_hub_id, "commit": _commit(path)}


def _download(repo: str, name: str, spec: BackboneSpec) -> Path:
    from huggingface_hub import errors, hf_hub_download

    reachable = _files.hub_reachable()
    names = [name] if name.endswith(".safetensors") or spec.allow_pickle else ["model.safetensors"]
    names += ["pytorch_model.bin"] if spec.allow_pickle else []
    last: Exception | None = None
    for each in names:
        try:
            with _files.silence():
                return Path(hf_hub_download(repo, each, local_files_only=not reachable))
        except errors.LocalEntryNotFoundError as error:
            last = error
        except errors.EntryNotFoundError:
            last = None
        except Exception as error:  # the network fails in a dozen classes
            last = error
    if last is None:
        raise BackboneError(
            f"'{repo}' holds only pickled weights and only safetensors are read: if you trust their source, "
            f"set backbone.allow_pickle = true"
        )
    raise _files.unreachable(repo, None, reachable, last)


def _commit(path: Path) -> str | None:
    return path.parent.name if path.parent.parent.name == "snapshots" else None
