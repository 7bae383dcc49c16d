"""Rows that fit badly are set aside: among wrong labels, they are the wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from headstart.methods._checks import flag, number, whole
from headstart.protocols import Context, Method
from headstart.values import Batch, View


@dataclass
class SmallLoss(Method):
    """Sets the rows with the largest losses of the epoch before aside: a network learns wrong labels last.

    Equation: in epoch T = 0, 1, ... the share R(T) = 1 - rate * min(T / warmup, 1) of the rows of each class (with
    `by_class=false` of all rows) is kept, those with the smallest losses in epoch T - 1; the others weigh `weight`
    times what they did.

    Source: Han et al. 2018 (Co-teaching), algorithm 1, of which this is the choice of rows by small loss. There two
    networks choose for each other, by the losses of the batch at hand, whatever the classes; here one network chooses
    for itself, class by class, by its losses over the whole epoch before: no second network, no second pass.

    Requires: two epochs or more, and rows that are not all mixed. Regression on mixed pictures is not told apart.

    Shapes: losses (N,) and row numbers (N,) are looked at; weights (N,) -> the same.

    Neighbours: `task.gce_q` lets the loss itself care less for rows that fit badly. Losses are looked at once a row and
    step, in the first pass: of `sam` the one at the weights, of `fgm` and `pgd` the one where their search starts.
    Rows without a number and rows that `mixup` or `cutmix` mixed are not looked at, so that where all are mixed the
    run says that it changed nothing. With `by_class=false` what raises the losses of a class, such as class weights,
    sets its rows aside.

    Example: `--method smallloss:rate=0.2`; `hs.methods.SmallLoss(rate=0.2)`.

    Defaults: rate should be the share of wrong labels (tau, section 3 of the paper); 0.2 is the lower of the two
    symmetric rates that the paper tries and says nothing about your rows. warmup = 1 suits the few epochs of
    fine-tuning, the paper has 10 of 200. weight = 0 is the paper's. by_class is on because rare classes are learned
    last: chosen over all rows, they are the first to be set aside, right labels and all. None of them is tuned.

    rate: share of rows to set aside in the end. warmup: epochs until then (T_k). weight: what is left of their weight.
    by_class: whether each class loses the same share; rows without one class (several labels, numbers) are one group.
    """

    rate: float = 0.2
    warmup: int = 1
    weight: float = 0.0
    by_class: bool = True

    def __post_init__(self) -> None:
        number("smallloss:rate", self.rate, 0, "such as rate=0.2, the share of wrong labels", high=0.9, above=True)
        whole("smallloss:warmup", self.warmup, 1, "such as warmup=1")
        number("smallloss:weight", self.weight, 0, "such as weight=0; 1 would change nothing", high=0.99)
        flag("smallloss:by_class", self.by_class)
        self._forget()

    def _forget(self) -> None:
        self.epoch_ = 0
        self.sums_ = torch.zeros(0, dtype=torch.float64)
        self.counts_ = torch.zeros(0, dtype=torch.int64)
        self.steps_ = torch.zeros(0, dtype=torch.int64)
        self.classes_ = torch.zeros(0, dtype=torch.int64)
        self.aside_ = torch.zeros(0, dtype=torch.bool)
        self.last_ = torch.zeros(0, dtype=torch.float64)

    def first_epoch(self) -> int:
        """The first epoch only looks."""
        return 1

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; what another run taught is forgotten."""
        self._forget()
        return model

    def remains(self) -> bool:
        """The model keeps no trace of the training."""
        return False

    def transform(self, batch: Batch, ctx: Context) -> Batch:
        """Rows that are set aside weigh less. Where a batch would be left without any, its best row keeps its own."""
        if ctx.progress.epoch != self.epoch_:
            self._choose(ctx.progress.epoch, batch.weight.device)
        row = batch.row.cpu()
        known = (row >= 0) & (row < len(self.aside_))
        aside = torch.zeros(len(batch), dtype=torch.bool)
        aside[known] = self.aside_[row[known]]
        if not bool(aside.any()):
            return batch
        if self.weight == 0 and bool(aside.all()):
            aside[int(self.last_[row].argmin())] = False
        factor = torch.where(aside, self.weight, 1.0).to(batch.weight)
        return batch.replace(weight=batch.weight * factor)

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """None; looks at the losses of rows that stand for themselves, once a step."""
        row = view.batch.row.cpu()
        seen = _plain(view.batch, ctx.task.name) & (row >= 0)
        self._grow(int(row.max()) + 1)
        seen &= self.steps_[row.clamp_min(0)] <= ctx.progress.step
        row, losses = row[seen], view.losses.detach().cpu().double()[seen]
        self.sums_.index_add_(0, row, losses)
        self.counts_.index_add_(0, row, torch.ones_like(row))
        self.steps_[row] = ctx.progress.step + 1
        self.classes_[row] = _classes(view.batch, ctx.task.name)[seen]
        return {}

    def _grow(self, size: int) -> None:
        more = max(0, size - len(self.sums_))
        if more:
            for name in ("sums_", "counts_", "steps_", "classes_"):
                old = getattr(self, name)
                setattr(self, name, torch.cat([old, torch.zeros(more, dtype=old.dtype)]))

    def _choose(self, epoch: int, device: torch.device) -> None:
        """Who is set aside in this epoch, by mean losses since the last choice, which are then forgotten."""
        self._gather(device)
        losses = torch.where(self.counts_ > 0, self.sums_ / self.counts_.clamp_min(1), -torch.inf)
        share = 1 - self.rate * min(epoch / self.warmup, 1.0)
        groups = self.classes_ if self.by_class else torch.zeros_like(self.classes_)
        self.aside_ = torch.zeros(len(losses), dtype=torch.bool)
        for group in groups[self.counts_ > 0].unique().tolist():
            rows = ((self.counts_ > 0) & (groups == group)).nonzero()[:, 0]
            kept = max(1, int(share * len(rows)))
            self.aside_[rows[losses[rows].argsort(stable=True)[kept:]]] = True
        self.last_, self.epoch_ = losses, epoch
        self.sums_, self.counts_ = torch.zeros_like(self.sums_), torch.zeros_like(self.counts_)

    def _gather(self, device: torch.device) -> None:
        """Several processes each saw a part of the rows."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        size = torch.tensor(len(self.sums_), device=device)
        distributed.all_reduce(size, distributed.ReduceOp.MAX)
        self._grow(int(size))
        for name, operation in (("sums_", "SUM"), ("counts_", "SUM"), ("classes_", "MAX")):
            shared = getattr(self, name).to(device)
            distributed.all_reduce(shared, getattr(distributed.ReduceOp, operation))
            setattr(self, name, shared.cpu())

    def state(self) -> dict[str, Any]:
        """Who is set aside, and the losses of the epoch so far."""
        return {
            "epoch": self.epoch_,
            "sums": self.sums_,
            "counts": self.counts_,
            "steps": self.steps_,
            "classes": self.classes_,
            "aside": self.aside_,
            "last": self.last_,
        }

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """The inverse of `state`."""
        for name, value in state.items():
            setattr(self, f"{name}_", value)


def _classes(batch: Batch, task: str) -> Tensor:
    """(N,) The class of each row; 0 where rows have none or several."""
    if task != "classification" or batch.labels is None:
        return torch.zeros(len(batch), dtype=torch.int64)
    return (batch.labels.argmax(1) if batch.labels.ndim == 2 else batch.labels).cpu()


def _plain(batch: Batch, task: str) -> Tensor:
    """(N,) Whether a row has its own input and label; where two rows were mixed into one, it has not.

    Mixed pixels show in the labels alone, those of two rows of one class not at all; nor do they need to.
    """
    plain = torch.ones(len(batch), dtype=torch.bool)
    if batch.mix is not None:
        plain &= (batch.mix.share == 1).cpu()
    if task != "regression" and batch.labels is not None and batch.labels.ndim == 2:
        plain &= ((batch.labels == 0) | (batch.labels == 1)).all(1).cpu()
    return plain
