"""A bundle without the weights of its backbone: the head, low-rank factors if any, and where the rest lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart import backbones, catalog
from headstart import bundle as bundles
from headstart.bundle import Bundle, borrowed
from headstart.errors import BundleError, HeadstartError
from headstart.hooks import Hooks
from headstart.model import Model
from headstart.protocols import Method

CLOSE = 1e-5
"""Largest difference, relative to a layer's largest weight, between merged weights and base plus factors."""

DROPPED = ("adapter", "stages", "tensorboard")
"""Files of a bundle that a light one goes without: its factors lie in `model.safetensors`."""


def lighten(bundle: str | Path, out: str | Path, *, overwrite: bool = False) -> Bundle:
    """Write a bundle that borrows its backbone's weights from where they came; returns it as it was written.

    bundle: a folder that `fit` wrote, made by `lora`, merged or not, or by a method that leaves the backbone alone
    (`freeze:probe`). Merged factors are taken apart again: the backbone's own weights come from its reference, and base
    plus factors must be what the bundle holds. The new bundle is proven on the stored inputs like any other.

    Raises BundleError for a bundle whose backbone was changed in another way, or whose backbone cannot be found;
    ProofError when the light bundle answers otherwise.
    """
    source = bundles.load(bundle)
    surgery = source.record["surgery"]
    if "runtime" in source.record:
        raise BundleError("an export holds its weights in a graph: lighten the bundle that it was made from")
    if source.record.get("borrows"):
        raise BundleError(f"'{bundle}' is light already")
    if [method["name"] for method in surgery] not in ([], ["lora"]):
        names = " and ".join(method["name"] for method in surgery)
        raise BundleError(f"only what 'lora' added can be kept apart from the backbone; this bundle holds {names}")
    weights = borrowed.base(source.record)
    model: Any = source.model
    methods: Mapping[str, Method] = source.methods
    if not surgery and "adapter/adapter_config.json" in source.files:
        model, methods = _apart(source, weights)
        surgery = [{"name": "lora", "options": methods["lora"].options()}]
    else:
        _check(source.model.state_dict(), weights, {})
    record = {
        **source.record,
        "surgery": surgery,
        "borrows": True,
        "lineage": bundles.lineage(source.record["lineage"]["id"], source.record["lineage"]["name"]),
    }
    files = {name: data for name, data in source.files.items() if name.split("/")[0] not in DROPPED}
    made = Bundle(
        model, source.task, source.modality, record, source.probe_inputs, source.probe_outputs, methods, files,
        source.report,
    )  # fmt: skip
    made.save(out, overwrite=overwrite)
    return made


def _apart(source: Bundle, weights: Mapping[str, Tensor]) -> tuple[Model, Mapping[str, Method]]:
    """The model with its factors beside the weights that they were merged into."""
    assert source.folder is not None
    kind = json.loads(source.files["adapter/adapter_config.json"]).get("peft_type")
    if kind != "LORA":
        raise BundleError(f"only what 'lora' added can be kept apart from the backbone; this bundle holds {kind}")
    backbone = backbones.rebuild(source.record["backbone"], source.folder / "backbone")
    backbone.load_state_dict(weights)
    try:
        methods = {"lora": catalog.find("methods", "lora")(init=str(source.folder / "adapter"), merge=False)}
        model: Any = Model(backbone, source.model.head)
        model = Hooks(methods, source.task, source.modality, seed=0).adapt(model).eval()
    except HeadstartError as error:
        raise BundleError(f"the factors in '{source.folder / 'adapter'}' cannot be kept apart: {error}") from None
    updates = {
        f"{name.removeprefix('backbone.')}.weight": layer.get_delta_weight("default")
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    with torch.no_grad():
        _check(source.model.state_dict(), weights, updates)
    return model, methods


def _check(model: Mapping[str, Tensor], weights: Mapping[str, Tensor], updates: Mapping[str, Tensor]) -> None:
    """Raises BundleError unless the backbone's weights are those of the base, plus the updates up to rounding."""
    changed = []
    for name, value in model.items():
        if borrowed.is_own(name):
            continue
        inner = borrowed.plain(name)
        if inner not in updates:
            same = torch.equal(value, weights[inner])
        else:
            expected = weights[inner] + updates[inner]
            same = float((value - expected).abs().max()) <= CLOSE * float(expected.abs().max())
        if not same:
            changed.append(inner)
    if changed:
        raise BundleError(
            f"the backbone was changed beyond low-rank factors ({changed[0]} and {len(changed) - 1} more tensors), so "
            f"its weights cannot be borrowed; train with --method lora or --method freeze:probe alone"
        )
