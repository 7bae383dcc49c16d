"""Bundles of several tasks, ranks and layers on one backbone, for the tests of the server."""

from __future__ import annotations

from typing import Any

import torch

import headstart as hs

TEXTS = [
    f"{text} {word}" for text in ("where is my parcel", "refund please", "password lost") for word in ("now", "help")
]
WORDS = "where is my parcel refund please password lost today again still".split()  # noqa: SIM905
KINDS: dict[str, dict[str, Any]] = {
    "wide": {"method": "lora:r=6,merge=false", "labels": ["a", "a", "b", "b", "c", "c"]},
    "narrow": {"method": "lora:r=2,alpha=10,rslora=true,targets=query,merge=false", "labels": ["x", "y"] * 3},
    "tags": {
        "method": hs.methods.LoRA(r=3, targets=["value", "intermediate.dense"], merge=False), "task": "multilabel",
        "labels": [["late"], [], ["late", "far"], ["far"], [], ["late"]],
    },
    "number": {"method": "lora:r=1,merge=false", "task": "regression", "labels": [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]},
    "probe": {"method": "freeze:probe", "labels": ["yes", "no"] * 3},
}  # fmt: skip


def stirred(model: hs.Bundle, seed: int) -> hs.Bundle:
    """The model with factors that do something, as after a long training, and its answers to the probe."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.model.named_parameters():
            if ".lora_" in name or name.startswith("head."):
                value.copy_(torch.randn(value.shape, generator=draws) * 0.3)
    model.probe_outputs = model.outputs(model.probe_inputs)
    return model
