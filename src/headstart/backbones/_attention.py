"""Attention on a processor, for networks of transformers: step by step where torch's own kernel is slow.

That kernel takes no dropout on a processor, so torch goes step by step then, drawing more than is needed; and in half
precision its backward pass was seen to take five times as long on rows of some dozens of tokens. Where nothing is
dropped the two differ by rounding, and which is faster is measured.
"""

from __future__ import annotations

import sys
import time
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from headstart import dropping

NAME = "headstart"
"""Under which transformers knows this attention."""

HALVES = (torch.float16, torch.bfloat16)

LONGEST = 512
"""Tokens up to which scores of all pairs are held where the kernel would not hold them."""

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
    if hides or query.shape[1] != key.shape[1] or not _masks(attention_mask) or not stepwise(query, key, dropout):
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
    return query.dtype in HALVES and short and not torch.compiler.is_compiling() and faster(torch.is_grad_enabled())


def attended(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """Attention (N,heads,T,d) step by step. mask: bool, true for what may be attended to; broadcast to (N,heads,T,T).

    Scores are in the type of the queries; their softmax is in float32.

    Source: Vaswani et al. 2017, section 3.2.1, with dropout on the weights as in their implementation.
    """
    with torch.autocast("cpu", enabled=False):
        scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(-1, -2)
        if mask is not None:
            mask = mask[:, :, :1] if mask.stride(2) == 0 else mask  # one for all queries
            # A row that may attend to nothing gets the mean of all instead of nan.
            hidden = torch.finfo(scores.dtype).min
            scores = scores.add_(torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, hidden))
        weights = _shares(scores).to(value.dtype)
        return (dropping.dropped(weights, dropout) if dropout else weights) @ value


def _shares(scores: Tensor) -> Tensor:
    """The softmax over the last dimension, in float32: half types were seen to take twice as long."""
    scores = scores.float()
    if scores.shape[-1] >= LANES:
        return scores.softmax(-1)
    powers = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


@cache
def faster(gradients: bool) -> bool:
    """Whether it is, in bf16 without dropout, on this processor: with a backward pass, or without."""
    kernel = nn.functional.scaled_dot_product_attention
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        q, k, v = (torch.ones(TRIED, dtype=torch.bfloat16, requires_grad=gradients) for _ in range(3))
        gains = []
        for _ in range(PAIRS + 1):
            spent = []
            for own in (False, True):
                started = time.process_time()
                made = attended(q, k, v, None, 0.0, None) if own else kernel(q, k, v)
                if gradients:
                    torch.autograd.grad(made.sum(), (q, k, v))
                spent.append(time.process_time() - started)
            gains.append(spent[0] / spent[1])
    return median(gains[1:]) >= FASTER  # the first warms up


def _masks(mask: Tensor | None) -> bool:
    return mask is None or (mask.dtype == torch.bool and mask.ndim == 4)
