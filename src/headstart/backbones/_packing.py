"""Rows of tokens joined into one without padding, for networks of transformers whose attention can be exchanged.

All that is done to a token alone (most of the arithmetic) is done to real tokens only; attention sees each row by
itself, so no row attends to another. Positions start again with each row.

On a GPU, in half precision, attention reads rows of any length where they lie, by the kernel that torch has for it (Dao
2023, FlashAttention-2); elsewhere it pads its rows. On a GPU dropout draws numbers of its own; on a CPU it draws for
padded rows and takes what falls on real tokens, so the same seed drops the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart import dropping
from headstart.backbones import _attention
from headstart.inside import Forward, plain, replaced

NAME = "headstart_packed"
"""Under which transformers knows the attention of packed rows."""


EVEN = 32
"""In half precision a processor's products of matrices have kernels made for each number of tokens, and keep them. So
some padding is carried along to a multiple of this, and few numbers come again and again."""

CURRENT = "_headstart_packed"
"""Where a network that packs holds the layout of the rows that are in it."""


@dataclass
class Current:
    """The layout of the rows that a network is computing, for its dropout."""

    layout: Layout | None = None


@dataclass(frozen=True)
class Layout:
    """Where tokens stand: `mask` (N,T) bool; `places`, where those that are computed stand among N*T: real ones, and
    padding that evens out their number; `starts` (N+1,), where each row begins among the real tokens, and their number,
    int32.
    """

    mask: Tensor
    places: Tensor
    starts: Tensor
    current: Current

    @classmethod
    def of(cls, mask: Tensor, current: Current, even: int = 1) -> Layout:
        """From an attention mask (N,T). even: of which number the tokens are made a multiple, where padding is left."""
        real = mask.bool()
        starts = nn.functional.pad(real.sum(1).cumsum(0), (1, 0)).to(torch.int32)
        computed = real.flatten()
        if even > 1:
            padding = (~computed).nonzero()[:, 0]
            computed = computed.index_fill(0, padding[: -int(starts[-1]) % even], True)
        return cls(real, computed.nonzero()[:, 0], starts, current)

    def spread(self, flat: Tensor) -> Tensor:
        """(total, ...) -> (N,T, ...), zero where there is padding."""
        n, t = self.mask.shape
        room = flat.new_zeros((n * t, *flat.shape[1:]))
        return room.index_copy(0, self.places, flat).view(n, t, *flat.shape[1:])

    def gather(self, spread: Tensor) -> Tensor:
        """(N,T, ...) -> (total, ...)."""
        return spread.flatten(0, 1)[self.places]


def why_not(network: nn.Module) -> str | None:
    """Why the rows of this network cannot be packed, if so."""
    if "position_ids" not in inspect.signature(network.forward).parameters:
        return "its network takes no positions"
    if getattr(getattr(network, "config", None), "_attn_implementation", None) not in ("sdpa", _attention.NAME, NAME):
        return "its attention cannot be exchanged"
    return None


@contextmanager
def within(network: Any) -> Iterator[None]:
    """Inside, `run` packs, and passes that are not packed run as ever."""
    _register()
    before, current = network.config._attn_implementation, Current()
    network.config._attn_implementation = NAME
    network.__dict__[CURRENT] = current
    drops = [module for module in network.modules() if type(module) is dropping.Dropout]
    try:
        with replaced(drops, lambda drop, forward: _dropping(drop, forward, current)):
            yield
    finally:
        network.config._attn_implementation = before
        network.__dict__.pop(CURRENT, None)


def _dropping(drop: Any, forward: Forward, current: Current) -> Forward:
    """Dropout of packed tokens (1,total,V) by the numbers that padded rows would have drawn."""

    def run(states: Tensor) -> Any:
        layout = current.layout
        drawn = drop.training and 0 < drop.p < 1 and not states.is_cuda
        if layout is None or not drawn or states.shape[:2] != (1, len(layout.places)):
            return forward(states)
        kept = dropping.kept((*layout.mask.shape, *states.shape[2:]), drop.p)
        return dropping.keeping(states, layout.gather(kept)[None], drop.p)

    return run


def can(network: Any) -> bool:
    """Whether a pass can be packed now: inside `within`, with nobody looking at what runs in the network."""
    return getattr(network.config, "_attn_implementation", "") == NAME and plain(list(network.modules()))


def run(network: Any, inputs: Mapping[str, Tensor], offset: int) -> Tensor:
    """The last hidden states (N,T,V) of rows of tokens, zeros where there is padding. offset: the first position."""
    current, mask = network.__dict__[CURRENT], inputs["attention_mask"]
    even = EVEN if mask.device.type == "cpu" and _in_half(network) else 1
    layout = current.layout = Layout.of(mask, current, even)
    row = torch.arange(layout.mask.shape[1], device=layout.mask.device) + offset
    given = {name: layout.gather(value)[None] for name, value in inputs.items() if name != "attention_mask"}
    given["position_ids"] = layout.gather(row.expand(layout.mask.shape))[None]
    try:
        states: Tensor = network(**given, packed=layout).last_hidden_state
    finally:
        current.layout = None
    found = states[0]
    return layout.spread(found if even == 1 else found * layout.mask.flatten()[layout.places, None])


def _in_half(network: nn.Module) -> bool:
    return torch.is_autocast_enabled("cpu") or any(p.dtype in _attention.HALVES for p in network.parameters())


def _register() -> None:
    import transformers

    masks: Any = transformers.AttentionMaskInterface
    transformers.AttentionInterface.register(NAME, _attend)
    masks.register(NAME, masks()["sdpa"])


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows (1,heads,total,d), each for itself; of others as transformers does it."""
    if packed is None:
        return _attention.attend(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if query.is_cuda and query.dtype in _attention.HALVES and query.shape[-1] % 8 == 0:
        return _attend_flash(packed, query, key, value, dropout, scaling)[None], None
    packed.current.layout = packed  # a checkpointed block runs a second time by itself, when others may have passed
    q, k, v = (packed.spread(part[0].transpose(0, 1)).transpose(1, 2) for part in (query, key, value))
    mask = packed.mask[:, None, None]
    if _attention.stepwise(q, k, dropout):
        made = _attention.attended(q, k, v, mask, dropout, scaling)
    else:
        made = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return packed.gather(made.transpose(1, 2))[None], None


def _attend_flash(
    packed: Layout, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of packed rows (1,heads,total,d) that are not padded for it: (total,heads,d).

    `torch.nn.attention.varlen` offers the same kernel, without dropout.
    """
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    longest = packed.mask.shape[1]
    made: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, packed.starts, packed.starts, longest, longest, dropout, False, False, scale=scaling
    )[0]
    return made
