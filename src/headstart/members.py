"""One task of several that share a run: which outputs and which rows are its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from headstart.protocols import Task


@dataclass(frozen=True)
class Member:
    """One task of several that share a run.

    index: its number, which is also the `origin` of its rows. columns: its share of the head's outputs. width: columns
    of its own targets, 0 where they are class numbers. Targets of several tasks are (N,1+W): the number of the row's
    task, then that task's own target.
    """

    name: str
    task: Task
    index: int
    columns: slice
    width: int

    def rows(self, targets: Any) -> Any:
        """Which of these rows are its own, (N,) bool; targets (N,1+W), a tensor or an array."""
        return targets[:, 0] == self.index

    def own(self, targets: Any) -> Any:
        """The targets of its rows as its task encodes them, from (n,1+W)."""
        if self.width:
            return targets[:, 1 : 1 + self.width]
        numbers = targets[:, 1]
        return numbers.long() if isinstance(numbers, Tensor) else numbers.astype(np.int64)
