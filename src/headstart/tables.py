"""Tables of embeddings that learn, moved in the rows that batches touch.

A batch of texts reads some hundred of the 30,000 rows of such a table, but its gradient, its norm and Adam's update go
over all of them: a seventh of a step of MiniLM-L6 in bf16. Here a gradient holds the rows that were read, and Adam
moves those that ever were. For all others Adam's moments are zero, so it only shrinks them by the decoupled decay, by
the same factor in each step; they are multiplied by the product of these factors before anyone reads them. So what
comes out is what Adam over the whole table gives, but for the rounding of that product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headstart.inside import Forward, plain, replaced

LEAST = 2**20
"""Numbers in a table below which its whole update costs next to nothing."""

MOST = 0.25
"""Share of rows touched above which the table is moved whole from then on."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch's Adam keeps for each number."""


class Table:
    """One table, its module's `weight` (R,V). live: the rows (R,) bool that Adam moves.

    pending: what the other rows are yet to be multiplied by.
    """

    def __init__(self, module: nn.Embedding) -> None:
        self.module = module
        self.weight = module.weight
        self.live = torch.zeros(len(self.weight), dtype=torch.bool)
        self.pending = 1.0

    @property
    def whole(self) -> bool:
        """Whether all rows are moved by torch's own update."""
        return bool(self.live.all())

    def know(self, state: Mapping[str, Any]) -> None:
        """Rows that have moments are live."""
        for name in MOMENTS:
            if name in state:
                self.live |= (state[name] != 0).any(1)
        self._whole_when_many()

    def look_up(self, forward: Forward, ids: Tensor) -> Any:
        """The module's forward pass. Rows that were not live are now, and as they should be."""
        fresh = ids[~self.live[ids]]
        if len(fresh):
            fresh = fresh.unique()
            with torch.no_grad():
                self.weight[fresh] *= self.pending
            self.live[fresh] = True
        return forward(ids)

    def settle(self) -> None:
        """All rows as they should be."""
        if self.pending != 1.0:
            factor = torch.where(self.live, 1.0, self.pending)
            with torch.no_grad():
                self.weight.mul_(factor[:, None])
            self.pending = 1.0

    def coalesce(self) -> bool:
        """Whether there is a gradient in rows; each is then in it once."""
        gradient = self.weight.grad
        if gradient is None or not gradient.is_sparse:
            return False
        if not gradient.is_coalesced():
            self.weight.grad = gradient.coalesce()
        return True

    def take(self) -> Tensor | None:
        """The gradient in rows, taken from the weight; None, and all rows live, where it is not in rows."""
        gradient = self.weight.grad
        if gradient is None:
            return None
        if not self.coalesce():  # something else than the lookup reached the table
            self.settle()
            self.live.fill_(True)
            return None
        gradient, self.weight.grad = self.weight.grad, None
        return gradient

    def move(self, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """One update of a group of torch's Adam or AdamW. gradient: coalesced."""
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in MOMENTS:
                state[name] = torch.zeros_like(self.weight)
        held = [self.weight, *(state[name] for name in MOMENTS)]
        with torch.no_grad():
            rows = self.live.nonzero()[:, 0]
            place = torch.zeros(len(self.live), dtype=torch.int64)
            place[rows] = torch.arange(len(rows))
            slopes = torch.zeros(len(rows), *self.weight.shape[1:])
            slopes[place[gradient.indices()[0]]] = gradient.values()
            moved = [numbers[rows] for numbers in held]
            _adam(moved, slopes, state["step"], group)
            for numbers, own in zip(held, moved, strict=True):
                numbers.index_copy_(0, rows, own)
        self.pending *= 1 - group["lr"] * group["weight_decay"]
        self._whole_when_many()

    def _whole_when_many(self) -> None:
        if float(self.live.float().mean()) > MOST:
            self.settle()
            self.live.fill_(True)


def _adam(moved: Sequence[Tensor], slopes: Tensor, step: Tensor, group: Mapping[str, Any]) -> None:
    """torch's fused update of a weight and its two moments, in place."""
    from torch.optim.adam import adam

    update: Any = adam
    weight, *moments = moved
    update(
        [weight], [slopes], *([moment] for moment in moments), [], [step],
        fused=True, amsgrad=False, maximize=False, decoupled_weight_decay=True, beta1=group["betas"][0],
        beta2=group["betas"][1], lr=group["lr"], eps=group["eps"], weight_decay=group["weight_decay"],
    )  # fmt: skip


def find(model: nn.Module) -> list[Table]:
    """The large tables on a processor that learn and that nothing but one module reads."""
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return [
        Table(module)
        for module in model.modules()
        if type(module) is nn.Embedding and _usual(module) and holders[id(module.weight)] == 1
    ]


@contextmanager
def within(tables: Sequence[Table]) -> Iterator[None]:
    """Inside, gradients of these tables are in rows (sparse tensors)."""
    chosen = [table for table in tables if not table.whole and plain([table.module])]
    made: dict[nn.Module, Table] = {table.module: table for table in chosen}
    try:
        for table in chosen:
            table.module.sparse = True
        with replaced(list(made), lambda module, forward: partial(made[module].look_up, forward)):
            yield
    finally:
        for table in chosen:
            table.module.sparse = False


def _usual(module: nn.Embedding) -> bool:
    weight = module.weight
    size = weight.requires_grad and weight.numel() >= LEAST and weight.dtype == torch.float32
    ordinary = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return size and ordinary and weight.device.type == "cpu" and plain([module])
