"""A smaller network for the task at hand: heads and neurons that it does not need are found, then cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError, ProofError
from headstart.methods._checks import choice, number, refuse
from headstart.methods._example import random_example
from headstart.methods._structures import HEADS, NEURONS, TOLERANCE, Structure, cut, find, removable
from headstart.protocols import Context, Method

DEFAULTS = {HEADS: 0.25, NEURONS: 0.5}
MOST = 0.95
"""The largest share of one kind that `shares` gives: every layer keeps its most important member all the same."""


@dataclass
class Prune(Method):
    """Removes attention heads and inner neurons or channels that the task does not need; the result is smaller.

    Equation: with a mask m_i = 1 on the output of member i (a head, a neuron, a channel) and g_i = dL/dm_i, which is
    the sum of w * dL/dw over the weights that take the member, its importance after step t is S_i = - sum_t g_i
    (`movement`: weights that move away from zero matter), S_i = sum_t |g_i| (`taylor`) or the Euclidean length of the
    member's weights (`magnitude`). At share f of the run the mask is 0 for the share * (1 - (1 - (f - begin) / (end -
    begin))^3) least important members, ranked over all blocks; each block keeps its most important one. After `end`
    the choice stands, and the rest of the run heals. When done the members are cut out of the layers, and the cut
    network is shown to answer as the masked one.

    Source: movement: Sanh et al. 2020, section 4, summed over a structure as in Lagunas et al. 2021 (Block Pruning).
    taylor: Molchanov et al. 2019, section 3; for heads it is the score of Michel et al. 2019, section 4.1; absolute
    values are taken once a step here, not once a row. The schedule: Zhu and Gupta 2017, section 3.

    Requires: blocks whose heads or inner layers can be cut, which is tried on a copy before training: BERT, RoBERTa,
    ELECTRA, ALBERT, DistilBERT, ViT and DeiT; of timm, vision transformers, EfficientNets, MobileNets and ResNets; of
    MPNet only neurons. Claims the layers it cuts, so it excludes `lora`.

    Shapes: a block's input and output keep theirs; inside, Linear (out,in) and Conv2d (out,in,kh,kw) layers and norms
    between them lose rows, and the layer behind them loses columns.

    Neighbours: `freeze` chooses who learns and leaves the size as it is; `ema` and `soup` combine with this one.
    Validation always runs the network as it would be cut at that moment, at the full shares, so an early epoch is kept
    only for what it is worth after the cut.

    Example: `--method prune:heads=0.25,neurons=0.5`; `hs.methods.Prune(neurons=0.6, kind="movement")`.

    Defaults: a quarter of the heads and half of the neurons is about 40 % of a transformer block's parameters; heads
    are fewer because a head carries more. kind = taylor was the better of the two that use gradients on Banking77's
    validation rows where 54 % were removed (93.5 against 92.7, one seed); at 42 % all three were within 0.3. begin =
    0.1 is the run's warm-up, and end = 0.6 leaves 40 % of it to heal.

    heads: share of all attention heads to remove, below 1; left out, 0.25 where heads can be removed. neurons: share
    of all inner neurons and channels, likewise; left out, 0.5. kind: taylor, movement or magnitude. begin, end: shares
    of the run between which members are masked; equal ones mask all at once. kept: the members that a finished model
    holds, by layer, such as "0-3,7"; given, they are cut before training and nothing else is removed.
    """

    heads: float | None = None
    neurons: float | None = None
    kind: str = "taylor"
    begin: float = 0.1
    end: float = 0.6
    kept: dict[str, str] | None = None

    def __post_init__(self) -> None:
        for name in DEFAULTS:
            if getattr(self, name) is not None:
                number(f"prune:{name}", getattr(self, name), 0, f"such as {name}={DEFAULTS[name]}", high=0.99)
        if self.heads == self.neurons == 0:
            raise MethodError("prune:heads=0 and prune:neurons=0 remove nothing: leave one of them out")
        choice("prune:kind", self.kind, ("taylor", "movement", "magnitude"))
        number("prune:begin", self.begin, 0, "such as begin=0.1, a share of the run", high=1)
        number("prune:end", self.end, self.begin, "a share of the run, from prune:begin on, such as end=0.6", high=1)
        if self.kept is not None:
            self._check_kept(self.kept)

    def _check_kept(self, kept: Any) -> None:
        expected, way_out = "a mapping from layers to their members", "such as {'layer': '0-3,7'}, or leave it out"
        if not isinstance(kept, dict):
            raise refuse("prune:kept", expected, kept, way_out)
        for path, ranges in kept.items():
            try:
                fits = bool(read(ranges))
            except (ValueError, AttributeError):
                fits = False
            if not fits:
                raise refuse(f"prune:kept of '{path}'", "members in ascending order", ranges, way_out)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Put a gate before every layer that takes heads or neurons, or cut what `kept` says.

        Raises MethodError for a backbone that nothing, or not the kind asked for, can be cut out of.
        """
        backbone: Any = model.backbone
        structures = find(backbone)
        if self.kept is not None:
            return self._repeat(model, structures, self.kept)
        self.structures_: list[Structure] = []
        self.shares_: dict[str, float] = {}
        for kind, default in DEFAULTS.items():
            asked = getattr(self, kind)
            chosen = [structure for structure in structures if structure.kind == kind]
            if asked == 0:
                continue
            if removable(backbone, chosen, ctx.generator):
                self.structures_ += chosen
                self.shares_[kind] = default if asked is None else asked
                continue
            for layer in backbone.modules():
                # Layers that another method has wrapped are no longer found, and that is the reason to give.
                if id(layer) in ctx.claims and isinstance(layer, nn.Linear | nn.Conv2d):
                    ctx.claim(layer)
            if asked is not None:
                raise MethodError(f"no {kind} can be cut out of {_name(backbone)}: leave prune:{kind} out")
        if not self.structures_:
            raise MethodError(
                f"no heads or neurons can be cut out of {_name(backbone)}: take a backbone such as BERT, ViT or "
                f"EfficientNet, or leave prune out"
            )
        for structure in self.structures_:
            for layer in (*structure.rows, *structure.columns):
                ctx.claim(layer)
            structure.insert()
        return model

    def _repeat(self, model: nn.Module, structures: Sequence[Structure], kept: dict[str, str]) -> nn.Module:
        """The cut of a finished model, for its weights."""
        named = {structure.path: structure for structure in structures}
        for path, ranges in kept.items():
            members = read(ranges)
            if path not in named or members[-1] >= named[path].number:
                raise MethodError(
                    f"prune:kept names members of '{path}' that this backbone does not have: they are of another one"
                )
            named[path].cut(members)
        self.kept_ = kept
        return model

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """Learn the importance from this step's gradients, and close the gates that the schedule asks for."""
        if self.kept is not None:
            return
        progress = ctx.progress
        masking = progress.fraction < self.end or progress.step == 0
        for structure in self.structures_:
            self._score(structure, masking)
        if not masking:
            return
        done = (progress.step + 1) / max(1, progress.steps)
        for kind, share in self.shares_.items():
            gates = [structure.gate for structure in self.structures_ if structure.kind == kind]
            scores, total = [gate.score for gate in gates], sum(len(gate.score) for gate in gates)
            for name, part in (("mask", self._share(share, done)), ("goal", share)):
                for gate, chosen in zip(gates, choose(scores, round(part * total)), strict=True):
                    getattr(gate, name).copy_(chosen)

    def _score(self, structure: Structure, learning: bool) -> None:
        gate = structure.gate
        if learning and self.kind == "magnitude":
            gate.score.copy_(structure.magnitudes())
        elif learning:
            pull = gate.pull
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(pull)
            gate.score += pull.abs() if self.kind == "taylor" else -pull
        gate.pull.zero_()

    def _share(self, share: float, done: float) -> float:
        """The share that is masked when `done` of the run is over: rising by a cubic from `begin` to `end`."""
        if done >= self.end:
            return share
        if done <= self.begin:
            return 0.0
        left = 1 - (done - self.begin) / (self.end - self.begin)
        return share * (1 - left**3)

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Cut. Raises ProofError when the cut network answers differently from the masked one on a random input."""
        if self.kept is not None:
            return model
        structures = self.structures_
        for kind, share in self.shares_.items():
            # An average of checkpoints may hold several choices; then the members that most of them kept stay.
            goals = [structure.gate.goal for structure in structures if structure.kind == kind]
            for goal, chosen in zip(goals, choose(goals, _closed(goals, share)), strict=True):
                goal.copy_(chosen)
        self.kept_ = {s.path: written(s.gate.goal.nonzero().flatten().tolist()) for s in structures}
        backbone: Any = model.backbone
        with ctx.quiet(model):
            change = cut(backbone, structures, random_example(backbone, ctx.generator))
        if not change <= TOLERANCE:
            raise ProofError(
                f"cutting the masked heads and neurons changed the backbone's answer by {change:.1e} of its size, at "
                f"most {TOLERANCE:g} is allowed"
            )
        return model

    def remains(self) -> bool:
        """The network stays smaller."""
        return True

    def options(self) -> dict[str, Any]:
        """The fields; once something was cut, `kept` says what is left of each layer."""
        found = super().options()
        return {**found, "kept": dict(self.kept_)} if hasattr(self, "kept_") else found


def shares(backbone: Any, share: float) -> dict[str, float]:
    """Options `heads` and `neurons` that remove about this share of the weights in the blocks' heads and inner layers.

    A head carries more than a neuron, so half as large a share of heads goes as of neurons, where there are both.
    Raises MethodError for a backbone that nothing can be cut out of.
    """
    sizes: dict[str, int] = {}
    for kind in DEFAULTS:
        chosen = [structure for structure in find(backbone) if structure.kind == kind]
        if chosen and removable(backbone, chosen, torch.Generator().manual_seed(0)):
            layers = {id(layer): layer for s in chosen for layer in (*s.rows, *s.columns)}
            sizes[kind] = sum(p.numel() for layer in layers.values() for p in layer.parameters())
    if not sizes:
        raise MethodError(
            f"no heads, neurons or channels can be cut out of {_name(backbone)}: prune takes networks such as BERT, "
            f"ViT, EfficientNet, MobileNet or ResNet; leave prune out"
        )
    half = 0.5 if NEURONS in sizes else 1.0
    whole = half * sizes.get(HEADS, 0) + sizes.get(NEURONS, 0)
    neurons = min(MOST, share * sum(sizes.values()) / whole)
    given = {HEADS: round(half * neurons, 4), NEURONS: round(neurons, 4)}
    return {kind: given[kind] for kind in sizes}


def choose(scores: Sequence[Tensor], remove: int) -> list[Tensor]:
    """Masks (1 stays, 0 goes) that close the `remove` lowest scores of all, but never the highest of each tensor."""
    flat = torch.cat([score.detach().double().cpu() for score in scores])
    sizes = [len(score) for score in scores]
    start = 0
    for size in sizes:
        flat[start + int(flat[start : start + size].argmax())] = float("inf")
        start += size
    masks = torch.ones(len(flat))
    masks[flat.argsort(stable=True)[: min(remove, len(flat) - len(scores))]] = 0
    return [mask.to(scores[0].device) for mask in masks.split(sizes)]


def _closed(goals: Sequence[Tensor], share: float) -> int:
    """How many members go: none where the run never chose."""
    chosen = any(bool((goal < 1).any()) for goal in goals)
    return round(share * sum(len(goal) for goal in goals)) if chosen else 0


def written(members: Sequence[int]) -> str:
    """Ascending numbers as ranges: [0, 1, 2, 5] -> '0-2,5'."""
    runs: list[list[int]] = []
    for member in members:
        if runs and member == runs[-1][1] + 1:
            runs[-1][1] = member
        else:
            runs.append([member, member])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read(ranges: str) -> list[int]:
    """The inverse of `written`. Raises ValueError for anything that it did not write."""
    members: list[int] = []
    for run in ranges.split(","):
        first, _, last = run.partition("-")
        members += range(int(first), int(last or first) + 1)
    if written(members) != ranges or members != sorted(set(members)):
        raise ValueError(f"expected ascending members, received '{ranges}'")
    return members


def _name(backbone: Any) -> str:
    return f"'{backbone.ref}' ({type(getattr(backbone, 'network', backbone)).__name__})"
