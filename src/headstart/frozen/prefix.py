"""The frozen bottom of a network, computed once a run instead of once an epoch.

Where the stem and the lowest blocks hold nothing that learns, run as at use and get the same rows in each epoch, what
they make of a row is the same in each epoch too. `Prefix` finds that boundary at the start of an epoch, tries it on a
few rows, runs the bottom once over the training and the validation rows, and gives out rows (`kept.KeptRows`) from
which only the blocks above it are run. With nothing learning but the head, the pooled features themselves are kept.

Where `augment` shows a fixed number of views of each row, what the bottom makes of every view is kept.

It is careful: any hook of a method that could see or change what lies below the boundary switches it off, as do surgery
there, random numbers drawn there, a few rows whose outputs differ, and room that is lacking. `Prefix` then says why.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from headstart import inference
from headstart.encoded import Encoded
from headstart.frozen.kept import Guard, KeptRows, Store, Unfit
from headstart.frozen.reaching import FEWEST, Trial, reach
from headstart.hooks import Hooks
from headstart.protocols import Backbone, Method, overrides
from headstart.spec.notation import parse_size
from headstart.steps import casting
from headstart.values import Batch, Kept

ROOM = 4 * 10**9
"""Bytes that `training.cache = "auto"` takes at most; and never more than half of what is free."""

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "bf16_weights": 5e-2}
"""How far outputs of those rows may differ, as a share of the largest, by precision."""

SEEN = {
    "transform": "changes batches",
    "stream": "changes the stream of batches",
    "penalty": "looks at the network and its rows",
    "backward": "makes its own forward passes",
}
"""What a method's hook does that needs the whole network; hooks that are in neither list are taken to need it too."""

Jobs = list[tuple[str, Encoded, str]]

HARMLESS = frozenset((
    "adapt", "groups", "learning_rate", "passes", "first_epoch", "rows", "versions", "prior", "gradients",
    "after_step", "after_validation", "weights", "finish", "requires", "remains", "artefacts", "notes", "state",
    "load_state", "options",
))  # fmt: skip
"""Hooks that see no row. Surgery (`adapt`) is watched: what it touched is not kept."""


@dataclass
class _Shape:
    """The modules of a backbone before surgery, with what hangs on them."""

    backbone: nn.Module
    blocks: list[nn.Module]
    marks: dict[int, tuple[Any, ...]]
    holding: list[nn.Module] = field(default_factory=list)
    """Keeps the modules alive, so that no other gets the identity of one that surgery took out."""

    @classmethod
    def of(cls, model: nn.Module) -> _Shape:
        backbone: Any = model.backbone
        modules = list(backbone.modules())
        return cls(backbone, list(backbone.blocks), {id(m): _mark(m) for m in modules}, modules)

    def unchanged(self, module: nn.Module) -> bool:
        return all(self.marks.get(id(m)) == _mark(m) for m in module.modules())


def _mark(module: nn.Module) -> tuple[Any, ...]:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    children = tuple(id(child) for child in module.children())
    return (
        type(module),
        tuple(tuple(map(id, h.values())) for h in hooks),
        id(module.__dict__.get("forward")),
        children,
    )


