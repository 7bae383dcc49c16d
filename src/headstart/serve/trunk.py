"""Models that differ from one backbone by low-rank factors and a head, answered in one forward pass.

Each row of a batch says whose it is. Where somebody in the batch has factors for a layer, the layer's output gets each
row's own low-rank update, h = W x + s B A x, with that row's A and B; rows of models without factors there get zero.
The heads are applied group by group at the end.

Source: Hu et al. 2022 (LoRA), section 4.1, for the update; Chen et al. 2024 (Punica), section 4, for the batch of rows
with factors of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.errors import ProofError
from headstart.protocols import Backbone
from headstart.values import Batch, Features

TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, that company may make to a row when a layer is first shared."""


@dataclass(frozen=True, eq=False)
class Pair:
    """The factors of one layer. down: A, (r,in) or (r,in,kh,kw). up: s B, (out,r), the scale s folded in."""

    down: Tensor
    up: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.down.nbytes + self.up.nbytes


class Tenant(nn.Module):
    """One model on a shared backbone. factors: by the layer's name in the backbone. Stands in for `Model`."""

    def __init__(self, trunk: Trunk, head: nn.Module, factors: Mapping[str, Pair]) -> None:
        super().__init__()
        self.head = head
        # Neither is a module, so that only the head's weights are found as this model's own.
        self.trunk, self.factors = trunk, dict(factors)
        self.nbytes = sum(p.nbytes for p in self.factors.values()) + sum(p.nbytes for p in self.head.parameters())
        """Bytes of what is its own: the factors and the head."""

    @property
    def backbone(self) -> Backbone:
        """The shared one."""
        return self.trunk.backbone

    def forward(self, batch: Batch) -> tuple[Features, Tensor]:
        """Features and outputs (N,K) of rows that are all its own."""
        features, outputs = self.trunk.answer(batch, [self] * len(batch))
        return features, torch.stack(outputs)


class _Route:
    """Whose factors the rows of one batch get. tenants: one of them a row."""

    def __init__(self, tenants: Sequence[Tenant]) -> None:
        self.rows = len(tenants)
        self.tenants = list(dict.fromkeys(tenants))
        place = {id(tenant): number for number, tenant in enumerate(self.tenants)}
        self.places = [place[id(tenant)] for tenant in tenants]

    def update(self, name: str, layer: Any, x: Tensor, out: Tensor) -> Tensor:
        """A layer's output (M,...,out) with the updates of the rows that its input (M,...,in) belongs to.

        M is the rows of the batch, or a multiple where the network cut each row into parts. The output is the layer's
        fresh one, so it is added to in place.
        """
        found = [tenant.factors.get(name) for tenant in self.tenants]
        known = next((pair for pair in found if pair is not None), None)
        if known is None:
            return out
        if len(found) == 1:
            return _alone(layer, x, out, known)
        downs, ups = _padded(found, known)
        parts = len(x) // self.rows
        if parts * self.rows != len(x):
            raise RuntimeError(f"the layer '{name}' mixes {self.rows} rows: its input has {len(x)}")
        down = torch.stack([downs[place] for place in self.places])
        up = torch.stack([ups[place] for place in self.places])
        if isinstance(layer, nn.Linear):
            inner = torch.bmm(x.reshape(self.rows, -1, x.shape[-1]), down.transpose(1, 2))
            return out.reshape(self.rows, -1, out.shape[-1]).baddbmm_(inner, up.transpose(1, 2)).view(out.shape)
        return out.add_(_convolved(layer, x, down, up, parts))


def _alone(layer: Any, x: Tensor, out: Tensor, pair: Pair) -> Tensor:
    """The output with the update of rows that share their factors."""
    if isinstance(layer, nn.Linear):
        inner = x.reshape(-1, x.shape[-1]) @ pair.down.t()
        return out.reshape(-1, out.shape[-1]).addmm_(inner, pair.up.t()).view(out.shape)
    inner = functional.conv2d(x, pair.down, None, layer.stride, layer.padding, layer.dilation)
    return out.add_(functional.conv2d(inner, pair.up[:, :, None, None]))


