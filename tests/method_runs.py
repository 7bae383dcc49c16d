"""Runs of the real loop over tiny backbones, for the contract of every method and the table of pairs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "methods"))

from method_helpers import (
    CLASSES,
    CLS,
    PAD,
    RATE,
    SEP,
    VOCABULARY,
    WIDTH,
    ImageBackbone,
    TinyBackbone,
    make_model,
)

from headstart.catalog import entries
from headstart.encoded import Encoded
from headstart.hooks import Hooks
from headstart.loop import Listener, Loop, Trained
from headstart.modalities.audio import AudioModality
from headstart.modalities.image import ImageModality
from headstart.modalities.text import TextModality
from headstart.model import Model
from headstart.protocols import Method, Prepared, Task
from headstart.spec import TrainingSpec
from headstart.tasks.classification import Classification
from headstart.tasks.multitask import Multitask
from headstart.values import Batch, Features

OPTIONS: Mapping[str, dict[str, Any]] = {
    "freeze": {"decay": 0.5},
    "lora": {"r": 2},
    "soup": {"k": 2},
    "l2sp": {"weight": 0.1},
    "pgd": {"steps": 2},
    "ema": {"decay": 0.5},
    "swa": {"start": 0.3},
    "backtranslate": {"there": "some/pair", "back": "pair/some"},
    "pseudo": {"threshold": 0.3},
    "fixmatch": {"threshold": 0.3},
    "distil": {"teacher": "tiny", "hidden": 1.0, "relations": 1.0},
}
"""Options with which a method shows its work in a run of a few steps; the others have working defaults."""

DEVICE = torch.device(os.environ.get("HEADSTART_TEST_DEVICE", "cpu"))
"""Where runs learn: `HEADSTART_TEST_DEVICE=cuda` puts them on a GPU."""

ROWS = 24
MODALITIES = {"text": TextModality, "image": ImageModality, "audio": AudioModality}


class Tensors(Prepared):
    """Rows that are tensors already."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = inputs
        self.lengths = np.ones(len(next(iter(inputs.values()))), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        index = torch.as_tensor(list(rows))
        return {name: value[index].clone() for name, value in self.inputs.items()}


def make_rows(kind: str, seed: int = 0) -> Encoded:
    """24 rows of three classes that show in their tokens, colours or tones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(ROWS) % CLASSES
    if kind == "text":
        own = 5 + labels[:, None] * 10 + torch.randint(0, 10, (ROWS, 7), generator=generator)
        noise = torch.randint(5, VOCABULARY, (ROWS, 7), generator=generator)
        words = torch.where(torch.rand(ROWS, 7, generator=generator) < 0.7, own, noise)
        edge = torch.ones(ROWS, 1, dtype=torch.int64)
        ids = torch.cat([CLS * edge, words, SEP * edge, PAD * edge], 1)
        inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    elif kind == "audio":
        lengths = 120 + 20 * torch.randint(0, 5, (ROWS,), generator=generator)
        time = torch.arange(200) / RATE
        tones = 0.1 * torch.sin(2 * torch.pi * (50 + 100 * labels[:, None]) * time)
        wave = tones + 0.05 * torch.randn(ROWS, 200, generator=generator)
        inputs = {"wave": wave * (torch.arange(200) < lengths[:, None]), "lengths": lengths}
    else:
        pixels = torch.rand(ROWS, 3, 8, 8, generator=generator) * 0.5
        pixels[torch.arange(ROWS), labels] += 0.4
        inputs = {"pixels": pixels}
    return Encoded(Tensors(inputs), labels, torch.ones(ROWS), torch.zeros(ROWS, dtype=torch.int64))


class TupleBlock(nn.Module):
    """A transformer block of timm that answers with a tuple."""

    def __init__(self) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.block = Block(WIDTH, num_heads=4, proj_drop=0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.block(x), None


def make_prunable(kind: str) -> Model:
    """The tiny model with blocks that hold heads and neurons, or expansions."""
    from timm.models._efficientnet_blocks import InvertedResidual

    model = make_model(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks: list[nn.Module]
        if kind != "image":
            blocks = [TupleBlock() for _ in range(3)]
        else:
            sizes = ((8, 8), (8, 12), (12, WIDTH))
            blocks = [InvertedResidual(wide, out, exp_ratio=2.0) for wide, out in sizes]
        model.backbone.network.layers = nn.ModuleList(blocks)
    return model


class PatchNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.layers = nn.ModuleList(TupleBlock() for _ in range(3))
        self.top = nn.LayerNorm(WIDTH)


class PatchBackbone(ImageBackbone):
    """A vision transformer over sixteen patches."""

    def __init__(self) -> None:
        TinyBackbone.__init__(self, PatchNetwork(), "image")

    def features(self, batch: Batch) -> Features:
        pixels = batch.inputs["pixels"]
        x = self.network.first(pixels if batch.shift is None else pixels + batch.shift).flatten(2).transpose(1, 2)
        for layer in self.network.layers:
            x = layer(x)[0]
        x = self.network.top(x)
        return Features(x.mean(1), x)


def make_attentive(kind: str) -> Model:
    """The tiny model with blocks of attention over tokens, of words or of patches."""
    if kind != "image":
        return make_prunable(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(PatchBackbone(), nn.Linear(WIDTH, CLASSES))


MODELS = {"prompt": make_attentive, "prune": make_prunable, "ia3": make_prunable}
"""What runs with a method need in place of the plain tiny model; the first of them that a run holds decides."""


@dataclass
class TinyBundle:
    """What a method sees of another finished model: here the tiny one with other weights."""

    kind: str

    def __post_init__(self) -> None:
        self.model = make_model(self.kind, seed=1)
        self.task = Classification.fit([str(i) for i in range(CLASSES)] * 2)
        self.modality = MODALITIES[self.kind]()


def is_for_several(names: Sequence[str | None]) -> bool:
    """Whether one of these methods asks for several tasks, by what it requires."""
    return any("task.multitask" in make_method(name).requires() for name in names if name is not None)


def make_tasks() -> Multitask:
    """The classes of the plain runs, and a number that grows with the class."""
    pairs = [("kind", str(i % CLASSES)) for i in range(6)] + [("size", float(i)) for i in range(CLASSES)]
    return Multitask.fit(pairs, tasks={"kind": {"name": "classification"}, "size": {"name": "regression"}})


def divide(rows: Encoded, task: Multitask) -> Encoded:
    """The same rows, every other one of them with the second task's target."""
    labels = rows.targets.tolist()
    pairs = [("size", float(label)) if place % 2 else ("kind", str(label)) for place, label in enumerate(labels)]
    targets = task.encode(pairs)
    return Encoded(rows.prepared, targets, rows.weight, task.origins(targets))


def make_method(name: str) -> Method:
    method: Method = entries("methods")[name].load()(**OPTIONS.get(name, {}))
    return method


def make_unlabelled(kind: str, methods: Mapping[str, Method]) -> Encoded | None:
    """Rows whose labels are held back, where a method asks for such."""
    if not any("run.unlabelled" in method.requires() for method in methods.values()):
        return None
    return replace(make_rows(kind, 2), targets=None)


def make_loop(
    names: Sequence[str],
    kind: str,
    *,
    like: str | None = None,
    checkpoint: Path | None = None,
    epochs: int = 3,
    methods: Mapping[str, Method] | None = None,
) -> Loop:
    """A loop with these methods in this order, over the model that they, or the method `like`, need."""
    make = next((make for name, make in MODELS.items() if name in (*names, like)), make_model)
    modality = MODALITIES[kind]()
    model, rows, held = make(kind), make_rows(kind), make_rows(kind, 1)
    task: Task = Classification.fit([str(i) for i in range(CLASSES)] * 2)
    if is_for_several((*names, like)):
        task = make_tasks()
        rows, held = divide(rows, task), divide(held, task)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.head = nn.Linear(WIDTH, task.outputs)
    training = TrainingSpec(batch_size=8, learning_rate=5e-3, patience=None, checkpoint_every=1e-9)
    methods = methods or {name: make_method(name) for name in names}
    hooks = Hooks(
        methods,
        task,
        modality,
        seed=0,
        bundle=lambda folder: TinyBundle(kind),
        unlabelled=make_unlabelled(kind, methods),
    )
    return Loop(
        model, hooks, rows, held, training, epochs, 5e-3, DEVICE,
        checkpoint=checkpoint, identity="contract",
    )  # fmt: skip


def train(loop: Loop, listen: Listener | None = None, *, resume: bool = False) -> Trained:
    """Train with torch's generator fixed, as a run of `fit` does."""
    torch.manual_seed(0)
    if listen is not None:
        loop.listen = listen
    return loop.train(resume=resume)


def weights(result: Trained) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit for bit; on a GPU, whose sums are added up in any order, up to rounding."""
    equal = torch.equal if DEVICE.type == "cpu" else partial(torch.allclose, rtol=1e-3, atol=1e-4)
    return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
