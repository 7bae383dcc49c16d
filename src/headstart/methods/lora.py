"""Low-rank adaptation through PEFT: trained in place, exported in PEFT's own format, merged with proof."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._checks import flag, number, whole
from headstart.methods._peft_folder import LORA, read
from headstart.methods._peft_layers import PeftMethod, chosen, fitting, network_of


@dataclass
class LoRA(PeftMethod):
    """Trains low-rank additions to the backbone's linear layers and merges them when done.

    Equation: h = W x + (alpha / r) * B A x, with A (r,in) random, B (out,r) zero at the start, W frozen; with
    `rslora` the factor is alpha / sqrt(r); with `dora` the sum's columns are rescaled to a learned length m: h = m *
    (W + (alpha / r) B A) / ||W + (alpha / r) B A|| x.

    Source: Hu et al. 2022 (LoRA), section 4.1. `rslora`: Kalajdzievski 2023, section 3. `dora`: Liu et al. 2024,
    section 4. All through the PEFT library.

    Requires: the `lora` extra. Owns `groups`, so it excludes `freeze`, `ia3`, `adapter`, `prompt` and `surgical`. The
    layers it changes are claimed.

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

    kind = LORA

    def __post_init__(self) -> None:
        whole("lora:r", self.r, 1, "such as r=8")
        if self.alpha is not None:
            number("lora:alpha", self.alpha, 0, "such as alpha=16", above=True)
        number("lora:dropout", self.dropout, 0, "such as dropout=0.1", high=0.99)
        for name in ("rslora", "dora", "merge"):
            flag(f"lora:{name}", getattr(self, name))
        self.listed("targets")
        if self.init is not None:
            self.alone(("r", "alpha", "dropout", "targets", "rslora", "dora"))

    def settings(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The shape of the factors, and the factors of `init`, if any."""
        if self.init is not None:
            return read(LORA, Path(self.init), network_of(model), merge=self.merge)
        own = {
            "r": self.r,
            "lora_alpha": 2 * self.r if self.alpha is None else self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": _choose(model) if self.targets is None else chosen(model, "lora:targets", self.targets),
            "use_rslora": self.rslora,
            "use_dora": self.dora,
        }
        return own, {}

    def resolved(self, config: Any, settings: dict[str, Any]) -> dict[str, Any]:
        """The shape of the factors as options."""
        return {
            "r": config.r,
            "alpha": config.lora_alpha,
            "dropout": config.lora_dropout,
            "targets": sorted(settings["target_modules"]),
            "rslora": config.use_rslora,
            "dora": config.use_dora,
        }

    def learning_rate(self, modality: str) -> float | None:
        """5e-4 for text, 1e-3 otherwise."""
        return 5e-4 if modality == "text" else 1e-3


def _choose(model: nn.Module) -> list[str]:
    """Full names of every Linear and every 1x1 convolution of the blocks."""
    named, _ = fitting(model)
    found = [name for name, m in named if isinstance(m, nn.Linear) or m.kernel_size == (1, 1)]
    if not found:
        raise MethodError("expected Linear or 1x1 Conv2d layers in the backbone's blocks, found none; use freeze")
    return found