def _padded(found: Sequence[Pair | None], known: Pair) -> tuple[list[Tensor], list[Tensor]]:
    """The factors of several models with zeros up to the highest rank, and zeros alone for those that have none."""
    rank = max(len(pair.down) for pair in found if pair is not None)
    empty = Pair(known.down.new_zeros(0, *known.down.shape[1:]), known.up.new_zeros(known.up.shape[0], 0))
    pairs = [pair or empty for pair in found]
    short = [rank - len(pair.down) for pair in pairs]
    downs = [
        torch.cat([pair.down, pair.down.new_zeros(lack, *pair.down.shape[1:])]) if lack else pair.down
        for pair, lack in zip(pairs, short, strict=True)
    ]
    ups = [functional.pad(pair.up, (0, lack)) if lack else pair.up for pair, lack in zip(pairs, short, strict=True)]
    return downs, ups


def _convolved(layer: Any, x: Tensor, down: Tensor, up: Tensor, parts: int) -> Tensor:
    """The updates of a convolution: rows stand side by side as groups. down: (N,r,in,kh,kw). up: (N,out,r)."""
    if parts > 1:
        down, up = down.repeat_interleave(parts, 0), up.repeat_interleave(parts, 0)
    count, rank = down.shape[:2]
    inner = functional.conv2d(
        x.reshape(1, -1, *x.shape[2:]), down.flatten(0, 1), None, layer.stride, layer.padding, layer.dilation, count
    )
    size = inner.shape[2:]
    return torch.bmm(up, inner.reshape(count, rank, -1)).view(count, -1, *size)


class _Routes(threading.local):
    """The route of the batch that a thread runs now."""

    now: _Route | None = None


class Trunk:
    """A backbone that several models share. Its weights stay as they are."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone.eval().requires_grad_(False)
        # Of the thread that runs a batch: a proof may run beside it in another.
        self._routes = _Routes()
        self._hooks: dict[str, Any] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the backbone's weights."""
        return sum(value.nbytes for value in self.backbone.state_dict().values())

    def hook(self, names: Iterable[str]) -> list[str]:
        """Make these layers ask for the factors of each row. Returns those that did not before.

        Raises AttributeError, and changes nothing, for a layer that is not there.
        """
        fresh = {name: self.backbone.get_submodule(name) for name in names if name not in self._hooks}
        for name, layer in fresh.items():
            self._hooks[name] = layer.register_forward_hook(_hook(name, self._routes))
        return list(fresh)

    def unhook(self, names: Iterable[str]) -> None:
        """Let these layers be as they were."""
        for name in names:
            self._hooks.pop(name).remove()

    def answer(self, batch: Batch, tenants: Sequence[Tenant]) -> tuple[Features, list[Tensor]]:
        """Features of a batch and each row's outputs (K,), by the model that stands at its place in `tenants`."""
        route = _Route(tenants)
        self._routes.now = route
        try:
            features = self.backbone(batch)
        finally:
            self._routes.now = None
        pooled = features.pooled.float()
        outputs: list[Any] = [None] * len(tenants)
        for number, tenant in enumerate(route.tenants):
            rows = [row for row, place in enumerate(route.places) if place == number]
            for row, values in zip(rows, tenant.head(pooled[rows]), strict=True):
                outputs[row] = values
        return features, outputs

    def prove(self, batch: Batch, tenant: Tenant) -> None:
        """Rows of a tenant give in company what they give among themselves.

        batch: at least two rows, twice. Raises ProofError when they do not, as in a network that mixes its rows.
        """
        bare = Tenant(self, tenant.head, {})
        with torch.inference_mode():
            turns = [(tenant, bare)[row % 2] for row in range(len(batch))]
            mixed = self.answer(batch, turns)[1]
            apart = {each: self.answer(batch, [each] * len(batch))[1] for each in (tenant, bare)}
        for row, (found, who) in enumerate(zip(mixed, turns, strict=True)):
            expected = apart[who][row]
            allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
            if not float((found - expected).abs().max()) <= allowed:
                raise ProofError("rows with factors of their own answer otherwise in company: this network mixes rows")


def _hook(name: str, routes: _Routes) -> Any:
    # Knows the routes and not the trunk, so that a backbone that nobody uses is freed at once.
    def after(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        found = routes.now
        return out if found is None else found.update(name, layer, args[0], out)

    return after
