"""Reading weights from files and folders from the hub, safely: no pickle unless asked for, no endless waiting."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from torch import Tensor

from headstart.errors import BackboneError, OutOfReach

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md"]
_UNWANTED = ["onnx/*", "openvino/*", "tf_model*", "flax_model*", "*/onnx/*", "*.msgpack", "*.h5"]


def read_weights(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or, where allowed, of a pickled state dict.

    Pickles are read with torch's weights-only reader, which runs no code. Raises BackboneError for a missing, pickled
    (when not allowed), damaged or foreign file.
    """
    if not path.is_file():
        raise BackboneError(f"no file of weights at '{path}'")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise BackboneError(f"'{path}' is not a whole safetensors file: {error}") from None
    if path.suffix not in PICKLED:
        raise BackboneError(f"expected weights as .safetensors, received '{path.name}'")
    if not allow_pickle:
        raise BackboneError(
            f"'{path.name}' is a pickle and only safetensors are read: convert it, or, "
            f"if you trust its source, set backbone.allow_pickle = true"
        )
    return _unpickled(path)


def _unpickled(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(f"'{path}' does not hold plain tensors: {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BackboneError(f"expected '{path}' to hold tensors by name, received {type(loaded).__name__}")
    return dict(loaded)


def refuse_pickles(folder: Path, allow_pickle: bool, name: str) -> None:
    """Raise BackboneError unless the folder holds weights that may be read."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickles and allow_pickle:
        return
    if pickles:
        raise BackboneError(
            f"'{name}' has only pickled weights ({', '.join(pickles)}) and only safetensors are read: "
            f"convert them, or, if you trust their source, set backbone.allow_pickle = true"
        )
    raise BackboneError(f"'{name}' holds no weights: expected a *.safetensors file in '{folder}'")


def hub_reachable() -> bool:
    """Whether the hub's name can be looked up; without this the hub's client tries again for a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def snapshot(repo: str, revision: str | None, allow_pickle: bool, code: bool) -> tuple[Path, str | None]:
    """A local folder with the files of a hub repository, and its commit. The cache is used when there is no network.

    Raises BackboneError when the name is not valid, there is no such repository or revision, or it cannot be fetched.
    """
    from huggingface_hub import errors, snapshot_download

    reachable = hub_reachable()
    wanted = [*_WANTED, *(["*.py"] if code else [])]
    try:
        with silence():
            options: dict[str, Any] = {
                "revision": revision,
                "local_files_only": not reachable,
                "ignore_patterns": _UNWANTED,
            }
            folder = Path(snapshot_download(repo, allow_patterns=wanted, **options))
            if allow_pickle and not any(folder.glob("*.safetensors")):
                folder = Path(snapshot_download(repo, allow_patterns=[*wanted, "*.bin"], **options))
    except errors.HFValidationError:
        raise BackboneError(
            f"expected a hub id such as 'hf:organisation/name' or a folder, received '{repo}'"
        ) from None
    except errors.RevisionNotFoundError:
        raise BackboneError(f"'{repo}' has no revision '{revision}' on the hub") from None
    except errors.RepositoryNotFoundError:
        raise BackboneError(
            f"there is no public repository '{repo}' on the hub (private ones need `hf auth login`)"
        ) from None
    except Exception as error:  # everything else is the network, in one of a dozen classes
        raise unreachable(repo, revision, reachable, error) from None
    commit = folder.name if folder.parent.name == "snapshots" else None
    return folder, commit


def unreachable(repo: str, revision: str | None, reachable: bool, error: Exception | None) -> OutOfReach:
    """The error for weights that are neither cached nor to be fetched."""
    wanted = repo if revision is None else f"{repo} at {revision}"
    why = "the hub cannot be reached" if not reachable else f"fetching it failed: {error}"
    return OutOfReach(
        f"'{wanted}' is not on this machine and {why}. "
        f"Use weights that are: a folder (file:path) or an installed package (pkg:name; see `headstart backbones`)"
    )


@contextmanager
def silence() -> Iterator[None]:
    """Keep the notes and progress bars of the hub, transformers and timm off the terminal while inside."""
    import huggingface_hub.utils
    import transformers.utils.logging

    hub: Any = huggingface_hub.utils
    talk: Any = transformers.utils.logging
    level, bars, hub_bars = talk.get_verbosity(), talk.is_progress_bar_enabled(), hub.are_progress_bars_disabled()
    quiet = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    levels = [logger.level for logger in quiet]
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    if not hub_bars:
        hub.disable_progress_bars()
    for logger in quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()
        if not hub_bars:
            hub.enable_progress_bars()
        for logger, before in zip(quiet, levels, strict=True):
            logger.setLevel(before)
