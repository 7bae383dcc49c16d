"""What the methods of the PEFT library share: its layers put into a backbone, written down, and merged with proof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart import products
from headstart.errors import MethodError, MissingExtra, ProofError
from headstart.methods._checks import refuse
from headstart.methods._draws import seeded
from headstart.methods._peft_folder import Kind, files, fill
from headstart.protocols import Context, Method
from headstart.values import Group

TOLERANCE = 1e-4
"""Largest relative change of a layer's output that a merge may make."""


@dataclass
class PeftMethod(Method):
    """A method whose layers are PEFT's. A subclass has the fields `init` and `merge` and says what goes where."""

    @property
    def kind(self) -> Kind:
        """Which of PEFT's adapters it is."""
        raise NotImplementedError

    def settings(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What PEFT's configuration shall say, and the weights to start from, if `init` brings any."""
        raise NotImplementedError

    def resolved(self, config: Any, settings: dict[str, Any]) -> dict[str, Any]:
        """The options that say in full what was put in."""
        raise NotImplementedError

    def alone(self, names: tuple[str, ...]) -> None:
        """`init` brings its own shape, so the options that say it must be left at their defaults."""
        mine: Any = self
        given, method = mine.init, self.kind.method
        if not isinstance(given, str | Path):
            raise refuse(f"{method}:init", "the path of a folder that PEFT wrote", given, "or leave it out")
        mine.init = str(given)
        for name in names:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise MethodError(
                    f"{method}:init='{mine.init}' and {method}:{name} cannot both be given: the folder says what "
                    f"{name} is; leave {name} out"
                )

    def listed(self, name: str) -> None:
        """An option that is one name of a layer or several becomes a list. Raises MethodError for anything else."""
        value: Any = getattr(self, name)
        if isinstance(value, str):
            value = [value]
            setattr(self, name, value)
        if value is not None and not (
            isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value)
        ):
            example = f"such as {name}=['query', 'value']"
            raise refuse(f"{self.kind.method}:{name}", "a list of layer names", value, example)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Put PEFT's layers in place of the targeted ones. Raises MethodError for targets that are not there."""
        mine: Any = self
        peft = library(self.kind)
        network = network_of(model)
        if any(True for _ in layers(network, self.kind)):
            raise MethodError(
                f"this backbone already holds a {self.kind.title} that was not merged: start from a bundle made with "
                f"{self.kind.method}:merge=true"
            )
        self.learning_ = {id(p): p.requires_grad for p in network.parameters()}
        settings, weights = self.settings(model)
        config = getattr(peft, self.kind.config)(**settings)
        named = dict(network.named_modules())
        for name in settings["target_modules"]:
            ctx.claim(named[name])
        with seeded(ctx.generator, network):
            peft.inject_adapter_in_model(config, network)
        if weights:
            fill(self.kind, network, weights, str(mine.init))
        self.ref_ = str(getattr(model.backbone, "ref", ""))
        self.resolved_ = self.resolved(config, settings)
        self.wrapped_ = sorted(settings["target_modules"])
        return model

    def groups(self, model: nn.Module, ctx: Context) -> list[Group]:
        """What PEFT added, and nothing else."""
        return [Group(self.added(model))]

    def added(self, model: nn.Module) -> tuple[nn.Parameter, ...]:
        """The parameters that PEFT added."""
        return tuple(p for _, _, layer in layers(network_of(model), self.kind) for p in _added(layer))

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Keep PEFT's files; with `merge`, fold what was learned into the weights.

        Raises ProofError when a merged layer answers differently.
        """
        mine: Any = self
        network = network_of(model)
        base = self.ref_.removeprefix("hf:") if self.ref_.startswith("hf:") else None
        written = files(network, self.wrapped_, base)
        self.files_ = {f"adapter/{name}": data for name, data in written.items()}
        if not mine.merge:
            return model
        with ctx.quiet(model), torch.no_grad():
            for parent, name, layer in list(layers(network, self.kind)):
                setattr(parent, name, _merged(layer, name, self.kind, ctx.generator))
        del network.peft_config
        for parameter in network.parameters():
            parameter.requires_grad_(self.learning_.get(id(parameter), True))
        return model

    def artefacts(self) -> dict[str, bytes]:
        """`adapter/adapter_config.json` and `adapter/adapter_model.safetensors`, as PEFT writes them."""
        return dict(getattr(self, "files_", {}))

    def remains(self) -> bool:
        """Whether what was learned stays apart in the finished model."""
        mine: Any = self
        return not mine.merge

    def options(self) -> dict[str, Any]:
        """The fields. For what stays, `init` is replaced by what it held, so that the bundle needs no folder."""
        mine: Any = self
        found = super().options()
        if not mine.merge and mine.init is not None and hasattr(self, "resolved_"):
            found.update(self.resolved_, init=None)
        return found


def library(kind: Kind) -> Any:
    """The peft module. Raises MissingExtra when it is not installed."""
    try:
        import peft
    except ImportError:
        raise MissingExtra("peft", "lora", f"the method '{kind.method}'") from None
    return peft


def network_of(model: nn.Module) -> nn.Module:
    """The module that PEFT's names are relative to: the wrapped network, as other libraries load it."""
    backbone: Any = model.backbone
    return getattr(backbone, "network", backbone)  # type: ignore[no-any-return]


