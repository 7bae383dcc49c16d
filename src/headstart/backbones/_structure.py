"""What every network shares: which parameters lie below, in and above its blocks, told by one traced forward pass.

Names of layers are never guessed. A parameter lies below the blocks (`stem`) when the inputs of some block depend on
it, above them (`tail`) when only the pooled features do, and is retired (kept as a constant) when neither does.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart import dropping, products
from headstart.backbones import _attention
from headstart.errors import BackboneError
from headstart.protocols import Backbone
from headstart.values import Batch


@dataclass(frozen=True)
class Parts:
    """Dotted paths of modules and parameters: below, in and above the blocks."""

    stem: tuple[str, ...]
    blocks: tuple[str, ...]
    tail: tuple[str, ...]


class NetworkBackbone(Backbone):
    """A backbone around one network, whose parts are found by tracing it once (`wire`).

    Paths are resolved when asked for, so that layers that surgery has replaced are found too.
    """

    network: nn.Module
    retired: tuple[str, ...]
    """Names of weights that the pooled features do not depend on; they are buffers and do not learn."""

    def wire(self, blocks: Sequence[str]) -> None:
        """Set to evaluation mode and find stem, tail and width by running `example()` once.

        Dropout, attention and layers are made those that a processor is quick at.

        blocks: paths inside `network`; those that are never run are not blocks.

        Raises BackboneError when none of them is run or the network cannot be run on its declared input.
        """
        dropping.lighten(self.network)
        products.hasten(self.network)
        _attention.install(self.network)
        paths = [f"network.{path}" for path in blocks]
        batch = self.example()
        self.eval()
        try:
            traced = _trace(self, paths, batch)
        except BackboneError:
            raise
        except Exception as error:  # any failure of foreign code is the same news to the user
            raise BackboneError(f"'{self.ref}' cannot be run on its own input {_shapes(batch)}: {error}") from error
        self.width = traced.width
        self.retired = tuple(_retire(self, traced))
        self._parts = _divide(self, traced)

    @abstractmethod
    def example(self) -> Batch:
        """One small row, to trace the network with."""

    @property
    def stem(self) -> Sequence[nn.Module | nn.Parameter]:
        """Modules (or bare parameters) below the first block."""
        return [_resolve(self, path) for path in self._parts.stem]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, in the order in which they run."""
        return [_resolve(self, path) for path in self._parts.blocks]

    @property
    def tail(self) -> Sequence[nn.Module | nn.Parameter]:
        """Modules (or bare parameters) above the last block."""
        return [_resolve(self, path) for path in self._parts.tail]


@dataclass
class _Traced:
    order: list[str]
    below: set[int]
    used: set[int]
    width: int


def unlabelled(inputs: Mapping[str, Tensor]) -> Batch:
    """A batch of rows without labels, each of weight 1."""
    rows = len(next(iter(inputs.values())))
    zeros = torch.zeros(rows, dtype=torch.int64)
    return Batch(inputs=inputs, labels=None, weight=torch.ones(rows), origin=zeros, row=zeros - 1)


def largest_list(network: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.ModuleList,)) -> list[str]:
    """Paths of the members of the network's largest outermost list of layers: its blocks. Lists of lists are joined.

    Raises BackboneError when there is no such list.
    """
    best: tuple[int, str] = (0, "")
    inside: list[str] = []
    for path, module in network.named_modules():
        if not path or not isinstance(module, kinds) or any(path.startswith(f"{outer}.") for outer in inside):
            continue
        inside.append(path)
        size = sum(parameter.numel() for parameter in module.parameters())
        if size > best[0]:
            best = (size, path)
    if not best[0]:
        raise BackboneError(f"{type(network).__name__} holds no list of layers, so its blocks cannot be told apart")
    return list(members(network.get_submodule(best[1]), best[1]))


