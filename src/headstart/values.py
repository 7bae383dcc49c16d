"""The values that travel between the rooms. They hold data; they do no work and import no heavy library.

Shape legend, used in every docstring of the project:

    N   rows in a batch                 T   tokens of the longest row in the batch
    D   width of the pooled features    V   width of a token embedding
    K   width of the head's output      C, H, W   channels, height, width of a picture
    S   samples of the longest sound in the batch
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


@dataclass(frozen=True)
class Mix:
    """Rows to be mixed inside the network: x <- share * x + (1 - share) * x[partner].

    partner: (N,) int64, share: (N,) float32 in [0, 1]. block: x is what this block of the backbone receives, where
    tokens without a partner stay as they are; None: x is the pooled features.
    """

    partner: Tensor
    share: Tensor
    block: int | None = None

    def to(self, device: Any) -> Mix:
        """The same on another device."""
        return replace(self, partner=self.partner.to(device), share=self.share.to(device))


@dataclass(frozen=True)
class Blank:
    """The size and type of a tensor whose numbers are not needed. In `shape` -1 is N and -2 is T."""

    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class Kept:
    """What the frozen bottom of a network made of a batch's rows earlier, so that it need not run again.

    states: what block `block` of the backbone receives, (N, ...); with block None the pooled features (N,D).
    answers: what the modules below that block answer with, those of the stem first, each a Blank or a tuple or list of
    such, or None for a module that is to run. filled: whether blanks take up memory, for networks that write into them.
    """

    states: Tensor
    block: int | None = None
    answers: tuple[Any, ...] = ()
    filled: bool = False


@dataclass(frozen=True)
class Batch:
    """Frozen tensors of N rows. A hook that wants another batch makes one with `replace`.

    inputs: what the modality collated. Text: `input_ids` (N,T) int64, `attention_mask` (N,T) int64 (and
        `token_type_ids` where the tokenizer makes them). Image: `pixels` (N,C,H,W) float32 in [0, 1], not yet
        normalised (the backbone does that). Audio: `wave` (N,S) float32 in about [-1, 1], zero beyond a row's own
        samples, and `lengths` (N,) int64, how many those are; optionally `hidden_frames` (N,F) and `hidden_bands`
        (N,M) bool, which frames and bands of the spectrogram the backbone is to hide.
    labels: the task's targets: (N,) int64 for classes, (N,K) float32 for mixed classes, several labels or
        regression; None when rows are unlabelled.
    weight: (N,) float32, what each row counts in the loss.
    origin: (N,) int64, which domain, task or memory a row came from (0 unless something says otherwise).
    row: (N,) int64, the row's index in its split, -1 for a row that stands in none.
    shift: added to the continuous input before the network sees it: token embeddings (N,T,V), pixels (N,C,H,W)
        or a wave (N,S).
    mix: rows to be mixed in the network, at a block or after pooling.
    kept: what the frozen bottom of the network made of these rows; their `inputs` may then be blank, or left out.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor | None
    weight: Tensor
    origin: Tensor
    row: Tensor
    shift: Tensor | None = None
    mix: Mix | None = None
    kept: Kept | None = None

    def __len__(self) -> int:
        return int(self.weight.shape[0])

    def replace(self, **changes: Any) -> Batch:
        """A new batch with these fields changed."""
        return replace(self, **changes)

    def part(self, rows: slice) -> Batch:
        """Some neighbouring rows of a batch in which nothing is to be mixed."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows]

        return replace(
            self,
            inputs={name: value[rows] for name, value in self.inputs.items()},
            labels=cut(self.labels),
            weight=self.weight[rows],
            origin=self.origin[rows],
            row=self.row[rows],
            shift=cut(self.shift),
            kept=None if self.kept is None else replace(self.kept, states=self.kept.states[rows]),
        )

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=True)

        return replace(
            self,
            inputs={name: value.to(device, non_blocking=True) for name, value in self.inputs.items()},
            labels=move(self.labels),
            weight=self.weight.to(device),
            origin=self.origin.to(device),
            row=self.row.to(device),
            shift=move(self.shift),
            mix=None if self.mix is None else self.mix.to(device),
            kept=None if self.kept is None else replace(self.kept, states=self.kept.states.to(device)),
        )


@dataclass(frozen=True)
class Features:
    """What a backbone returns.

    pooled: (N,D), one vector a row, pooled as the backbone was trained.
    tokens: (N,T,D) with mask (N,T), where the backbone has tokens (text, vision transformers).
    map: (N,C,H,W), where the backbone is convolutional.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    map: Tensor | None = None


@dataclass(frozen=True)
class View:
    """What a penalty sees of one micro-batch. losses: (N,), outputs: (N,K), features as above."""

    batch: Batch
    features: Features
    outputs: Tensor
    losses: Tensor
    model: nn.Module


@dataclass(frozen=True)
class Decoded:
    """Answers for people. prediction: one per row. scores: column name -> (rows,), such as one probability a label."""

    prediction: list[Any]
    scores: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Weighted:
    """Metrics of rows that count zero, one or several times, which is what a bootstrap asks for.

    compute: counts (B,rows) -> name -> (B,), for B resamples at once; nan where a resample leaves a metric undefined.
    work: elements touched per resample, which bounds how many resamples are drawn.
    shares: those of `names` that are plain shares of rows, for which an exact interval exists.
    """

    names: tuple[str, ...]
    work: int
    compute: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    shares: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Parameters that learn at `lr_scale` times the run's learning rate."""

    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Steps are optimiser steps, counted from 0; epochs too."""

    step: int
    steps: int
    epoch: int
    epochs: int

    @property
    def fraction(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return self.step / max(1, self.steps)


@dataclass(frozen=True)
class Choice:
    """Whether a step is made in some other way than the plain one, why, and how many times as fast it measured."""

    on: bool
    why: str = ""
    gain: float = 1.0


@dataclass(frozen=True)
class Finding:
    """Something a check found in the data. `level` is 'error', 'warning' or 'note'."""

    level: str
    code: str
    message: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class RowCount:
    """read = trained + validated + tested + unlabelled + dropped, always; `dropped` maps a reason to a count."""

    read: int
    trained: int
    validated: int
    tested: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    unlabelled: int = 0

    def to_json(self) -> dict[str, Any]:
        """The counts as plain JSON."""
        return {
            "read": self.read,
            "trained": self.trained,
            "validated": self.validated,
            "tested": self.tested,
            "unlabelled": self.unlabelled,
            "dropped": dict(self.dropped),
        }

    @property
    def adds_up(self) -> bool:
        """Whether every row that was read is accounted for."""
        return self.read == self.trained + self.validated + self.tested + self.unlabelled + sum(self.dropped.values())
