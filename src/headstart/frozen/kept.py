"""Rows with what the frozen bottom of a network made of them: kept in a mapped file, and only while it holds."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.encoded import Encoded
from headstart.values import Batch, Kept


class Unfit(Exception):
    """What was made of the rows cannot be kept; the text says why."""


class Store:
    """States of `rows` rows in one file of exactly the room that they need, which is gone when nobody maps it.

    Rows of fixed size take `piece` numbers each. Rows of tokens are ragged: `lengths` (rows,) tokens of `piece`
    numbers each, without padding.

    Raises Unfit when there is no room.
    """

    def __init__(
        self, rows: int, piece: tuple[int, ...], dtype: torch.dtype, lengths: np.ndarray | None = None
    ) -> None:
        self.piece = piece
        self.ragged = lengths is not None
        counts = np.ones(rows, dtype=np.int64) if lengths is None else np.asarray(lengths, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self._values = _mapped((self._starts[-1], *piece), dtype)

    def put(self, rows: Sequence[int], states: Tensor, mask: Tensor | None) -> None:
        """Keep the states (N, ...) of these rows. mask: (N,T) of rows of tokens.

        Raises Unfit when tokens are not padded on the right to the lengths that were announced.
        """
        states = states.detach().to("cpu")
        if not self.ragged:
            self._values[torch.as_tensor(list(rows))] = states
            return
        counts = [self._starts[row + 1] - self._starts[row] for row in rows]
        if mask is None or not torch.equal(mask.cpu() != 0, _right_padded(counts, states.shape[1])):
            raise Unfit("its tokens are not padded on the right to the lengths of the rows")
        for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
            self._values[self._starts[row] : self._starts[row + 1]] = states[place, :count]

    def take(self, rows: Sequence[int]) -> Tensor:
        """The states (N, ...) of these rows; ragged ones are padded with zeros to (N,T, ...)."""
        if not self.ragged:
            return self._values[torch.as_tensor(list(rows))]
        counts = [self._starts[row + 1] - self._starts[row] for row in rows]
        states = self._values.new_zeros((len(counts), max([1, *counts]), *self.piece))
        for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
            states[place, :count] = self._values[self._starts[row] : self._starts[row + 1]]
        return states


def _right_padded(counts: Sequence[int], width: int) -> Tensor:
    return torch.arange(width)[None] < torch.tensor(list(counts))[:, None]


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in a file that has no name any more."""
    numbers = int(np.prod(shape))
    if numbers == 0:
        return torch.zeros(shape, dtype=dtype)
    with tempfile.NamedTemporaryFile(prefix="headstart-", suffix=".kept") as file:
        try:
            # The room is taken now where that can be done: a disk that fills up under a mapped file ends the process.
            take_room = getattr(os, "posix_fallocate", lambda handle, start, size: os.truncate(handle, size))
            take_room(file.fileno(), 0, numbers * dtype.itemsize)
        except OSError as error:
            raise Unfit(f"the temporary folder has no room for it ({error.strerror or error})") from None
        return torch.from_file(file.name, shared=True, size=numbers, dtype=dtype).view(shape)


class Guard:
    """Says whether the modules that states were made with are what they were: the same tensors with the same numbers.

    That a tensor was written to shows in its version, so most questions cost nothing; when it was, the digest decides.
    """

    def __init__(self, parts: Sequence[nn.Module | nn.Parameter]) -> None:
        self.parts = list(parts)
        self._tensors = self._found()
        self._versions = self._now()
        self.digest = self._digest()
        self._bad: list[tuple[int, int]] | None = None

    def holds(self) -> bool:
        """Whether the numbers are those of the beginning; asks the digest where tensors were written to."""
        if self._fresh():
            return True
        now = self._now()
        if now == self._bad:
            return False
        if self._digest() != self.digest:
            self._bad = now
            return False
        self._versions = now
        return True

    def _fresh(self) -> bool:
        return self._now() == self._versions

    def same(self, parts: Sequence[nn.Module | nn.Parameter]) -> bool:
        """Whether these are the same parts, holding the same tensors."""
        if len(parts) != len(self.parts) or any(a is not b for a, b in zip(parts, self.parts, strict=True)):
            return False
        found = self._found()
        return len(found) == len(self._tensors) and all(a is b for a, b in zip(found, self._tensors, strict=True))

    def _found(self) -> list[Tensor]:
        found: list[Tensor] = []
        for part in self.parts:
            found += [*part.parameters(), *part.buffers()] if isinstance(part, nn.Module) else [part]
        return found

    def _now(self) -> list[tuple[int, int]]:
        return [(tensor._version, tensor.data_ptr()) for tensor in self._tensors]

    def _digest(self) -> str:
        total = hashlib.sha256()
        for tensor in self._tensors:
            total.update(f"{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class KeptRows(Encoded):
    """Rows whose batches carry what the frozen bottom made of them, as long as the guard says that it holds.

    block: what receives the states; None: they are pooled features. answers, filled: as in `values.Kept`.
    pixels: (C,H,W) of a picture, where rows are pictures, which are then not decoded.
    """

    store: Store
    guard: Guard
    block: int | None
    answers: tuple[Any, ...] = ()
    filled: bool = False
    pixels: tuple[int, ...] | None = None

    def batch(self, rows: Sequence[int]) -> Batch:
        """The batch of these rows, in this order."""
        if not self.guard.holds():
            return super().batch(rows)
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        inputs: dict[str, Tensor] = {}
        if self.pixels is not None:
            inputs = {"pixels": torch.full((), math.nan).expand(len(index), *self.pixels)}
        elif self.block is not None:
            inputs = self.prepared.take(rows)
        return Batch(
            inputs=inputs,
            labels=None if self.targets is None else self.targets[index],
            weight=self.weight[index],
            origin=self.origin[index],
            row=index,
            kept=Kept(self.store.take(rows), self.block, self.answers, self.filled),
        )
