"""From token vectors (N,T,V) and a mask (N,T) to one vector a row (N,D). Rows are padded on the right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import BackboneError


def first(tokens: Tensor, mask: Tensor) -> Tensor:
    """The first token's vector, (N,V)."""
    return tokens[:, 0]


def last(tokens: Tensor, mask: Tensor) -> Tensor:
    """The vector of the last token that is not padding, (N,V)."""
    index = mask.long().sum(1).clamp(min=1) - 1
    return tokens[torch.arange(len(tokens), device=tokens.device), index]


def mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens that are not padding, (N,V)."""
    share = mask[:, :, None].to(tokens.dtype)
    return (tokens * share).sum(1) / share.sum(1).clamp(min=1e-9)


def mean_sqrt(tokens: Tensor, mask: Tensor) -> Tensor:
    """The sum over the tokens divided by the square root of their number, (N,V)."""
    share = mask[:, :, None].to(tokens.dtype)
    return (tokens * share).sum(1) / share.sum(1).clamp(min=1e-9).sqrt()


def weighted_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean with weights 1, 2, 3, ... along the tokens (SGPT, Muennighoff 2022, section 4.1), (N,V)."""
    place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=tokens.dtype)
    share = mask[:, :, None].to(tokens.dtype) * place[None, :, None]
    return (tokens * share).sum(1) / share.sum(1).clamp(min=1e-9)


def largest(tokens: Tensor, mask: Tensor) -> Tensor:
    """The elementwise maximum over the tokens that are not padding, (N,V)."""
    return tokens.masked_fill(mask[:, :, None] == 0, float("-inf")).amax(1)


FIXED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": first,
    "mean": mean,
    "max": largest,
    "mean_sqrt_len_tokens": mean_sqrt,
    "weightedmean": weighted_mean,
    "lasttoken": last,
}


class Pool(nn.Module):
    """One or several poolings, side by side: (N,T,V), (N,T) -> (N, V times their number).

    'attention' weighs tokens by softmax(tokens . query / sqrt(V)) with one learned query, as in Yang et al. 2016
    (Hierarchical Attention Networks, section 2.2) without the hidden layer. The query starts at zero, where it equals
    the mean, so that training begins from a known point whatever the seed.
    """

    def __init__(self, modes: Sequence[str], width: int) -> None:
        super().__init__()
        unknown = [mode for mode in modes if mode not in FIXED and mode != "attention"]
        if unknown or not modes:
            raise BackboneError(f"expected a pooling among {', '.join([*FIXED, 'attention'])}, received {list(modes)}")
        self.modes = tuple(modes)
        if "attention" in modes:
            self.query = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (N,T,V), mask (N,T) with 1 for tokens and 0 for padding."""
        # Sums over tokens lose digits in half precision, and everything above stands on them.
        return torch.cat([self._one(mode, tokens.float(), mask) for mode in self.modes], dim=1)

    def _one(self, mode: str, tokens: Tensor, mask: Tensor) -> Tensor:
        if mode != "attention":
            return FIXED[mode](tokens, mask)
        score = (tokens @ self.query) / tokens.shape[2] ** 0.5  # (N,T)
        share = score.masked_fill(mask == 0, float("-inf")).softmax(1)
        pooled: Tensor = (tokens * share[:, :, None]).sum(1)
        return pooled


class Normalize(nn.Module):
    """Scale each row to length 1."""

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled (N,D)."""
        return nn.functional.normalize(pooled, p=2.0, dim=1)


ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU")


class Dense(nn.Module):
    """activation(linear(pooled)), optionally added to a (projected) copy of the input."""

    def __init__(self, inputs: int, outputs: int, bias: bool, activation: str, residual: bool) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise BackboneError(f"expected an activation among {', '.join(ACTIVATIONS)}, received '{activation}'")
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation: nn.Module = getattr(nn, activation)()
        self.residual: nn.Module | None = None
        if residual:
            self.residual = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled (N,D)."""
        out: Tensor = self.activation(self.linear(pooled))
        return out if self.residual is None else out + self.residual(pooled)


def make_layer(record: Mapping[str, Any]) -> nn.Module:
    """A layer above the pooling from its record: {'kind': 'normalize'} or {'kind': 'dense', ...}."""
    if record["kind"] == "normalize":
        return Normalize()
    return Dense(
        int(record["inputs"]), int(record["outputs"]), bool(record["bias"]), record["activation"], record["residual"]
    )
