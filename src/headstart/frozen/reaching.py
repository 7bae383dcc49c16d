"""How far a batch comes in a network: what a block receives, and a trial of starting from that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.encoded import Encoded
from headstart.frozen.kept import Store, Unfit
from headstart.model import below, quiet, with_states
from headstart.values import Batch, Blank, Kept

TRIED = 8
"""Rows on which kept states must give the features of the whole network, before anything is spent on the others."""

FEWEST = 4
"""Rows that a trial needs."""


class _Reached(Exception):
    """Ends a forward pass at a block."""


def reach(model: nn.Module, batch: Batch, block: int | None) -> Tensor:
    """What block `block` of the backbone receives of a batch, (N, ...), running only what lies below it.

    With block None the pooled features (N,D). Raises Unfit when the block receives nothing of N rows.
    """
    backbone: Any = model.backbone
    if block is None:
        pooled: Tensor = backbone(batch).pooled
        return pooled
    found: list[Tensor] = []

    def take(states: Tensor) -> Tensor:
        found.append(states.detach())
        return states

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with_states(args, kwargs, len(batch), take)
        raise _Reached

    handle = backbone.blocks[block].register_forward_pre_hook(before, with_kwargs=True)
    try:
        backbone(batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not found:
        raise Unfit("its blocks receive no states of the rows")
    return found[0]


class Trial:
    """Starts from kept states on a few rows and sees whether the features are those of the whole network.

    model: in the modes of training; it is left so. block: None for the pooled features. tolerance: how far features may
    differ, as a share of the largest.

    piece: the size of what is kept of a row, or of a token where `ragged`. dtype: its type. answers, filled: as in
    `values.Kept`. pixels: (C,H,W) of a picture, else None.

    Raises Unfit, saying why, when this network cannot be started so.
    """

    def __init__(self, model: nn.Module, rows: Encoded, block: int | None, tolerance: float) -> None:
        self.block = block
        self.answers: tuple[Any, ...] = ()
        self.filled = False
        self.pixels: tuple[int, ...] | None = None
        lengths = np.asarray(rows.prepared.lengths)
        places = np.unique(np.linspace(0, len(rows) - 1, TRIED).round().astype(int))
        picked = lengths.argsort(kind="stable")[places].tolist()
        cut = len(picked) // 2 - 1
        device = next(model.parameters()).device
        halves = [rows.batch(picked[:cut]).to(device), rows.batch(picked[cut:]).to(device)]
        states = self._states(model, halves)
        self._measure(states[0], halves[0])
        store = Store(len(picked), self.piece, self.dtype, lengths[picked] if self.ragged else None)
        for start, made, half in zip((0, cut), states, halves, strict=True):
            store.put(range(start, start + len(half)), made, half.inputs.get("attention_mask"))
        self._compare(model, rows.batch(picked).to(device), store.take(range(len(picked))).to(device), tolerance)

    def size(self, rows: Encoded) -> int:
        """Bytes that these rows take."""
        pieces = int(np.sum(rows.prepared.lengths, dtype=np.int64)) if self.ragged else len(rows)
        return pieces * int(np.prod(self.piece)) * self.dtype.itemsize

    def store(self, lengths: np.ndarray) -> Store:
        """Room for rows of these lengths. Raises Unfit when there is none."""
        return Store(len(lengths), self.piece, self.dtype, lengths if self.ragged else None)

    def _states(self, model: nn.Module, halves: list[Batch]) -> list[Tensor]:
        """What the block receives of either half; how the modules below answer goes into `answers`."""
        backbone: Any = model.backbone
        modules = [] if self.block is None else below(backbone, self.block)
        states, answers = [], []
        for half in halves:
            before = _random(half)
            with _answers(modules) as heard:
                states.append(reach(model, half, self.block))
            if any(not torch.equal(a, b) for a, b in zip(before, _random(half), strict=True)):
                raise Unfit("it draws random numbers")
            answers.append(heard)
        rows = (len(halves[0]), len(halves[1]))
        tokens = (_tokens(halves[0]), _tokens(halves[1]))
        pairs = zip(*answers, strict=True)
        self.answers = tuple(_unified(a, b, rows, tokens) for a, b in pairs)
        return states

    def _measure(self, states: Tensor, batch: Batch) -> None:
        mask = batch.inputs.get("attention_mask")
        self.dtype = states.dtype
        self.ragged = self.block is not None and mask is not None
        self.piece = tuple(states.shape[2 if self.ragged else 1 :])
        if self.block is None:
            return
        if mask is not None:
            if states.shape[:2] != mask.shape:
                raise Unfit("what its blocks receive is not one vector a token")
        elif set(batch.inputs) == {"pixels"}:
            self.pixels = tuple(batch.inputs["pixels"].shape[1:])
        else:
            raise Unfit("only what is made of texts and pictures is kept, unless nothing but the head learns")

    def _compare(self, model: nn.Module, batch: Batch, states: Tensor, tolerance: float) -> None:
        """Find answers with which the features are those of the whole network: all blank, else those of the blocks.

        Blanks hold nan, and so do pixels here: where either is needed, the features show it.
        """
        backbone: Any = model.backbone
        stem = len(self.answers) - (self.block or 0)
        with quiet(model):
            expected = backbone(batch).pooled.float()
            if self.pixels is not None:
                batch = batch.replace(inputs={"pixels": torch.full_like(batch.inputs["pixels"], torch.nan)})
            for answers in (self.answers, (*[None] * stem, *self.answers[stem:])):
                for self.filled in (False, True):
                    kept = Kept(states, self.block, answers, self.filled)
                    try:
                        received = backbone(batch.replace(kept=kept)).pooled.float()
                    except Exception:  # foreign code may stumble over blanks in any way
                        continue
                    if float((received - expected).abs().max()) <= tolerance * float(expected.abs().max()):
                        self.answers = answers
                        return
        raise Unfit(f"started at block {self.block} it does not give the same features")


def _tokens(batch: Batch) -> int:
    mask = batch.inputs.get("attention_mask")
    return 0 if mask is None else int(mask.shape[1])


def _random(batch: Batch) -> list[Tensor]:
    """The states of the generators that a forward pass could draw from."""
    device = batch.weight.device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def _answers(modules: list[nn.Module]) -> Iterator[list[Any]]:
    """Inside, what each of these modules answers with is written down: tensors as Blanks of their size."""
    found: list[Any] = [None] * len(modules)

    def listen(place: int) -> Any:
        def hear(module: nn.Module, args: Any, output: Any) -> None:
            found[place] = _blank(output)

        return hear

    handles = [module.register_forward_hook(listen(place)) for place, module in enumerate(modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _blank(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Blank(tuple(value.shape), value.dtype)
    if type(value) in (tuple, list):
        return type(value)(map(_blank, value))
    if value is None or isinstance(value, int | float | str):
        return value
    raise Unfit(f"one of its modules answers with {type(value).__name__}")


def _unified(a: Any, b: Any, rows: tuple[int, int], tokens: tuple[int, int]) -> Any:
    """One answer from those to two batches of different size: what differs is N or T. Raises Unfit otherwise."""
    if isinstance(a, tuple | list) and type(a) is type(b) and len(a) == len(b):
        return type(a)(_unified(x, y, rows, tokens) for x, y in zip(a, b, strict=True))
    if not isinstance(a, Blank) and a == b:
        return a
    if not isinstance(a, Blank) or not isinstance(b, Blank) or len(a.shape) != len(b.shape) or a.dtype != b.dtype:
        raise Unfit("its modules answer in more than one way")
    shape = []
    for place, sizes in enumerate(zip(a.shape, b.shape, strict=True)):
        names = ((rows, -1), (tokens, -2)) if place == 0 else ((tokens, -2), (rows, -1))
        # Where all texts have one length, the second place is that of tokens.
        known = [name for size, name in names if sizes == size and (size[0] != size[1] or (place == 1 and name == -2))]
        if not known and sizes[0] != sizes[1]:
            raise Unfit("the size of what its modules answer with follows neither the rows nor the tokens")
        shape.append(known[0] if known else sizes[0])
    return Blank(tuple(shape), a.dtype)
