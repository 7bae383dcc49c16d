"""Attention on a processor, for networks of transformers: step by step where torch's own kernel is slow.

That kernel takes no dropout on a processor, so torch goes step by step then, drawing more than is needed; and in half
precision, on rows of some dozens of tokens, it was seen to take twice as long forward and six times with its backward
pass. Where nothing is dropped the two differ by rounding, and which is faster is measured.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from headstart import dropping

NAME = "headstart"
"""Under which transformers knows this attention."""

HALVES = (torch.float16, torch.bfloat16)
"""Types in which a GPU has a kernel for rows of any length, and a processor a slow one."""

LONGEST = 256
"""Tokens up to which it is made step by step without dropout: the kernel looks at blocks inside a row."""

AT_ONCE = 2**17
"""Weights that are made at a time, a row's at least: what they pass through stays in a core's own cache. With 2^20 both
passes were seen to take up to 2.5 times as long."""

LANES = 16
"""Numbers of float32 that a processor takes at a time; torch's softmax goes over shorter rows one by one."""

KEPT = 2**20
"""Weights up to which they are kept for the backward pass (6 to 8 bytes each). More are made again: steps of 32 texts
of 64 and 100 tokens were seen to take 0.94 to 1.03 times as long, and an epoch with texts of up to 87 to hold 130 MB
less in float32 and 80 in bf16 than with 2^22."""

TRIED = (16, 8, 32, 32)
"""Rows, heads, tokens and numbers a head of what is timed: those of a batch of short texts."""

PAIRS = 5
FASTER = 1.1


