"""`hf:organisation/name` or `hf:folder`: text, vision and audio models of the Hugging Face hub, or a local folder."""

from __future__ import annotations

from pathlib import Path

from headstart.backbones import _files, _folder
from headstart.backbones._structure import NetworkBackbone
from headstart.errors import BackboneError
from headstart.spec import BackboneSpec


def load(rest: str, spec: BackboneSpec, modality: str, seed: int, ref: str) -> NetworkBackbone:
    """The network of a hub id or folder; the commit that was fetched is recorded in `source`.

    Raises BackboneError when it cannot be found, fetched, read or trusted.
    """
    path = Path(rest).expanduser()
    if path.is_dir():
        if spec.revision is not None:
            raise BackboneError(f"revision '{spec.revision}' was given, and '{ref}' is a local folder, which has none")
        return _folder.load(path, spec, modality, {"kind": "hf", "path": str(path)}, seed, ref)
    if rest.startswith((".", "/", "~", "\\")) or rest.count("/") > 1:
        raise BackboneError(f"there is no folder '{rest}' (from '{ref}')")
    folder, commit = _files.snapshot(rest, spec.revision, spec.allow_pickle, spec.trust_remote_code)
    source = {"kind": "hf", "repo": rest, "revision": spec.revision, "commit": commit}
    return _folder.load(folder, spec, modality, source, seed, ref)
