"""Random numbers from the run's own generator, for code that draws from somewhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from headstart.values import Batch


def numpy_from(generator: torch.Generator) -> np.random.Generator:
    """A numpy generator seeded by one draw."""
    return np.random.default_rng(_seed(generator))


@contextmanager
def seeded(generator: torch.Generator, module: nn.Module | None = None) -> Iterator[None]:
    """Torch's global generators seeded by one draw, and put back afterwards.

    module: its devices' generators are seeded too; without it only the CPU's.
    """
    devices = _devices(module) if module else []
    with torch.random.fork_rng(devices=devices):
        seed = _seed(generator)
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


@contextmanager
def rewound(module: nn.Module) -> Iterator[None]:
    """Torch's global generators stand afterwards where they stood before, those of the module's devices too."""
    with torch.random.fork_rng(devices=_devices(module)):
        yield


def branch(generator: torch.Generator, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of a method's own, seeded by one draw, for what is drawn inside the network's passes."""
    return torch.Generator(device).manual_seed(_seed(generator))


def of_batch(generator: torch.Generator, batch: Batch) -> torch.Generator:
    """A generator for the rows of this batch: the micro-batches of one step are given equal generators."""
    salt = int((batch.row * torch.arange(1, len(batch) + 1, device=batch.row.device)).sum())
    return torch.Generator().manual_seed((_seed(generator) + salt) % 2**62)


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)


def _devices(module: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
