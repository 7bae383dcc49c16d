"""Small inputs that a backbone can read, for methods that must see it run."""

from __future__ import annotations

from typing import Any

import torch

from headstart.values import Batch


def example(backbone: Any) -> Batch:
    """One row that the network can read: its own example where it has one."""
    device = next(backbone.parameters()).device
    if hasattr(backbone, "example"):
        own: Batch = backbone.example().to(device)
        return own
    if backbone.modality == "text":
        ids = torch.full((1, 4), 1 if backbone.preprocessing.get("pad_id", 0) == 0 else 0, device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    elif backbone.modality == "audio":
        size = int(backbone.preprocessing.get("sample_rate", 16000)) // 5
        inputs = {"wave": torch.zeros(1, size, device=device), "lengths": torch.tensor([size], device=device)}
    else:
        size = int(backbone.preprocessing.get("image_size", 32))
        inputs = {"pixels": torch.zeros(1, 3, size, size, device=device)}
    one = torch.zeros(1, dtype=torch.int64, device=device)
    return Batch(inputs, None, torch.ones(1, device=device), one, one)


def random_example(backbone: Any, generator: torch.Generator) -> Batch:
    """The same row moved by unit noise on its continuous input, so that no two places of it are alike."""
    row = example(backbone)
    still = backbone.zero_shift(row)
    noise = torch.randn(still.shape, generator=generator, device=generator.device)
    return row.replace(shift=noise.to(still.device, still.dtype))
