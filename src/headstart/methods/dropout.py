"""Rates of dropout for the time of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from headstart.errors import MethodError
from headstart.methods._checks import number
from headstart.protocols import Context, Method

QUERIES = ("q", "query", "q_proj", "q_lin", "query_proj", "qkv", "Wqkv", "c_attn", "query_key_value", "to_q", "to_qkv")
"""Names of the layer that makes queries: a module that holds one is an attention."""

NOT_WEIGHTS = ("proj", "out", "pos")
"""How names begin of an attention's dropouts that do not act on its weights."""

RATES = ("attention_dropout", "attn_dropout", "dropout")
"""Names under which an attention holds a bare rate, which it reads in every pass."""


@dataclass
class Dropout(Method):
    """Sets the rates of dropout while training; the finished model is the plain network.

    Equation: h' = b h / (1 - rate), b ~ Bernoulli(1 - rate) for each number; in an attention h are its weights.

    Source: Srivastava et al. 2014 (Dropout), section 4; on attention weights Vaswani et al. 2017, as in their
    implementation.

    Requires: for `hidden` and `attention` a backbone that has such dropout, be it at rate 0; else it is refused.

    Shapes: all stay.

    Neighbours: `rdrop` needs dropout to differ by; `mixout` is meant to stand in its place (`hidden=0`); `depth` drops
    whole blocks. Parts in which nothing learns run without dropout whatever the rate. Listed behind a method that
    inserts dropout of its own, this one sets that too.

    Example: `--method dropout:hidden=0,attention=0,head=0.5`; `hs.methods.Dropout(head=0.5)`.

    Defaults: head = 0.1 is what BERT is fine-tuned with (Devlin et al. 2019, appendix A.3); the backbone's own rates
    stay.

    hidden: every dropout of the backbone that does not act on attention weights. attention: those that do. head: on the
    pooled features, before the head. Left out, hidden and attention stay as they are.
    """

    hidden: float | None = None
    attention: float | None = None
    head: float = 0.1

    def __post_init__(self) -> None:
        for name in ("hidden", "attention", "head"):
            rate = getattr(self, name)
            if rate is not None or name == "head":
                number(f"dropout:{name}", rate, 0, f"such as {name}=0.1; 0 switches it off", high=0.99)
        if self.hidden is None and self.attention is None and not self.head:
            raise MethodError("expected a rate that changes something, received dropout:head=0 alone; such as head=0.1")

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model with these rates; the old ones are remembered."""
        whole: Any = model
        attention = list(_attention(whole.backbone))
        known = {id(holder) for holder, _ in attention}
        hidden = [(m, "p") for m in whole.backbone.modules() if _drops(m) and id(m) not in known]
        self.before_: list[tuple[nn.Module, str, float]] = []
        for name, rate, places in (("hidden", self.hidden, hidden), ("attention", self.attention, attention)):
            if rate is not None and not places:
                raise MethodError(f"this backbone has no {name} dropout to set: leave dropout:{name} out")
            for holder, attribute in places if rate is not None else []:
                self.before_.append((holder, attribute, getattr(holder, attribute)))
                setattr(holder, attribute, rate)
        rate = self.head

        def drop(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (functional.dropout(args[0], rate, head.training), *args[1:])

        self.handle_ = whole.head.register_forward_pre_hook(drop)
        return model

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model with its own rates."""
        self.handle_.remove()
        for holder, attribute, rate in self.before_:
            setattr(holder, attribute, rate)
        return model


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd)


def _attention(backbone: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where the rates of dropout on attention weights stand: a module and the name of its attribute."""
    for module in backbone.modules():
        children = dict(module.named_children())
        if not isinstance(module, nn.MultiheadAttention) and not any(name in children for name in QUERIES):
            continue
        for name, child in children.items():
            if _drops(child) and not name.startswith(NOT_WEIGHTS):
                yield child, "p"
        for name in RATES:
            if isinstance(vars(module).get(name), float | int):
                yield module, name
