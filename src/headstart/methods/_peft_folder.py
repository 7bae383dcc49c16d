"""Reading and writing the folder in which the PEFT library keeps an adapter: a JSON configuration and safetensors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from headstart.errors import MethodError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

PREFIX = "base_model.model."
"""What PEFT writes before a module's name in its files."""

COMMON = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "modules_to_save",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One of PEFT's adapters.

    method: its name here, and of PEFT's module. title: for people. type: `peft_type` in the configuration. mark: what
    follows a layer's name in the names of its tensors. config, layer: PEFT's classes. copied: keys of the configuration
    that are taken over. patterns: those that differ from layer to layer or add biases; they are taken over too, where
    the result is merged. harmless: keys that do not change what the stored tensors mean, once the layers are read from
    the tensors' own names. start: the key that says how tensors began, with the values that left the backbone's own
    weights as they were.
    """

    method: str
    title: str
    type: str
    mark: str
    config: str
    layer: str
    copied: tuple[str, ...]
    harmless: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    start: tuple[str, tuple[bool | str, ...]] = ("", ())


LORA = Kind(
    "lora", "LoRA", "LORA", ".lora_", "LoraConfig", "LoraLayer",
    copied=("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"),
    harmless=(
        *COMMON, "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "bias",
        "ensure_weight_tying", "loftq_config", "eva_config",
    ),
    patterns=("rank_pattern", "alpha_pattern", "lora_bias"),
    start=("init_lora_weights", (True, False, "gaussian", "eva", "orthogonal")),
)  # fmt: skip

IA3 = Kind(
    "ia3", "(IA)^3", "IA3", ".ia3_", "IA3Config", "IA3Layer",
    copied=("feedforward_modules",),
    harmless=COMMON,
    start=("init_ia3_weights", (True, False)),
)  # fmt: skip


def read(kind: Kind, folder: Path, network: nn.Module, *, merge: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keyword arguments for PEFT's configuration, and the tensors under this network's names.

    Raises MethodError for a folder that is not whole, is of another kind, or was made for another network.
    """
    from safetensors.torch import load_file

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            hint = "; save it with safe_serialization=True" if (folder / "adapter_model.bin").is_file() else ""
            raise MethodError(
                f"expected {kind.method}:init to be a folder that PEFT wrote, "
                f"received '{folder}', which has no {name}{hint}"
            )
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
    except Exception as error:  # JSON, encodings and safetensors each have exceptions of their own
        raise MethodError(f"{kind.method}:init='{folder}' cannot be read ({error}); save the adapter again") from None
    received = record.get("peft_type") if isinstance(record, dict) else type(record).__name__
    if received != kind.type:
        raise MethodError(
            f"expected {kind.method}:init to hold an adapter of type {kind.type}, received {received} in '{folder}'"
        )
    config = _settings(kind, record, folder, merge)
    found = _renamed(kind, weights, network, folder)
    config["target_modules"] = sorted({name.partition(kind.mark)[0] for name in found})
    return config, found


def _settings(kind: Kind, record: Mapping[str, Any], folder: Path, merge: bool) -> dict[str, Any]:
    """What the configuration says, refused where it asks for something that this method does not do."""
    import peft

    plain: dict[str, Any] = getattr(peft, kind.config)().to_dict()
    copied = (*kind.copied, *kind.patterns) if merge else kind.copied
    start, unchanged = kind.start
    for key, value in record.items():
        if key in copied or key in kind.harmless or value == plain.get(key) or not value:
            continue
        if key == start and value in unchanged:
            continue
        way_out = (
            f"use {kind.method}:merge=true"
            if key in kind.patterns
            else f"convert it to a plain {kind.title} with PEFT first"
        )
        raise MethodError(
            f"{kind.method}:init='{folder}' uses PEFT's {key}={value!r}, which is not continued here; {way_out}"
        )
    return {key: record.get(key, plain[key]) for key in copied}


def _renamed(kind: Kind, weights: Mapping[str, Tensor], network: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The tensors under this network's names; a head that was saved with them is named and left out."""
    known = {name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    own = f"{getattr(network, 'base_model_prefix', '')}."
    found: dict[str, Tensor] = {}
    strange: list[str] = []
    heads: list[str] = []
    for key, value in weights.items():
        name = key.removeprefix(PREFIX)
        layer, ours, _ = name.partition(kind.mark)
        if not ours:
            heads.append(name)
        elif layer in known:
            found[name] = value
        elif own != "." and layer.removeprefix(own) in known:
            # Saved from a model with a head, where the encoder stands under its own name.
            found[name.removeprefix(own)] = value
        else:
            strange.append(layer)
    if strange or not found:
        what = f"a layer '{strange[0]}'" if strange else f"no {kind.title} layer"
        raise MethodError(
            f"{kind.method}:init='{folder}' was made for another network: it holds {what}, this backbone does not "
            f"match; give the backbone that the adapter was trained on"
        )
    if heads:
        warnings.warn(
            f"{kind.method}:init='{folder}' also holds {', '.join(sorted(heads))}, which is not used", stacklevel=2
        )
    return found


def fill(kind: Kind, network: nn.Module, weights: dict[str, Tensor], folder: str) -> None:
    """Load the tensors into a network that has room for them; every one must find its place."""
    import peft

    try:
        result: Any = peft.set_peft_model_state_dict(network, weights)
    except RuntimeError as error:
        raise MethodError(
            f"{kind.method}:init='{folder}' does not fit this backbone ({error}); "
            f"give the backbone that it was trained on"
        ) from None
    loose = [name for name in result.missing_keys if kind.mark in name] + list(result.unexpected_keys)
    if loose:
        raise MethodError(
            f"{kind.method}:init='{folder}' does not fit this backbone: {loose[0]} is unmatched; "
            f"give the backbone that the adapter was trained on"
        )


def files(network: Any, targets: list[str], base: str | None) -> dict[str, bytes]:
    """The two files of PEFT's folder, by name, for a network that PEFT has put layers into."""
    import peft
    from safetensors.torch import save

    tensors = {
        PREFIX + name: value.detach().cpu().contiguous().clone()
        for name, value in peft.get_peft_model_state_dict(network, save_embedding_layers=False).items()
    }
    record = network.peft_config["default"].to_dict()
    record.update(inference_mode=True, target_modules=targets, base_model_name_or_path=base)
    text = json.dumps(record, indent=2, sort_keys=True, default=_plain)
    return {CONFIG: text.encode(), WEIGHTS: save(tensors, metadata={"format": "pt"})}


def _plain(value: Any) -> Any:
    """PEFT's enums and sets as JSON."""
    return sorted(value) if isinstance(value, set | frozenset) else getattr(value, "value", str(value))
