"""What a run stands on beside the loop: what it tells and leaves, who runs as at use, weights kept and swapped in, an
interrupt that waits.
"""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from headstart.ahead import Ahead
from headstart.aside import aside
from headstart.parts import Parts
from headstart.values import Choice

Listener = Callable[[str, Mapping[str, Any]], None]
"""Called with an event name ('step', 'epoch', 'note') and its figures."""


@dataclass
class Trained:
    """What a run leaves: the model, its history (one record per validation) and its cost.

    bottom: whether its frozen bottom was computed once, and if not why, where there was one. compiled: whether its
    blocks were compiled, and why. ahead: how its batches were taken. parts: whether its steps were made in parts.
    """

    model: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    stopped: str = "all epochs done"
    rows_trained: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    bottom: list[str] = field(default_factory=list)
    compiled: Choice = field(default_factory=lambda: Choice(False))
    ahead: Ahead = field(default_factory=Ahead)
    parts: Parts = field(default_factory=Parts)


def set_modes(model: nn.Module, *, keep_stats: bool = False) -> None:
    """Training mode, but parts of the backbone in which nothing learns, and frozen BatchNorms, run as at inference.

    keep_stats: every BatchNorm normalises by its pretrained means and variances; its scale and shift still learn.
    """
    model.train()
    backbone: Any = model.backbone
    for part in (*backbone.stem, *backbone.blocks, *backbone.tail):
        learning = [p.requires_grad for p in part.parameters()] if isinstance(part, nn.Module) else []
        if learning and not any(learning):
            part.eval()
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            keep_stats or not any(p.requires_grad for p in module.parameters())
        ):
            module.eval()
    if not any(p.requires_grad for p in backbone.parameters()):
        backbone.eval()


def has_statistics(model: nn.Module) -> bool:
    """Whether the backbone has a BatchNorm, whose means and variances can be kept."""
    backbone: Any = model.backbone
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules())


def copied(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the model as it is now, in main memory or aside."""
    return aside({name: value.detach() for name, value in model.state_dict().items()}, "cpu")


def twin(model: nn.Module) -> nn.Module:
    """A copy of the model on the same device; its weights may wait aside until they are used."""
    named = dict(model.named_parameters())
    waiting = aside({name: value.detach() for name, value in named.items()})
    memo: dict[int, Any] = {id(p): nn.Parameter(waiting[name], p.requires_grad) for name, p in named.items()}
    return copy.deepcopy(model, memo)


@contextmanager
def swapped(model: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """The model with these weights for a while. What is the model's own among them is left where it is."""
    if weights is None:
        yield
        return
    live = model.state_dict()
    other = {name: value for name, value in weights.items() if not _same(value, live.get(name))}
    own = {name: live[name].clone() for name in other if name in live}
    model.load_state_dict(other, strict=False)
    try:
        yield
    finally:
        model.load_state_dict(own, strict=False)


def _same(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape or one.stride() != other.stride():
        return False
    return one.data_ptr() == other.data_ptr()


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """SIGINT sets the event; a second one interrupts at once. Outside the main thread nothing is changed."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    old = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, old)