def install(network: nn.Module) -> None:
    """Let a network whose attention can be exchanged use this one; others are left as they are."""
    config: Any = getattr(network, "config", None)
    home = sys.modules.get(type(network).__module__)
    if getattr(config, "_attn_implementation", None) != "sdpa" or not hasattr(home, "ALL_ATTENTION_FUNCTIONS"):
        return
    import transformers

    masks: Any = transformers.AttentionMaskInterface
    transformers.AttentionInterface.register(NAME, attend)
    masks.register(NAME, masks()["sdpa"])
    config._attn_implementation = NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As functions of transformers are: from (N,heads,T,d) to (N,T,heads,d)."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    hides = attention_mask is None and causal and query.shape[2] > 1
    alike = query.shape[1] == key.shape[1] and query.shape[-1] == value.shape[-1]
    if hides or not alike or not _masks(attention_mask) or not stepwise(query, key, dropout):
        import transformers

        known: Any = transformers.AttentionInterface
        usual: tuple[Tensor, None] = known()["sdpa"](
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return usual
    return attended(query, key, value, attention_mask, dropout, scaling).transpose(1, 2), None


def stepwise(query: Tensor, key: Tensor, dropout: float) -> bool:
    """Whether attention is to be made by `attended`."""
    if query.device.type != "cpu":
        return False
    if dropout:
        return True
    short = max(query.shape[2], key.shape[2]) <= LONGEST
    return short and query.dtype in HALVES and not torch.compiler.is_compiling() and faster(torch.is_grad_enabled())


def attended(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """Attention (N,heads,T,d) step by step. mask: bool, true for what may be attended to; broadcast to (N,heads,T,T).

    Scores are in the type of the queries; their softmax is in float32.

    Source: Vaswani et al. 2017, section 3.2.1, with dropout on the weights as in their implementation.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias = None
    if mask is not None:
        mask = mask[:, :, :1] if mask.stride(2) == 0 else mask  # one for all queries
        # A row that may attend to nothing gets the mean of all instead of nan.
        bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, torch.finfo(torch.float32).min)
    with torch.autocast("cpu", enabled=False):
        shape = (*query.shape[:3], key.shape[2])
        few = torch.is_grad_enabled() and math.prod(shape) <= KEPT
        if few or torch.compiler.is_compiling() or (dropout and not dropping.light(value, dropout)):
            weights = _weights(query, key, bias, scale).to(value.dtype)
            return (dropping.dropped(weights, dropout) if dropout else weights) @ value.contiguous()
        kept = dropping.kept(shape, dropout) if dropout else None
        made: Tensor = _InParts.apply(query, key, value, bias, scale, kept, dropout)
        return made


def _weights(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """(N,heads,T,T) float32. In half types a softmax was seen to take twice as long, and adding a mask 25 times.

    Products of heads that do not lie together were seen to take twice as long.
    """
    scores = ((query * scale) @ key.contiguous().transpose(-1, -2)).float()
    scores = scores if bias is None else scores.add_(bias)
    if scores.shape[-1] >= LANES:
        return scores.softmax(-1)
    powers = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


class _InParts(torch.autograd.Function):
    """Attention some rows at a time, whose weights are not kept but made again in the backward pass.

    Source: Dao et al. 2022 (FlashAttention), appendix B.2, for the gradients, here without blocks inside a row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float,
        kept: Tensor | None,
        rate: float,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, bias, kept)
        ctx.scale, ctx.rate = scale, rate
        made = _like(query)
        for part in _parts(query, key):
            weights = _weights(query[part], key[part], _of(bias, part), scale).to(value.dtype)
            made[part] = _left(weights, _of(kept, part), rate) @ value[part].contiguous()
        return made

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        (slope,), (query, key, value, bias, kept) = slopes, ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients are wanted
            weights = _left(_weights(query, key, bias, ctx.scale).to(value.dtype), kept, ctx.rate)
            return *torch.autograd.grad(weights @ value, (query, key, value), slope, create_graph=True), *[None] * 4
        made = [_like(part) for part in (query, key, value)]
        for part in _parts(query, key):
            q, k, v, above = (states[part].contiguous() for states in (query, key, value, slope))
            weights, drops = _weights(q, k, _of(bias, part), ctx.scale), _of(kept, part)
            made[2][part] = _left(weights.to(slope.dtype), drops, ctx.rate).transpose(-1, -2) @ above
            onto = _left(above @ v.transpose(-1, -2), drops, ctx.rate).float()
            onto = torch._softmax_backward_data(onto, weights, -1, torch.float32).mul_(ctx.scale).to(slope.dtype)
            made[0][part] = onto @ k
            made[1][part] = onto.transpose(-1, -2) @ q
        return *made, *[None] * 4


def _left(weights: Tensor, kept: Tensor | None, rate: float) -> Tensor:
    """What dropout leaves of them."""
    return weights if kept is None else dropping.keeping(weights, kept, rate)


def _like(states: Tensor) -> Tensor:
    """Room for (N,heads,T,d), one token after the other as layers take them."""
    return torch.empty_like(states.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _parts(query: Tensor, key: Tensor) -> Iterator[slice]:
    size = max(1, AT_ONCE // max(1, query.shape[1] * query.shape[2] * key.shape[2]))
    return (slice(start, start + size) for start in range(0, len(query), size))


def _of(tensor: Tensor | None, part: slice) -> Tensor | None:
    return tensor if tensor is None or len(tensor) == 1 else tensor[part]


@cache
def faster(learning: bool) -> bool:
    """Whether it is, in bf16 without dropout, on this processor: both passes where it is learning."""
    kernel = nn.functional.scaled_dot_product_attention
    with torch.inference_mode(False), torch.set_grad_enabled(learning):
        q, k, v = (torch.ones(TRIED, dtype=torch.bfloat16, requires_grad=learning) for _ in range(3))
        gains = []
        for _ in range(PAIRS + 1):
            spent = []
            for own in (False, True):
                started = time.thread_time()
                made = attended(q, k, v, None, 0.0, None) if own else kernel(q, k, v)
                if learning:
                    torch.autograd.grad(made.sum(), (q, k, v))
                spent.append(time.thread_time() - started)
            gains.append(spent[0] / spent[1])
    return median(gains[1:]) >= FASTER  # the first warms up


def _masks(mask: Tensor | None) -> bool:
    return mask is None or (mask.dtype == torch.bool and mask.ndim == 4)
