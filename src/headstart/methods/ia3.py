"""Learned scales on keys, values and inner activations through PEFT, merged with proof."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods import _structures
from headstart.methods._checks import flag, number
from headstart.methods._peft_folder import IA3 as KIND
from headstart.methods._peft_folder import read
from headstart.methods._peft_layers import PeftMethod, chosen, fitting, network_of
from headstart.protocols import Context
from headstart.values import Group

KEYS_AND_VALUES = (
    ("key", "value"),  # BERT, RoBERTa, ELECTRA, ALBERT, BEiT
    ("k", "v"),  # MPNet
    ("k_lin", "v_lin"),  # DistilBERT
    ("k_proj", "v_proj"),  # ViT of transformers, CLIP, SigLIP
    ("key_proj", "value_proj"),  # DeBERTa v2
)
STACKED = (("qkv",), ("Wqkv",), ("in_proj",))
"""Queries, keys and values in one layer: timm, ModernBERT, DeBERTa."""

GATED = ("Wi", "Wo")
"""A gated feed-forward part (ModernBERT), whose inner activations are a product that the second layer takes."""


@dataclass
class IA3(PeftMethod):
    """Trains one scale a channel on the backbone's keys, values and inner activations, and merges them when done.

    Equation: keys l_k * (W_k x + b_k), values l_v * (W_v x + b_v), feed-forward W_2 (l_ff * f(W_1 x)) + b_2, with l_k,
    l_v and l_ff ones at the start, so that the network answers as before; * goes channel by channel.

    Source: Liu et al. 2022 (Few-Shot Parameter-Efficient Fine-Tuning), section 3.3, through the PEFT library. In
    inverted residuals and bottlenecks of convolutional networks, which have no keys, the scales stand before the last
    convolution, where the feed-forward ones do.

    Requires: the `lora` extra. Owns `groups`, so it excludes `freeze`, `lora`, `adapter`, `prompt` and `surgical`. The
    layers it changes are claimed.

    Shapes: Linear (out,in) and ungrouped Conv2d (out,in,kh,kw) layers; the layer's input and output keep their shapes.

    Neighbours: `lora` learns more numbers and may change directions, not only sizes; `freeze:bitfit` shifts where this
    scales. Where queries, keys and values are one layer (timm), the queries are scaled too, which adds nothing that
    scaled keys cannot say. With `merge` (the default) the finished model has the plain backbone's layers and names.
    Either way the bundle holds `adapter/`, a folder that `PeftModel.from_pretrained` reads, and `init` starts from such
    a folder.

    Example: `--method ia3` or `--method ia3:init=runs/a/adapter`; `hs.methods.IA3(merge=False)`.

    Defaults: which layers are scaled is the paper's choice. The rates used when the user gives none are 5e-4 for text
    (that of `lora`) and 3e-4 otherwise. A scale must move further than a weight, and the head must not be shaken by a
    rate that suits scales: at a rate of 1e-2 with speed = 1, pictures of ants and bees ended below the probe. speed =
    20 stands between 10 and 30, which were tried there at the rate above; on tweets 5 and 20 came out even.

    targets: layers whose output is scaled, as endings of names in the blocks or full names. feedforward: layers whose
    input is scaled, in the same way. With neither, they are found by the names that libraries give them; with one, only
    those named are scaled. speed: the scales learn at this many times the run's rate. init: a folder that PEFT wrote,
    which brings targets and feedforward with it. merge: fold the scales into the weights at the end.
    """

    targets: list[str] | None = None
    feedforward: list[str] | None = None
    speed: float = 20.0
    init: str | None = None
    merge: bool = True

    kind = KIND

    def __post_init__(self) -> None:
        flag("ia3:merge", self.merge)
        number("ia3:speed", self.speed, 0, "such as speed=20", above=True)
        self.listed("targets")
        self.listed("feedforward")
        if self.init is not None:
            self.alone(("targets", "feedforward"))

    def settings(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Which layers are scaled at their output and which at their input, and the scales of `init`, if any."""
        if self.init is not None:
            network = network_of(model)
            config, weights = read(KIND, Path(self.init), network, merge=self.merge)
            own = f"{getattr(network, 'base_model_prefix', '')}."
            said, names = config["feedforward_modules"], config["target_modules"]
            config["feedforward_modules"] = [n for n in names if _named(said, n) or _named(said, own + n)]
            return config, weights
        if self.targets is None and self.feedforward is None:
            outer, inner = _choose(model)
        else:
            outer = chosen(model, "ia3:targets", self.targets or [])
            inner = chosen(model, "ia3:feedforward", self.feedforward or [])
        both = sorted(set(outer) & set(inner))
        if both:
            raise MethodError(
                f"ia3:targets scales the output of '{both[0]}' and ia3:feedforward its input: keep one of them"
            )
        return {"target_modules": [*outer, *inner], "feedforward_modules": inner}, {}

    def resolved(self, config: Any, settings: dict[str, Any]) -> dict[str, Any]:
        """The scaled layers as options."""
        inner = sorted(settings["feedforward_modules"])
        outer = sorted(set(settings["target_modules"]) - set(inner))
        return {"targets": outer or None, "feedforward": inner or None}

    def groups(self, model: nn.Module, ctx: Context) -> list[Group]:
        """The scales, faster than the head."""
        return [Group(self.added(model), self.speed)]

    def learning_rate(self, modality: str) -> float | None:
        """5e-4 for text, 3e-4 otherwise; the scales learn `speed` times faster."""
        return 5e-4 if modality == "text" else 3e-4


def _choose(model: nn.Module) -> tuple[list[str], list[str]]:
    """Full names of the layers that make keys and values, and of those that take inner activations."""
    backbone: Any = model.backbone
    named = {id(module): name for name, module in fitting(model)[0]}
    outer: list[str] = []
    inner: list[str] = []
    for module in (module for block in backbone.blocks for module in block.modules()):
        for children in (*KEYS_AND_VALUES, *STACKED):
            makers = [named.get(id(getattr(module, child, None))) for child in children]
            outer += [name for name in makers if name] if all(makers) else []
        gated = named.get(id(getattr(module, GATED[1], None))) if hasattr(module, GATED[0]) else None
        inner += [gated] if gated else []
    for structure in _structures.find(backbone):
        taker = named.get(id(backbone.get_submodule(structure.path)))
        inner += [taker] if taker and structure.kind == _structures.NEURONS else []
    if not outer and not inner:
        raise MethodError(
            "'ia3' found no keys, values or feed-forward layers by their names in this backbone; name layers with "
            "ia3:targets (their output is scaled) or ia3:feedforward (their input is), or use lora"
        )
    return list(dict.fromkeys(outer)), list(dict.fromkeys(inner))


def _named(said: Any, name: str) -> bool:
    """Whether PEFT takes a layer for feed-forward: a string is an expression for the whole name, a list has endings."""
    if isinstance(said, str):
        return re.fullmatch(said, name) is not None
    return any(name.endswith(ending) for ending in said or ())