@dataclass
class Prefix:
    """The frozen bottom of one run: `adapt` the model through it, `prepare` each epoch, then ask it for the rows.

    setting: `training.cache`. tell: receives each sentence worth saying once. stop: whether to give up and go on
    without. known: pooled features in float32 that are at hand already, by name. precision, answers: what training rows
    and validation rows run in.
    """

    hooks: Hooks
    train_rows: Encoded
    validation: Encoded | None
    setting: str = "auto"
    precision: str = "fp32"
    answers: str = "fp32"
    alone: bool = True
    tell: Callable[[str], None] = lambda sentence: None
    stop: Callable[[], bool] = lambda: False
    known: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: list[tuple[Encoded, list[KeptRows]]] = field(default_factory=list)
    """The rows that are kept, version by version, beside those that they stand for."""

    said: set[str] = field(default_factory=set)
    moved: bool = False
    """Whether the boundary has moved: then the next one must have held for an epoch before it is paid for."""

    before: int | None = None
    epoch: int = -1
    """The epoch that was last prepared, and its boundary."""

    resumed: Mapping[str, Any] | None = None

    def leave(self) -> None:
        """The run is over: forget whom it told, and who could stop it."""
        self.tell, self.stop = lambda sentence: None, lambda: False

    def adapt(self, model: nn.Module) -> nn.Module:
        """`Hooks.adapt`, watching what the surgery touches."""
        shape = _Shape.of(model) if self.setting != "off" else None
        model = self.hooks.adapt(model)
        self.intact = 0
        self.whole = False
        if shape is not None and model.backbone is shape.backbone:
            self._compare(model, shape)
        return model

    def _compare(self, model: nn.Module, shape: _Shape) -> None:
        """How many of the lowest blocks, and whether everything, came unchanged through surgery."""
        backbone: Any = model.backbone
        blocks = list(backbone.blocks)
        claimed = self.hooks.claims

        def kept(module: nn.Module) -> bool:
            return shape.unchanged(module) and not any(id(m) in claimed for m in module.modules())

        inside = {id(m) for block in (*blocks, *shape.blocks) for m in block.modules()}
        tail = {id(m) for part in backbone.tail if isinstance(part, nn.Module) for m in part.modules()}
        around = [m for m in backbone.modules() if id(m) not in inside | tail]
        # A container's children may be blocks that were replaced: these are compared one by one below.
        if any(shape.marks.get(id(m), ())[:3] != _mark(m)[:3] or id(m) in claimed for m in around):
            return
        if len(blocks) != len(shape.blocks):
            return
        pairs = zip(blocks, shape.blocks, strict=True)
        self.intact = next((i for i, (a, b) in enumerate(pairs) if a is not b or not kept(a)), len(blocks))
        self.whole = kept(backbone)

    def boundary(self, model: nn.Module) -> int | None:
        """The block at which learning begins, counted from 0; as many as there are when nothing learns; None for 0."""
        backbone: Backbone = model.backbone  # type: ignore[assignment]
        blocks = list(backbone.blocks)
        if self.whole and not any(p.requires_grad for p in backbone.parameters()):
            return None if any(m.training for m in backbone.modules()) else len(blocks)
        if not self.intact or any(not _frozen(part) for part in backbone.stem):
            return None
        lowest = next((i for i, block in enumerate(blocks) if not _frozen(block)), len(blocks))
        return min(lowest, self.intact, len(blocks) - 1) or None

    def of(self, rows: Encoded, model: nn.Module) -> Encoded:
        """These rows with what is kept of them, where that holds for this model; else the rows themselves."""
        for plain, versions in self.rows:
            kept = versions[self.epoch % len(versions)]
            if plain is rows and self._holds(kept, model):
                return kept
        return rows

    def _holds(self, kept: KeptRows, model: nn.Module) -> bool:
        boundary = self.boundary(model)
        if boundary is None or self.why_not() is not None:
            return False
        reaches = _reaches(kept.block, boundary, len(model.backbone.blocks))  # type: ignore[union-attr, arg-type]
        return reaches and kept.guard.same(_parts(model, kept.block)) and kept.guard.holds()

    def prepare(self, model: nn.Module, epoch: int, epochs: int) -> None:
        """At the start of an epoch, when it is known who learns: keep what pays in the epochs from this one on.

        model: in the modes of training. Draws no random numbers and leaves the model as it was.
        """
        boundary = self.boundary(model) if self.setting != "off" else None
        if epoch != self.epoch:
            self.moved = self.moved or (self.epoch >= 0 and boundary != self.before)
            pays = epochs - epoch > self.hooks.versions() and (not self.moved or boundary == self.before)
            self.before, self.epoch = boundary, epoch
        else:
            pays = False  # an epoch that is gone on with: as it was begun
        last, self.resumed = self.resumed, None
        if boundary is None or not self.alone:
            self.rows.clear()
            return
        blocks = len(model.backbone.blocks)  # type: ignore[union-attr, arg-type]
        bottom = _named(boundary, blocks)
        if (reason := self.why_not()) is not None:
            self._say(f"the frozen {bottom} is computed in each epoch: {reason}")
            return
        if self.of(self.train_rows, model) is not self.train_rows:
            return
        self.rows.clear()
        block = None if boundary == blocks else boundary
        if last is not None and last["kept"] and _reaches(last["block"], boundary, blocks):
            pays, block = True, last["block"]
        if not pays or len(self.train_rows) < FEWEST:
            return
        try:
            size = self._build(model, block)
        except Unfit as unfit:
            self.rows.clear()
            self._say(f"the frozen {bottom} is computed in each epoch: {unfit}")
        else:
            self._say(f"the frozen {bottom} is computed once and kept ({_written(size)})")

    def foreseen(self, model: nn.Module, epochs: int) -> tuple[str, Callable[[Batch], Batch]] | None:
        """What a run of so many epochs would compute once: a sentence, and what computes it for a batch, which then
        starts from there; None for nothing.

        model: in the modes of training, with gradients for all that is ever going to learn; it is left as it was.
        """
        boundary = self.boundary(model) if self.setting != "off" else None
        pays = epochs > self.hooks.versions() and len(self.train_rows) >= FEWEST
        if boundary is None or not self.alone or not pays or self.why_not():
            return None
        blocks = len(model.backbone.blocks)  # type: ignore[union-attr, arg-type]
        block = None if boundary == blocks else boundary
        try:
            trial = self._tried(model, block)[1][self.precision]
        except Unfit:
            return None
        views = f", for {count} views of each row" if (count := self.hooks.versions()) > 1 else ""
        said = f"the frozen {_named(boundary, blocks)} computed once{views}"

        def bottom(batch: Batch) -> Batch:
            return batch.replace(kept=Kept(reach(model, batch, block), block, trial.answers, trial.filled))

        return said, bottom

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to use kept rows in the very epochs in which the run alone does."""
        block = self.rows[0][1][0].block if self.rows else None
        return {
            "epoch": self.epoch,
            "before": self.before,
            "moved": self.moved,
            "kept": bool(self.rows),
            "block": block,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`. What was kept is computed anew when the next epoch is prepared."""
        self.epoch, self.before, self.moved = state["epoch"], state["before"], state["moved"]
        self.resumed = state

    def why_not(self) -> str | None:
        """The method and hook that need the whole network in each step, as a reason."""
        hooks = [name for name in dir(Method) if not name.startswith("_") and callable(getattr(Method, name))]
        for name, method in self.hooks.methods.items():
            for hook in hooks:
                if hook not in HARMLESS and overrides(method, hook) and not (hook == "transform" and method.versions()):
                    return f"'{name}' {SEEN.get(hook, f'has its own {hook}')}"
        return None

    def _say(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.add(sentence)
            self.tell(sentence)

    def _build(self, model: nn.Module, block: int | None) -> int:
        """Try a few rows, then keep all; the bytes taken. Raises Unfit."""
        jobs, trials, size = self._tried(model, block)
        guard = Guard(_parts(model, block))
        for name, rows, kind in jobs:
            trial = trials[kind]
            versions = []
            for version in self._versions(rows):
                known = self.known.get(name) if block is None and kind == "fp32" and version is None else None
                with torch.no_grad(), casting.running(model, kind):
                    store = self._filled(model, rows, trial, known, version)
                versions.append(KeptRows(
                    rows.prepared, rows.targets, rows.weight, rows.origin, rows.raw, store=store, guard=guard,
                    block=block, answers=trial.answers, filled=trial.filled, pixels=trial.pixels,
                ))  # fmt: skip
            self.rows.append((rows, versions))
        return size

    def _versions(self, rows: Encoded) -> Sequence[int | None]:
        """The versions of these rows that epochs see, in turn; None for the rows as they are."""
        changed = rows is self.train_rows and any(method.versions() for method in self.hooks.methods.values())
        return range(self.hooks.versions()) if changed else (None,)

    def _tried(self, model: nn.Module, block: int | None) -> tuple[Jobs, dict[str, Trial], int]:
        """What is to be kept (name, rows, precision), a trial in each precision, the bytes all of it takes.

        Raises Unfit when a trial does not give the same features, and when there is no room.
        """
        jobs: Jobs = [("train", self.train_rows, self.precision)]
        if self.validation is not None:
            jobs.append(("validation", self.validation, self.answers))
        trials: dict[str, Trial] = {}
        for kind in dict.fromkeys(kind for _, _, kind in jobs):
            with torch.no_grad(), casting.running(model, kind):
                trials[kind] = Trial(model, self.train_rows, block, TOLERANCE[kind])
        size = sum(len(self._versions(rows)) * trials[kind].size(rows) for _, rows, kind in jobs)
        if size > (room := _room(self.setting)):
            raise Unfit(f"keeping it takes {_written(size)}, and training.cache has room for {_written(room)}")
        return jobs, trials, size

    def _filled(
        self, model: nn.Module, rows: Encoded, trial: Trial, known: np.ndarray | None, version: int | None
    ) -> Store:
        """What the bottom makes of all rows, or of a version of each. Raises Unfit when asked to stop."""
        device = next(model.parameters()).device
        plan = [index.tolist() for index in inference.plan(rows, device=device)]
        lengths = np.array(rows.prepared.lengths)
        if version is not None and trial.ragged:
            for index in plan:
                changed = self.hooks.version(rows.batch(index), version)
                lengths[index] = changed.inputs["attention_mask"].sum(1).numpy()
        store = trial.store(lengths)
        if known is not None and known.shape == (len(rows), *trial.piece):
            store.put(range(len(rows)), torch.from_numpy(known), None)
            return store
        for index in plan:
            if self.stop():
                raise Unfit("there was no time to compute it once")
            batch = rows.batch(index).to(device)
            batch = batch if version is None else self.hooks.version(batch, version)
            store.put(index, reach(model, batch, trial.block), batch.inputs.get("attention_mask"))
        return store


def _named(boundary: int, blocks: int) -> str:
    return "network" if boundary == blocks else f"bottom (the stem and {boundary} of {blocks} blocks)"


def _frozen(part: nn.Module | nn.Parameter) -> bool:
    """Whether nothing of it learns and all of it runs as at use."""
    if not isinstance(part, nn.Module):
        return not part.requires_grad
    return not any(p.requires_grad for p in part.parameters()) and not any(m.training for m in part.modules())


def _reaches(block: int | None, boundary: int, blocks: int) -> bool:
    """Whether what was kept at a block (None: the pooled features) is all frozen under this boundary."""
    return boundary == blocks if block is None else block <= boundary


def _parts(model: nn.Module, block: int | None) -> list[nn.Module | nn.Parameter]:
    """What is computed once: everything, or the stem and the blocks below one."""
    backbone: Any = model.backbone
    return [backbone] if block is None else [*backbone.stem, *backbone.blocks[:block]]


def _room(setting: str) -> int:
    if setting != "auto":
        return parse_size(setting)
    return min(ROOM, shutil.disk_usage(tempfile.gettempdir()).free // 2)


def _written(size: int) -> str:
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"
