"""Attention on a processor, for networks of transformers: step by step where torch's own kernel is slow.

That kernel takes no dropout on a processor, so torch goes step by step then, drawing more than is needed; and in half
precision its backward pass was seen to take five times as long on rows of some dozens of tokens. Where nothing is
dropped the two differ by rounding, and which is faster is measured. Answers are left to the kernel: step by step they
were a tenth faster at most, and the library for products keeps memory for each shape of batch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from headstart import dropping

NAME = "headstart"
"""Under which transformers knows this attention."""

HALVES = (torch.float16, torch.bfloat16)
"""Types in which a GPU has a kernel for rows of any length, and a processor a slow one."""

LONGEST = 512
"""Tokens up to which it is made step by step without dropout: the kernel looks at blocks inside a row."""

AT_ONCE = 2**20
"""Weights that are made at a time without dropout, about what caches hold; a row's at least."""

LANES = 16
"""Numbers of float32 that a processor takes at a time; torch's softmax goes over shorter rows one by one."""

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
    trained = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return trained and short and query.dtype in HALVES and faster()


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
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    with torch.autocast("cpu", enabled=False):
        if dropout:
            weights = _weights(query, key, bias, scale)
            return dropping.dropped(weights.to(value.dtype), dropout) @ value
        made: Tensor = _InParts.apply(query, key, value, bias, scale)
        return made


def _weights(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """(N,heads,T,T) float32. In half types a softmax was seen to take twice as long."""
    scores = (query * scale) @ key.transpose(-1, -2)
    scores = (scores if bias is None else scores.add_(bias)).float()
    if scores.shape[-1] >= LANES:
        return scores.softmax(-1)
    powers = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


class _InParts(torch.autograd.Function):
    """Attention without dropout, some rows at a time, whose weights are not kept but made again in the backward pass.

    Source: Dao et al. 2022 (FlashAttention), appendix B.2, for the gradients, here without blocks inside a row.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value, bias)
        ctx.scale = scale
        made = _like(query)
        for part in _parts(query, key):
            weights = _weights(query[part], key[part], _of(bias, part), scale)
            made[part] = weights.to(value.dtype) @ value[part]
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        query, key, value, bias = ctx.saved_tensors
        made = [_like(part) for part in (query, key, value)]
        for part in _parts(query, key):
            weights = _weights(query[part], key[part], _of(bias, part), ctx.scale)
            made[2][part] = weights.to(slope.dtype).transpose(-1, -2) @ slope[part]
            slopes = (slope[part] @ value[part].transpose(-1, -2)).float()
            slopes = torch._softmax_backward_data(slopes, weights, -1, torch.float32).mul_(ctx.scale).to(slope.dtype)
            made[0][part] = slopes @ key[part]
            made[1][part] = slopes.transpose(-1, -2) @ query[part]
        return *made, None, None


def _like(states: Tensor) -> Tensor:
    """Room for (N,heads,T,d), one token after the other as layers take them."""
    return torch.empty_like(states.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _parts(query: Tensor, key: Tensor) -> Iterator[slice]:
    size = max(1, AT_ONCE // max(1, query.shape[1] * query.shape[2] * key.shape[2]))
    return (slice(start, start + size) for start in range(0, len(query), size))


def _of(bias: Tensor | None, part: slice) -> Tensor | None:
    return bias if bias is None or len(bias) == 1 else bias[part]


@cache
def faster() -> bool:
    """Whether it is, in bf16 without dropout, on this processor: both passes."""
    kernel = nn.functional.scaled_dot_product_attention
    with torch.inference_mode(False), torch.enable_grad():
        q, k, v = (torch.ones(TRIED, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        gains = []
        for _ in range(PAIRS + 1):
            spent = []
            for own in (False, True):
                started = time.process_time()
                made = attended(q, k, v, None, 0.0, None) if own else kernel(q, k, v)
                torch.autograd.grad(made.sum(), (q, k, v))
                spent.append(time.process_time() - started)
            gains.append(spent[0] / spent[1])
    return median(gains[1:]) >= FASTER  # the first warms up


def _masks(mask: Tensor | None) -> bool:
    return mask is None or (mask.dtype == torch.bool and mask.ndim == 4)
