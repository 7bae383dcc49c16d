"""Bundles read so that those of one backbone share it: only what is a bundle's own is brought into memory.

A bundle fits where its network is the plain one, or has low-rank factors beside it that were not merged
(`lora:merge=false`). Whether two have the same backbone is told by content: the record of the network, the files of its
configuration and tokenizer, and a digest of its weights. Other bundles are loaded by themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart import backbones, catalog, heap
from headstart import bundle as bundles
from headstart.bundle import Bundle, borrowed
from headstart.encoded import Encoded
from headstart.errors import BundleError, ProofError
from headstart.protocols import Backbone, Method, Task
from headstart.serve.trunk import Pair, Tenant, Trunk

HEAD, BACKBONE = "head.", "backbone."
_FACTOR = re.compile(r"backbone\.(.+)\.lora_([AB])\.default\.weight")


@dataclass(frozen=True)
class Parts:
    """What a file of weights holds, by name there. base: the backbone's tensors, by their name in it; none where the
    bundle is light.
    """

    base: Mapping[str, str]
    factors: Mapping[str, Mapping[str, str]]
    head: tuple[str, ...]


def parts(names: list[str]) -> Parts | None:
    """The tensors of a bundle sorted; None where there are others than those of backbone, LoRA and head."""
    base: dict[str, str] = {}
    factors: dict[str, dict[str, str]] = {}
    head: list[str] = []
    for name in names:
        factor = _FACTOR.fullmatch(name)
        if factor:
            factors.setdefault(factor[1], {})[factor[2]] = name
        elif name.startswith(HEAD):
            head.append(name)
        elif name.startswith(BACKBONE) and ".lora_" not in name:
            base[borrowed.plain(name)] = name
        else:
            return None
    whole = all(set(pair) == {"A", "B"} for pair in factors.values())
    return Parts(base, factors, tuple(head)) if whole and sorted(head) == ["head.bias", "head.weight"] else None


def scale(options: Mapping[str, Any]) -> float:
    """s of h = W x + s B A x, from the options of `lora`."""
    method = catalog.find("methods", "lora")(**options)  # what is not said has its default
    alpha = 2 * method.r if method.alpha is None else method.alpha
    return float(alpha / (math.sqrt(method.r) if method.rslora else method.r))


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a bundle may share a backbone: torch's weights, without surgery or with plain LoRA.

    DoRA does not: its lengths rescale the whole product of a layer, not a part that can be added row by row.
    """
    surgery = record.get("surgery") or []
    options = [method["options"] for method in surgery if method["name"] == "lora"]
    plain = all(not each.get("dora") and each.get("init") is None for each in options)
    return "runtime" not in record and plain and len(surgery) == len(options) <= 1


class House:
    """The shared backbones of a server, each kept as long as a model is on it. `read` is called in one thread."""

    def __init__(self, made: Callable[[nn.Module], int] = lambda module: 0) -> None:
        self._made = made
        self._lock = threading.Lock()
        self._trunks: dict[str, Trunk] = {}
        self._members: dict[str, int] = {}

    def read(self, folder: Path) -> tuple[Bundle, int]:
        """A proven bundle, and the bytes of weights that were there already.

        Its model is a `Tenant` where it fits; then `release` must be called when it is let go.
        """
        joined: list[tuple[Tenant, int, list[str]]] = []

        def build(folder: Path, record: dict[str, Any], task: Task) -> tuple[Any, Mapping[str, Method]]:
            made = self._tenant(folder, record, task) if fits(record) else None
            if made is None:
                return bundles.network(folder, record, task)
            joined.append(made)
            return made[0], {}

        whole = False
        try:
            bundle = bundles.load(folder, report=False, build=build)
            whole = not joined or not joined[0][2] or _in_company(bundle, joined[0][0])
        finally:
            if joined and not whole:
                joined[0][0].trunk.unhook(joined[0][2])
                self.release(joined[0][0].trunk)
        if not whole:
            joined, bundle = [], bundles.load(folder, report=False)
        heap.give_back()
        bundle.files = {}  # nothing reads them here, and the factors lie there once more
        return bundle, joined[0][1] if joined else self._made(bundle.model)

    def release(self, trunk: Trunk) -> bool:
        """Let go of one model's hold on a backbone. Whether it was the last."""
        with self._lock:
            key = next(key for key, other in self._trunks.items() if other is trunk)
            self._members[key] -= 1
            if self._members[key]:
                return False
            del self._trunks[key], self._members[key]
            return True

    def _tenant(self, folder: Path, record: dict[str, Any], task: Task) -> tuple[Tenant, int, list[str]] | None:
        """The model on a shared backbone, the bytes that this saved, and the layers that are shared for the first time.

        None where its file holds more than that.
        """
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "pt") as file:
            known = parts(list(file.keys()))
            if known is None:
                return None
            key = _key(folder, record, known, file)
            trunk, shared = self._trunk(key, lambda: _backbone(folder, record, known, file))
            try:
                tenant = Tenant(trunk, _head(trunk.backbone, task, known, file), _factors(record, known, file))
                fresh = trunk.hook(tenant.factors)
            except BaseException:
                self.release(trunk)
                raise
        return tenant.eval().requires_grad_(False), shared, fresh

    def _trunk(self, key: str, make: Callable[[], Backbone]) -> tuple[Trunk, int]:
        """A hold on the backbone of this key, and the bytes of its weights that were there already."""
        with self._lock:
            trunk = self._trunks.get(key)
            if trunk is not None:
                self._members[key] += 1
                return trunk, trunk.nbytes
        backbone = make()
        shared = self._made(backbone)
        trunk = Trunk(backbone)
        with self._lock:
            self._trunks[key], self._members[key] = trunk, 1
        return trunk, shared


