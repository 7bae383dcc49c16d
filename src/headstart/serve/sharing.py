"""Equal weights of several models kept in memory once.

Bundles of the same frozen backbone hold the same numbers: what a probe or an adapter leaves as it was. Weights are
compared by content, tensor by tensor, so that models share whatever they have in common, wherever it came from. That is
safe because a served model never changes its weights.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from headstart.bundle import Bundle
from headstart.serve.trunk import Tenant

SMALLEST = 4096
"""Bytes below which a tensor is left alone: nothing is gained."""

_Key = tuple[bytes, tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]


class Pool:
    """The weights of the models that are alive. It keeps none alive itself."""

    def __init__(self) -> None:
        self._known: dict[_Key, list[weakref.ref[Tensor]]] = {}

    def share(self, module: nn.Module) -> int:
        """Let a module use the memory of equal weights that are known, and know its own; returns the bytes freed."""
        freed = 0
        for tensor in chain(module.parameters(), module.buffers()):
            size = tensor.numel() * tensor.element_size()
            if size < SMALLEST or not _in_order(tensor).is_contiguous():
                continue
            alive = self._alive(key := _key(tensor))
            twin = next((other for other in alive if torch.equal(other, tensor)), None)
            if twin is not None and twin.data_ptr() != tensor.data_ptr():
                tensor.data = twin.data
                freed += size
            # Each model's tensor is noted, so that the memory is found as long as any of them is alive.
            if all(other is not tensor for other in alive):
                self._known[key].append(weakref.ref(tensor))
        return freed

    def _alive(self, key: _Key) -> list[Tensor]:
        """Known tensors of this content; those whose models are gone are forgotten."""
        alive = [(ref, tensor) for ref in self._known.get(key, []) if (tensor := ref()) is not None]
        self._known[key] = [ref for ref, _ in alive]
        return [tensor for _, tensor in alive]


def _in_order(tensor: Tensor) -> Tensor:
    """The tensor as it lies in memory: convolutions have their channels last."""
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.permute(0, 2, 3, 1) if last else tensor


def _key(tensor: Tensor) -> _Key:
    # Flat, since an axis of size 1, as in depthwise convolutions, may have a stride that cannot be viewed as bytes.
    raw = _in_order(tensor.detach().cpu()).flatten().view(torch.uint8)
    digest = hashlib.sha256(raw.numpy().data).digest()
    return digest, tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device


def held(bundles: Iterable[Bundle]) -> int:
    """Bytes of the weights of these bundles; what several share counts once, an exported graph as its file."""
    own = 0
    modules: dict[int, nn.Module] = {}
    for bundle in bundles:
        model = bundle.model
        if isinstance(model, Tenant):
            own += model.nbytes
            modules[id(model.backbone)] = model.backbone
        elif "runtime" in bundle.record and bundle.folder is not None:
            own += (bundle.folder / bundle.record["runtime"]["file"]).stat().st_size
        else:
            modules[id(model)] = model
    tensors = (each for module in modules.values() for each in chain(module.parameters(), module.buffers()))
    places = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return own + sum(places.values())
