"""Gradient checkpointing: what happens inside a block is not kept for the backward pass but computed again (Chen et al.
2016, Training Deep Nets with Sublinear Memory Cost). The numbers are the same; a step takes about a third longer.

The second pass of a block must be its first: dropout draws the same numbers, modules are in the modes and hold the
tensors of the first pass, BatchNorm's moving statistics do not move again. Blocks that a method looks into run once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from headstart.inside import Forward, plain, replaced
from headstart.model import quiet
from headstart.steps.untouched import apart
from headstart.values import Batch

TOLERANCE = 1e-4
"""How far a gradient of the trial may differ, as a share of the largest; sums may be added up in another order."""


MODES = ("training", "track_running_stats")
"""Attributes of modules that say how a pass is made."""


def within(backbone: Any) -> AbstractContextManager[None]:
    """Inside, the backbone's blocks keep only what enters them."""
    return replaced(list(backbone.blocks), lambda block, forward: partial(_run, list(block.modules()), forward))


def _run(modules: list[nn.Module], forward: Forward, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled() or not plain(modules[1:]):
        return forward(*args, **kwargs)
    state = _State.of(modules)
    return checkpoint(
        forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), state.again()), **kwargs
    )  # fmt: skip


@dataclass(frozen=True)
class _State:
    """What modules hold and how they run: weights by identity, statistics by value, since a pass writes into them."""

    modules: list[nn.Module]
    modes: list[dict[str, bool]]
    weights: list[dict[str, Any]]
    statistics: list[dict[str, Any]]

    @classmethod
    def of(cls, modules: list[nn.Module], *, copied: bool = True) -> _State:
        """The state now; of BatchNorm's statistics copies, or with `copied` false the tensors themselves."""
        buffers = [
            {name: value.clone() if copied and value is not None else value for name, value in m._buffers.items()}
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
            else {}
            for m in modules
        ]
        modes = [{name: vars(m)[name] for name in MODES if name in vars(m)} for m in modules]
        return cls(modules, modes, [dict(m._parameters) for m in modules], buffers)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, the modules are as they were; a batch that BatchNorm sees moves copies."""
        now = _State.of(self.modules, copied=False)
        try:
            self._set()
            yield
        finally:
            now._set()

    def _set(self) -> None:
        for place, module in enumerate(self.modules):
            vars(module).update(self.modes[place])
            module._parameters.update(self.weights[place])
            module._buffers.update(self.statistics[place])


def kept_bytes(model: nn.Module, batch: Batch) -> tuple[int, int]:
    """Bytes that a forward pass of this batch keeps for the backward pass: as the network is, and checkpointed.

    The second has the largest block in it, which is whole for a moment when its turn comes. Draws no random numbers.
    """
    whole, block = _weigh(model, batch)
    with within(model.backbone):
        inputs, _ = _weigh(model, batch)
    return whole, inputs + block


def _weigh(model: nn.Module, batch: Batch) -> tuple[int, int]:
    """Bytes kept by a forward pass in the modes of use, and those of its largest block."""
    backbone: Any = model.backbone
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    entered: list[int] = []
    blocks: list[int] = [0]

    def seen(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a graph that held its own outputs would never be freed

    def enter(module: nn.Module, args: Any) -> None:
        entered.append(sum(sizes.values()))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        blocks.append(sum(sizes.values()) - entered[-1])

    handles = [block.register_forward_pre_hook(enter) for block in backbone.blocks]
    handles += [block.register_forward_hook(leave) for block in backbone.blocks]
    try:
        with quiet(model), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            model(batch)[1].float().square().mean()
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes.values()), max(blocks)


def differs(model: nn.Module, batch: Batch) -> str | None:
    """How a checkpointed step of this batch is not the plain one, as a reason; None where it is.

    Runs in the modes that the model is in, so random draws inside blocks are seen; BatchNorm's statistics move.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    found = []
    state = {name: value.clone() for name, value in model.named_buffers()}
    for wrapped in (nullcontext(), within(model.backbone)):
        with torch.random.fork_rng(), wrapped:
            torch.manual_seed(0)
            for name, value in model.named_buffers():
                value.copy_(state[name])
            loss = model(batch)[1].float().square().mean()
            try:
                found.append(torch.autograd.grad(loss, learning, allow_unused=True))
            except RuntimeError as error:  # torch notices a second pass that is unlike the first
                return str(error).split("\n", 1)[0]
    plain, again = found
    return "its blocks answer otherwise when they run a second time" if apart(plain, again, TOLERANCE) else None