def _key(folder: Path, record: Mapping[str, Any], known: Parts, file: Any) -> str:
    """What two bundles on one backbone have in common.

    A tokenizer's files differ by when they were written. Its own digest stands in `preprocessing`, so of its settings
    only those are compared that are not part of it.
    """
    described = {key: value for key, value in record["backbone"].items() if key not in ("ref", "source", "digest")}
    files = {name: each["sha256"] for name, each in record["files"].items() if name.startswith("backbone/")}
    files = {name: each for name, each in files.items() if not name.startswith("backbone/tokenizer")}
    settings = folder / "backbone" / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    sides = [said.get("truncation_side", "right"), said.get("model_input_names")]
    text = json.dumps([record["modality"], described, files, sides], sort_keys=True)
    content = record["backbone"]["digest"] if record.get("borrows") else _content(known, file)
    return f"{hashlib.sha256(text.encode()).hexdigest()}{content}"


def _content(known: Parts, file: Any) -> str:
    """sha256 over names, types, shapes and bytes of the backbone's weights, as `Backbone.digest` is made."""
    total = hashlib.sha256()
    for name, stored in sorted(known.base.items()):
        value = file.get_tensor(stored)
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _backbone(folder: Path, record: dict[str, Any], known: Parts, file: Any) -> Backbone:
    backbone = backbones.rebuild(record["backbone"], folder / "backbone")
    if record.get("borrows"):
        weights = borrowed.base(record)
    else:
        weights = {name: file.get_tensor(stored) for name, stored in known.base.items()}
    own = backbone.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        raise BundleError(f"'{folder}' has weights that do not fit: missing {missing[:3]}, unexpected {extra[:3]}")
    backbone.load_state_dict(weights)
    return backbone


def _head(backbone: Backbone, task: Task, known: Parts, file: Any) -> nn.Module:
    head = nn.Linear(backbone.width, task.outputs)
    head.load_state_dict({name.removeprefix(HEAD): file.get_tensor(name) for name in known.head})
    return head


def _factors(record: Mapping[str, Any], known: Parts, file: Any) -> dict[str, Pair]:
    """The low-rank factors, the scale folded in, in memory of their own."""
    if not known.factors:
        return {}
    size = scale(record["surgery"][0]["options"])

    def own(name: str) -> Tensor:
        found: Tensor = file.get_tensor(name)
        return found

    return {
        layer: Pair(own(pair["A"]).clone(), size * own(pair["B"]).flatten(1)) for layer, pair in known.factors.items()
    }


def _in_company(bundle: Bundle, tenant: Tenant) -> bool:
    """Whether the stored inputs are answered alike beside rows without factors; a network may mix its rows."""
    inputs = [value for value in bundle.probe_inputs for _ in range(2)]
    if not inputs:
        return False
    batch = Encoded.of(bundle.modality, tenant.backbone, inputs).batch(range(len(inputs)))
    try:
        tenant.trunk.prove(batch, tenant)
    except (ProofError, RuntimeError):
        return False
    return True
