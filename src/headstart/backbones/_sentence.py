"""Reads folders in the layout of sentence-transformers: how the pooled vector is made, and limits on the text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from headstart.errors import BackboneError

_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass
class Setup:
    """What a folder says about its use. network: where the transformer lies. layers: what stands above the pooling.

    weights: for each layer its tensors, or None.
    """

    network: Path
    modes: tuple[str, ...] | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    weights: list[dict[str, Tensor] | None] = field(default_factory=list)
    max_length: int | None = None
    lower: bool = False
    prompt: str = ""


def read_json(path: Path) -> Any:
    """The JSON of a file. Raises BackboneError when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"expected JSON in '{path}', and it cannot be read: {error}") from None


def read(folder: Path, allow_pickle: bool) -> Setup:
    """The setup of a folder; without `modules.json` only the folder itself is known.

    Raises BackboneError for a module that Headstart does not have, rather than leaving it out.
    """
    setup = Setup(network=folder)
    if not (folder / "modules.json").is_file():
        return setup
    for module in read_json(folder / "modules.json"):
        kind = str(module.get("type", "")).rpartition(".")[2]
        path = folder / str(module.get("path", ""))
        if kind == "Transformer":
            setup.network = path
            _limits(setup)
        elif kind == "Pooling":
            setup.modes = _modes(read_json(path / "config.json"))
        elif kind == "Normalize":
            setup.layers.append({"kind": "normalize"})
            setup.weights.append(None)
        elif kind == "Dense":
            record, weights = _dense(path, allow_pickle)
            setup.layers.append(record)
            setup.weights.append(weights)
        elif kind != "Dropout":
            raise BackboneError(
                f"'{folder}' is a sentence-transformers model with a '{kind}' module, which Headstart does not have; "
                f"expected Transformer, Pooling, Dense, Normalize or Dropout"
            )
    _prompt(setup, folder)
    return setup


def _limits(setup: Setup) -> None:
    for path in sorted(setup.network.glob("sentence_*_config.json")):
        record = read_json(path)
        length = record.get("max_seq_length")
        setup.max_length = int(length) if length else None
        setup.lower = bool(record.get("do_lower_case", False))


def _prompt(setup: Setup, folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    if path.is_file():
        record = read_json(path)
        name = record.get("default_prompt_name")
        setup.prompt = str((record.get("prompts") or {}).get(name, "")) if name else ""


def _modes(record: dict[str, Any]) -> tuple[str, ...]:
    given = record.get("pooling_mode")
    if given is None:
        given = [mode for key, mode in _LEGACY.items() if record.get(key)]
    return (given,) if isinstance(given, str) else tuple(given) or ("mean",)


def _dense(folder: Path, allow_pickle: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = read_json(folder / "config.json")
    taken = (config.get("module_input_name"), config.get("module_output_name"))
    if any(name not in (None, "sentence_embedding") for name in taken):
        raise BackboneError(f"the Dense module in '{folder}' works on {taken}, not on the pooled vector")
    record = {
        "kind": "dense",
        "inputs": int(config["in_features"]),
        "outputs": int(config["out_features"]),
        "bias": bool(config.get("bias", True)),
        "activation": str(config.get("activation_function") or "torch.nn.Tanh").rpartition(".")[2],
        "residual": bool(config.get("use_residual", False)),
    }
    from headstart.backbones._files import read_weights

    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return record, read_weights(folder / name, allow_pickle)
    raise BackboneError(f"the Dense module in '{folder}' has no model.safetensors")
