"""Low-rank adaptation through PEFT: trained in place, exported in PEFT's own format, merged with proof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError, MissingExtra, ProofError
from headstart.methods._checks import flag, number, refuse, whole
from headstart.methods._draws import seeded
from headstart.methods._peft_folder import files, fill, read
from headstart.protocols import Context, Method
from headstart.values import Group

TOLERANCE = 1e-4
"""Largest relative change of a layer's output that a merge may make."""


@dataclass
class LoRA(Method):
    """Trains low-rank additions to the backbone's linear layers and merges them when done.

    Equation: h = W x + (alpha / r) * B A x, with A (r,in) random, B (out,r) zero at the start, W frozen; with
    `rslora` the factor is alpha / sqrt(r); with `dora` the sum's columns are rescaled to a learned length m: h = m *
    (W + (alpha / r) B A) / ||W + (alpha / r) B A|| x.

    Source: Hu et al. 2022 (LoRA), section 4.1. `rslora`: Kalajdzievski 2023, section 3. `dora`: Liu et al. 2024,
    section 4. All through the PEFT library.

    Requires: the `lora` extra. Owns `groups`, so it excludes `freeze` and `adapter`. The layers it changes are
    claimed.

    Shapes: Linear (out,in) and ungrouped Conv2d (out,in,kh,kw) layers; the layer's input and output keep their
    shapes.

    Neighbours: `adapter` inserts new layers and cannot be merged away; `freeze:bitfit` trains even fewer numbers.
    With `merge` (the default) the finished model has the plain backbone's layers and names, and costs nothing extra
    to run; without, the low-rank factors stay apart. Either way the bundle holds `adapter/`, a folder that
    `PeftModel.from_pretrained` reads, and `init` starts from such a folder.

    Example: `--method lora:r=8,alpha=16` or `--method lora:init=runs/a/adapter`; `hs.methods.LoRA(r=8)`.

    Defaults: r = 8 is what Hu et al. use for RoBERTa (appendix D). alpha = 2 r and all linear layers as targets are
    what Biderman et al. 2024 (LoRA Learns Less and Forgets Less) recommend. dropout = 0 is PEFT's own. The rate used
    when the user gives none is 5e-4 for text (Hu et al. 2022, table 9) and 1e-3 otherwise, about the same multiple of
    the rate at which the whole backbone learns.

    r: rank. alpha: numerator of the scale. dropout: before A, in [0, 1). targets: endings of layer names in the
    blocks, or full names; left out, every Linear layer and every 1x1 Conv2d of the blocks. init: a folder that PEFT
    wrote, which brings r, alpha, dropout, targets, rslora and dora with it. merge: fold the factors into the weights
    at the end.
    """

    r: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: list[str] | None = None
    rslora: bool = False
    dora: bool = False
    init: str | None = None
    merge: bool = True

    def __post_init__(self) -> None:
        whole("lora:r", self.r, 1, "such as r=8")
        if self.alpha is not None:
            number("lora:alpha", self.alpha, 0, "such as alpha=16", above=True)
        number("lora:dropout", self.dropout, 0, "such as dropout=0.1", high=0.99)
        for name in ("rslora", "dora", "merge"):
            flag(f"lora:{name}", getattr(self, name))
        targets: Any = self.targets
        if isinstance(targets, str):
            self.targets = targets = [targets]
        if targets is not None and not (
            isinstance(targets, list | tuple) and targets and all(isinstance(target, str) for target in targets)
        ):
            raise refuse("lora:targets", "a list of layer names", targets, "such as targets=['query', 'value']")
        if self.init is not None:
            self._alone()

    def _alone(self) -> None:
        """`init` brings its own shape, so the options that say it must be left at their defaults."""
        given: Any = self.init
        if not isinstance(given, str | Path):
            raise refuse("lora:init", "the path of a folder that PEFT wrote", given, "or leave it out")
        self.init = str(given)
        for name in ("r", "alpha", "dropout", "targets", "rslora", "dora"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise MethodError(
                    f"lora:init='{self.init}' and lora:{name} cannot both be given: the folder says what {name} is; "
                    f"leave {name} out"
                )

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Put PEFT's layers in place of the targeted ones. Raises MethodError for targets that are not there."""
        peft = _peft()
        network = _network(model)
        if any(isinstance(module, peft.tuners.lora.LoraLayer) for module in network.modules()):
            raise MethodError(
                "this backbone already holds a LoRA that was not merged: start from a bundle made with lora:merge=true"
            )
        self.learning_ = {id(p): p.requires_grad for p in network.parameters()}
        settings, weights = self._settings(model)
        config = peft.LoraConfig(**settings)
        named = dict(network.named_modules())
        for name in settings["target_modules"]:
            ctx.claim(named[name])
        with seeded(ctx.generator, network):
            peft.inject_adapter_in_model(config, network)
        if weights:
            fill(network, weights, str(self.init))
        self.ref_ = str(getattr(model.backbone, "ref", ""))
        self.resolved_ = {
            "r": config.r,
            "alpha": config.lora_alpha,
            "dropout": config.lora_dropout,
            "targets": sorted(settings["target_modules"]),
            "rslora": config.use_rslora,
            "dora": config.use_dora,
        }
        return model

    def _settings(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What PEFT's configuration shall say, and the factors to start from, if `init` brings any."""
        if self.init is not None:
            return read(Path(self.init), _network(model), merge=self.merge)
        own = {
            "r": self.r,
            "lora_alpha": 2 * self.r if self.alpha is None else self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": _choose(model, self.targets),
            "use_rslora": self.rslora,
            "use_dora": self.dora,
        }
        return own, {}

    def groups(self, model: nn.Module, ctx: Context) -> list[Group]:
        """The low-rank factors, and nothing else."""
        return [Group(tuple(p for _, _, layer in _layers(_network(model)) for p in _factors(layer)))]

    def learning_rate(self, modality: str) -> float | None:
        """5e-4 for text, 1e-3 otherwise."""
        return 5e-4 if modality == "text" else 1e-3

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Keep PEFT's files; with `merge`, fold the factors in. Raises ProofError when a layer answers differently."""
        network = _network(model)
        base = self.ref_.removeprefix("hf:") if self.ref_.startswith("hf:") else None
        written = files(network, self.resolved_["targets"], base)
        self.files_ = {f"adapter/{name}": data for name, data in written.items()}
        if not self.merge:
            return model
        with ctx.quiet(model), torch.no_grad():
            for parent, name, layer in list(_layers(network)):
                setattr(parent, name, _merged(layer, name, ctx.generator))
        del network.peft_config
        for parameter in network.parameters():
            parameter.requires_grad_(self.learning_.get(id(parameter), True))
        return model

    def artefacts(self) -> dict[str, bytes]:
        """`adapter/adapter_config.json` and `adapter/adapter_model.safetensors`, as PEFT writes them."""
        return dict(getattr(self, "files_", {}))

    def remains(self) -> bool:
        """Whether the factors stay apart in the finished model."""
        return not self.merge

    def options(self) -> dict[str, Any]:
        """The fields. For factors that stay, `init` is replaced by what it held, so that the bundle needs no folder."""
        found = super().options()
        if not self.merge and self.init is not None and hasattr(self, "resolved_"):
            found.update(self.resolved_, init=None)
        return found


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtra("peft", "lora", "the method 'lora'") from None
    return peft


def _network(model: nn.Module) -> nn.Module:
    """The module that PEFT's names are relative to: the wrapped network, as other libraries load it."""
    backbone: Any = model.backbone
    return getattr(backbone, "network", backbone)  # type: ignore[no-any-return]


def _layers(network: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Every LoRA layer with its parent and its name there."""
    kind = _peft().tuners.lora.LoraLayer
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, kind):
                yield parent, name, child


def _factors(layer: Any) -> list[nn.Parameter]:
    """The parameters that PEFT added to a layer."""
    own = {id(p) for p in layer.get_base_layer().parameters()}
    return [p for p in layer.parameters() if id(p) not in own]


def _choose(model: nn.Module, targets: list[str] | None) -> list[str]:
    """Full names of the layers to change, among those of the backbone's blocks."""
    backbone: Any = model.backbone
    inside = {id(module) for block in backbone.blocks for module in block.modules()}
    named = [(name, m) for name, m in _network(model).named_modules() if id(m) in inside and _fits(m)]
    if targets is None:
        found = [name for name, m in named if isinstance(m, nn.Linear) or m.kernel_size == (1, 1)]
        if not found:
            raise MethodError("expected Linear or 1x1 Conv2d layers in the backbone's blocks, found none; use freeze")
        return found
    everywhere = {name for name, module in _network(model).named_modules() if _fits(module)}
    found = []
    for target in targets:
        hits = [name for name, _ in named if name.endswith(f".{target}")]
        hits += [target] if target in everywhere else []
        if not hits:
            known = ", ".join(sorted({name.rpartition(".")[2] for name, _ in named}))
            raise refuse("lora:targets", "names of layers in the blocks", target, f"layers there end in: {known}")
        found += [name for name in hits if name not in found]
    return found


def _fits(module: nn.Module) -> bool:
    """Whether a layer can have a low-rank twin. Subclasses compute in their own way, which a twin would not copy."""
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def _merged(layer: Any, name: str, generator: torch.Generator) -> nn.Module:
    """The plain layer with the factors folded in, in float32, shown to answer as before on a random input."""
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
            f"merging the LoRA of layer '{name}' changed its output by {change:.1e} of its size, at most {TOLERANCE:g} "
            f"is allowed; lora:merge=false keeps the factors apart"
        )
    return merged.to(kept)


def _probe_shape(base: Any) -> tuple[int, ...]:
    if isinstance(base, nn.Linear):
        return (8, base.in_features)
    height, width = base.kernel_size
    return (2, base.in_channels, height + 6, width + 6)