def layers(network: nn.Module, kind: Kind) -> Iterator[tuple[nn.Module, str, Any]]:
    """Every layer of PEFT's of this kind with its parent and its name there."""
    cls = getattr(getattr(library(kind).tuners, kind.method), kind.layer)
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, cls):
                yield parent, name, child


def fitting(model: nn.Module) -> tuple[list[tuple[str, Any]], set[str]]:
    """The layers of the blocks that PEFT can wrap, by full name, and the names of all such layers of the network."""
    backbone: Any = model.backbone
    inside = {id(module) for block in backbone.blocks for module in block.modules()}
    everywhere = [(name, module) for name, module in network_of(model).named_modules() if _fits(module)]
    return [(name, module) for name, module in everywhere if id(module) in inside], {name for name, _ in everywhere}


def chosen(model: nn.Module, option: str, targets: list[str]) -> list[str]:
    """Full names of the layers that `targets` name: by their endings inside the blocks, in full anywhere."""
    named, everywhere = fitting(model)
    found: list[str] = []
    for target in targets:
        hits = [name for name, _ in named if name.endswith(f".{target}")]
        hits += [target] if target in everywhere else []
        if not hits:
            known = ", ".join(sorted({name.rpartition(".")[2] for name, _ in named}))
            raise refuse(option, "names of layers in the blocks", target, f"layers there end in: {known}")
        found += [name for name in hits if name not in found]
    return found


def _fits(module: nn.Module) -> bool:
    """Whether PEFT can wrap a layer. Subclasses compute in their own way, which a wrapper would not copy."""
    return type(module) in products.KINDS or (type(module) is nn.Conv2d and module.groups == 1)


def _added(layer: Any) -> list[nn.Parameter]:
    """The parameters that PEFT added to a layer."""
    own = {id(p) for p in layer.get_base_layer().parameters()}
    return [p for p in layer.parameters() if id(p) not in own]


def _merged(layer: Any, name: str, kind: Kind, generator: torch.Generator) -> nn.Module:
    """The plain layer with what was learned folded in, in float32, shown to answer as before on a random input."""
    base = layer.get_base_layer()
    kept = base.weight.dtype
    layer.to(torch.float32)
    probe = torch.randn(_probe_shape(base), generator=generator).to(base.weight.device)
    before = layer(probe)
    layer.merge(safe_merge=False)
    merged: nn.Module = layer.get_base_layer()
    change = float((merged(probe) - before).norm() / before.norm().clamp_min(1e-12))
    if not change <= TOLERANCE:
        raise ProofError(
            f"merging the {kind.title} of layer '{name}' changed its output by {change:.1e} of its size, at most "
            f"{TOLERANCE:g} is allowed; {kind.method}:merge=false keeps it apart"
        )
    return merged.to(kept)


def _probe_shape(base: Any) -> tuple[int, ...]:
    if isinstance(base, nn.Linear):
        return (8, base.in_features)
    height, width = base.kernel_size
    return (2, base.in_channels, height + 6, width + 6)
