"""The saved state of a run: one safetensors file, replaced atomically, so that a kill at any moment leaves a whole one.

Tensors are stored under flat names; everything else is JSON in the file's metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.errors import BundleError

FORMAT = 1


def save_state(path: Path, record: Mapping[str, Any]) -> None:
    """Write nested mappings of tensors and plain JSON values to `path`, atomically and flushed to disk."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    plain = _strip(record, "", tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    metadata = {"format": str(FORMAT), "record": json.dumps(plain)}
    save_file(_apart(tensors), fresh, metadata)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)


def load_state(path: Path) -> dict[str, Any]:
    """The inverse of `save_state`. Raises BundleError when the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"the saved state '{path}' cannot be read ({error}); start again without --resume") from None
    if metadata.get("format") != str(FORMAT):
        raise BundleError(f"the saved state '{path}' has format {metadata.get('format')}, expected {FORMAT}")
    restored = _fill(json.loads(metadata["record"]), tensors)
    return dict(restored)


def _strip(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"__tensor__": name}
    if isinstance(value, Mapping):
        return {str(key): _strip(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strip(item, f"{name}/{position}", tensors) for position, item in enumerate(value)]
    return value


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the file takes them: each on the processor with a memory of its own, copied only where it has none."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in taken else value
        taken.add(place)
    return found


def _fill(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"__tensor__"}:
            return tensors[value["__tensor__"]]
        return {key: _fill(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, tensors) for item in value]
    return value


def random_state() -> dict[str, Tensor]:
    """Every torch generator's state."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
