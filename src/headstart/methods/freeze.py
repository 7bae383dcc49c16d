"""Who learns: the head alone, the topmost blocks, norms and biases, a little more each epoch, slower further down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from headstart.errors import MethodError
from headstart.methods._checks import flag, number, refuse, whole
from headstart.protocols import Context, Method
from headstart.values import Group


@dataclass
class Freeze(Method):
    """Trains only a chosen part of the backbone, at rates that may fall with depth.

    Equation: with blocks counted from the top, i = 0 .. B-1, the parameters of block i learn at rate `decay**i *
    learning_rate`, those of the stem (embeddings) at `decay**B`, those of the tail (final norm, pooler) at 1, like
    the head. A part that is not chosen learns at 0. With `gradual = g`, epoch e trains the tail and the topmost e //
    g blocks of those chosen; when no chosen block is left to thaw, the stem follows.

    Source: probe and top blocks: Yosinski et al. 2014, section 2. `biases`: Ben Zaken et al. 2022 (BitFit), section 3;
    `bitfit` adds the scales of the norms. `gradual` and `decay`: Howard and Ruder 2018 (ULMFiT), sections 3.3 and 3.2.
    `norms`: Frankle et al. 2021, section 3.

    Requires: nothing. Owns `groups`, so it excludes `lora`, `ia3`, `adapter`, `prompt` and `surgical`.

    Shapes: none are touched.

    Neighbours: `lora` and `adapter` add few new parameters instead of choosing old ones; `l2sp` lets everything learn
    and pulls it back. `top` and `bottom` say who learns from either end; `bitfit`, `biases`, `norms` and `tables`
    narrow any choice to a kind of parameter; `gradual` and `decay` combine with all of these. `probe` stands alone.

    Example: `--method freeze:top=2` or `--method freeze:gradual,decay=0.9`; `hs.methods.Freeze(top=2, bitfit=True)`.

    Defaults: without any option it is `probe`. `gradual` as a bare word is one epoch a block (ULMFiT, section 3.3).
    `decay` is off; ULMFiT's own factor is 1/2.6 = 0.38 a layer, ELECTRA (Clark et al. 2020, appendix B) uses 0.8 for
    12 blocks. The rates used when the user gives none, 1e-3 for `probe` and 5e-4 for `bitfit`, `biases` and `norms`,
    are Adam's own default and the middle of the range searched for BitFit (1e-4 to 1e-3).

    probe: the head alone. top: this many topmost blocks, the tail and the head. bottom: all but this many lowest
    blocks and the stem (0: the stem alone is frozen). bitfit: only biases and norms. biases: only biases, those of
    norms too. norms: only norms. tables: what is chosen without its lookup tables (token and position embeddings), most
    of whose rows a batch never touches. gradual: epochs for each block, from the top; 0 is all at
    once. decay: in (0, 1], 1 is off.
    """

    probe: bool = False
    top: int | None = None
    bottom: int | None = None
    bitfit: bool = False
    biases: bool = False
    norms: bool = False
    tables: bool = False
    gradual: int = 0
    decay: float = 1.0

    def __post_init__(self) -> None:
        for name in ("probe", "bitfit", "biases", "norms", "tables"):
            flag(f"freeze:{name}", getattr(self, name))
        if self.top is not None:
            whole("freeze:top", self.top, 1, "use freeze:probe to train the head alone")
        if self.bottom is not None:
            whole("freeze:bottom", self.bottom, 0, "0 freezes the stem alone; leave it out to freeze nothing")
        if self.gradual is not True:
            whole("freeze:gradual", self.gradual, 0, "write how many epochs each block has for itself, such as 1")
        number("freeze:decay", self.decay, 0, "such as 0.9; 1 is the same rate everywhere", high=1, above=True)
        self._agree()
        if not (self.probe or self._chosen()):
            self.probe = True

    def _chosen(self) -> list[str]:
        """The options, other than `probe`, that are in use."""
        used = {
            "top": self.top is not None,
            "bottom": self.bottom is not None,
            "bitfit": self.bitfit,
            "biases": self.biases,
            "norms": self.norms,
            "tables": self.tables,
            "gradual": bool(self.gradual),
            "decay": self.decay != 1,
        }
        return [name for name, on in used.items() if on]

    def _agree(self) -> None:
        others = self._chosen()
        if self.probe and others:
            raise MethodError(
                f"freeze:probe trains the head alone, freeze:{others[0]} trains a part of the backbone: "
                f"leave one of them out"
            )
        if self.top is not None and self.bottom is not None:
            raise MethodError(
                f"freeze:top={self.top} and freeze:bottom={self.bottom} both say which blocks learn: keep one of them"
            )
        kinds = [name for name in ("bitfit", "biases", "norms") if getattr(self, name)]
        if len(kinds) > 1:
            raise MethodError(
                "freeze:bitfit trains biases and norms, freeze:biases only biases, freeze:norms only norms: "
                f"keep one of {' and '.join(kinds)}"
            )

    def groups(self, model: nn.Module, ctx: Context) -> list[Group]:
        """One group per rate, over the chosen parameters in the order tail, blocks from the top, stem."""
        backbone: Any = model.backbone
        if self.probe:
            return []
        rates: dict[float, list[nn.Parameter]] = {}
        seen: set[int] = set()
        for part, scale in self._parts(backbone, ctx.progress.epoch):
            for parameter in self._kind(part):
                # A parameter that two parts share belongs to the upper one, which learns faster.
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    rates.setdefault(scale, []).append(parameter)
        if not rates and not self.gradual and self._narrow:
            kind = "biases or norms" if self.bitfit else "biases" if self.biases else "norms"
            raise MethodError(f"expected {kind} in the chosen part of the backbone, found none; use freeze:top=1")
        return [Group(tuple(parameters), scale) for scale, parameters in rates.items()]

    def _parts(self, backbone: Any, epoch: int) -> Iterator[tuple[nn.Module | nn.Parameter, float]]:
        """The parts that learn in this epoch, from the top, each with its rate."""
        blocks = list(reversed(backbone.blocks))
        depth = len(blocks)
        chosen = self._depth(depth)
        thawed = epoch // int(self.gradual) if self.gradual else depth + 1
        for part in backbone.tail:
            yield part, 1.0
        for place, block in enumerate(blocks[: min(chosen, thawed)]):
            yield block, self.decay**place
        if chosen == depth and self.bottom is None and self.top is None and thawed > depth:
            for part in backbone.stem:
                yield part, self.decay**depth

    def _depth(self, blocks: int) -> int:
        """How many blocks, from the top, may learn at all."""
        for name, value in (("top", self.top), ("bottom", self.bottom)):
            if value is not None and value > blocks:
                raise refuse(
                    f"freeze:{name}",
                    f"at most {blocks}, the number of this backbone's blocks",
                    value,
                    f"use freeze:{name}={blocks} or less",
                )
        if self.top is not None:
            return self.top
        return blocks if self.bottom is None else blocks - self.bottom

    @property
    def _narrow(self) -> bool:
        """Whether only single kinds of parameters learn."""
        return self.bitfit or self.biases or self.norms

    def _kind(self, part: nn.Module | nn.Parameter) -> Iterator[nn.Parameter]:
        """The parameters of a part, all of them or those that `bitfit`, `biases`, `norms` and `tables` leave."""
        if isinstance(part, nn.Parameter):
            if not self._narrow:
                yield part
            return
        if not self._narrow:
            tables = [m for m in part.modules() if isinstance(m, nn.Embedding)] if self.tables else []
            frozen = {id(p) for table in tables for p in table.parameters()}
            yield from (p for p in part.parameters() if id(p) not in frozen)
            return
        for module in part.modules():
            for name, parameter in module.named_parameters(recurse=False):
                bias = name.endswith("bias") and parameter.ndim == 1
                if bias if self.biases else _is_norm(module) or (self.bitfit and bias):
                    yield parameter

    def learning_rate(self, modality: str) -> float | None:
        """1e-3 for the head alone, 5e-4 for norms and biases, else the run's own default."""
        if self.probe:
            return 1e-3
        return 5e-4 if self._narrow else None


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: torch's own norms, and the networks' own, which all carry it in their class name.

    timm's norms hold their activation as a child; what holds other learning modules is a block, not a norm.
    """
    inside = (parameter for child in module.children() for parameter in child.parameters())
    return "norm" in type(module).__name__.lower() and next(inside, None) is None