def members(layers: nn.Module, path: str) -> Iterator[str]:
    """Paths of the layers of a list, and of the lists inside it, that have weights."""
    for name, layer in layers.named_children():
        if isinstance(layer, nn.ModuleList):
            yield from members(layer, f"{path}.{name}")
        elif any(True for _ in layer.parameters()):
            yield f"{path}.{name}"


def digest(module: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all weights, in the order of their names."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def listed(names: Iterable[str], limit: int = 6) -> str:
    """The first few names and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def model_license(folder: Path) -> str | None:
    """The `license:` of a model card in Hugging Face's format, None when there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    if not text.startswith("---"):
        return None
    for line in text.splitlines()[1:]:
        if line.startswith("---"):
            return None
        if line.startswith("license:"):
            return line.partition(":")[2].strip().strip("'\"") or None
    return None


def _shapes(batch: Batch) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.inputs.items())


def _resolve(root: Any, path: str) -> Any:
    for part in path.split("."):
        root = getattr(root, part)
    return root


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _roots(value: Any) -> list[Any]:
    """The autograd nodes of all tensors inside a value; a leaf that learns stands for itself."""
    return [t.grad_fn if t.grad_fn is not None else t for t in _tensors(value) if t.requires_grad]


def _reached(roots: Iterable[Any]) -> set[int]:
    """Identities of the leaves that these autograd nodes depend on."""
    found: set[int] = set()
    seen: set[Any] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if isinstance(node, Tensor):
            found.add(id(node))
            continue
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        stack.extend(parent for parent, _ in node.next_functions)
    return found


def _trace(backbone: NetworkBackbone, paths: Sequence[str], batch: Batch) -> _Traced:
    """Run once, watching what each block receives."""
    order: list[str] = []
    entering: list[Any] = []
    handles = []
    for path in paths:

        def watch(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            if path not in order:
                order.append(path)
            entering.extend(_roots((args, kwargs)))

        handles.append(backbone.get_submodule(path).register_forward_pre_hook(watch, with_kwargs=True))
    frozen = [p for p in backbone.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            pooled = backbone.features(batch).pooled
            traced = _Traced(order, _reached(entering), _reached(_roots(pooled)), int(pooled.shape[1]))
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not order:
        raise BackboneError(f"'{backbone.ref}' never runs its layers {listed(paths)}, so they cannot be its blocks")
    return traced


def _retire(backbone: NetworkBackbone, traced: _Traced) -> Iterator[str]:
    """Turn parameters that the features do not depend on into buffers of the same name."""
    unused = [
        (name, parameter)
        for name, parameter in backbone.named_parameters(remove_duplicate=False)
        if id(parameter) not in traced.used
    ]
    for name, parameter in unused:
        owner_path, _, leaf = name.rpartition(".")
        owner = backbone.get_submodule(owner_path)
        delattr(owner, leaf)
        owner.register_buffer(leaf, parameter.detach())
        yield name


def _divide(backbone: NetworkBackbone, traced: _Traced) -> Parts:
    """Give each parameter outside the blocks to its largest module that lies wholly below or above them.

    A parameter that is shared belongs to the block that has it, else to the first module that has it.
    """
    taken = {id(p) for path in traced.order for p in backbone.get_submodule(path).parameters()}
    found: dict[bool, list[str]] = {True: [], False: []}

    def collect(module: nn.Module, path: str) -> None:
        held = [id(p) for p in module.parameters()]
        if path in traced.order or not set(held) - taken:
            return
        below = {name in traced.below for name in held}
        if path and len(below) == 1 and not taken.intersection(held):
            found[below.pop()].append(path)
            taken.update(held)
            return
        lead = f"{path}." if path else ""
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in taken:
                found[id(parameter) in traced.below].append(lead + name)
                taken.add(id(parameter))
        for name, child in module.named_children():
            collect(child, lead + name)

    collect(backbone, "")
    return Parts(tuple(found[True]), tuple(traced.order), tuple(found[False]))
