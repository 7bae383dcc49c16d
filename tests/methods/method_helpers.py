"""Three tiny backbones, a task and contexts, made here so that methods are tested without any other room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.model import Model
from headstart.protocols import Backbone, Context, Method, Modality, Prepared, Task
from headstart.values import Batch, Decoded, Features, Progress

VOCABULARY, WIDTH, CLASSES = 40, 16, 3
PAD, CLS, SEP, MASK, UNK = range(5)
RATE, FRAME = 1000, 20


class Tokenizer:
    """What methods read of a tokenizer. Ids from 30 on continue words."""

    all_special_ids = (PAD, CLS, SEP, MASK, UNK)
    pad_token_id, mask_token_id, unk_token_id = PAD, MASK, UNK
    padding_side = "right"

    def __len__(self) -> int:
        return VOCABULARY

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [f"##w{i}" if i >= 30 else f"w{i}" for i in ids]


class TextBlock(nn.Module):
    """Tokens see their mean; answers with a tuple, as the blocks of several libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.norm(x + self.dropout(torch.tanh(self.mixer(x + x.mean(1, keepdim=True))))), None


class TextNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(TextBlock() for _ in range(3))
        self.top = nn.LayerNorm(WIDTH)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding


class AudioNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FRAME, WIDTH)
        self.layers = nn.ModuleList(TextBlock() for _ in range(3))
        self.top = nn.LayerNorm(WIDTH)


class ImageBlock(nn.Module):
    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.point = nn.Conv2d(wide, out, 1)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.point(F.relu(self.bn1(self.depth(x)))))  # type: ignore[no-any-return]


class ImageNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        # The last block is a Sequential, as a stage of timm is.
        self.layers = nn.ModuleList([ImageBlock(8, 8), ImageBlock(8, 12), nn.Sequential(ImageBlock(12, WIDTH))])
        self.top = nn.BatchNorm2d(WIDTH)


class TinyBackbone(Backbone):
    network: Any

    def __init__(self, network: nn.Module, modality: str) -> None:
        super().__init__()
        self.network = network
        self.ref, self.source, self.digest, self.modality, self.width = "tiny", {}, "0", modality, WIDTH
        self.preprocessing: Mapping[str, Any] = {}

    @property
    def stem(self) -> Sequence[nn.Module]:
        return [self.network.embedding if self.modality == "text" else self.network.first]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.network.layers)

    @property
    def tail(self) -> Sequence[nn.Module]:
        return [self.network.top]

    def describe(self) -> dict[str, Any]:
        return {}

    def save_files(self, folder: Path) -> None:
        return None


class TextBackbone(TinyBackbone):
    def __init__(self) -> None:
        super().__init__(TextNetwork(), "text")
        self.tokenizer = Tokenizer()
        self.preprocessing = {"max_length": 12}

    def features(self, batch: Batch) -> Features:
        mask = batch.inputs["attention_mask"]
        x = self.network.embedding(batch.inputs["input_ids"])
        if batch.shift is not None:
            x = x + batch.shift
        for layer in self.network.layers:
            x = layer(x * mask[..., None])[0]
        x = self.network.top(x)
        share = mask[..., None].to(x.dtype)
        return Features((x * share).sum(1) / share.sum(1), x, mask)

    def zero_shift(self, batch: Batch) -> Tensor:
        ids = batch.inputs["input_ids"]
        return torch.zeros(*ids.shape, WIDTH, device=ids.device)


class ImageBackbone(TinyBackbone):
    def __init__(self) -> None:
        super().__init__(ImageNetwork(), "image")

    def features(self, batch: Batch) -> Features:
        x = batch.inputs["pixels"]
        if batch.shift is not None:
            x = x + batch.shift
        x = self.network.first(x)
        for layer in self.network.layers:
            x = layer(x)
        x = self.network.top(x)
        return Features(x.mean((2, 3)), map=x)

    def zero_shift(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.inputs["pixels"])


class AudioBackbone(TinyBackbone):
    """Frames of 20 samples that do not overlap."""

    def __init__(self) -> None:
        super().__init__(AudioNetwork(), "audio")
        self.preprocessing = {"sample_rate": RATE, "max_seconds": 0.4, "mel_bands": None, "hop": None}

    def features(self, batch: Batch) -> Features:
        wave, lengths = batch.inputs["wave"], batch.inputs["lengths"]
        if batch.shift is not None:
            wave = wave + batch.shift
        wave = wave * (torch.arange(wave.shape[1]) < lengths[:, None])
        frames = F.pad(wave, (0, -wave.shape[1] % FRAME)).unflatten(1, (-1, FRAME))
        mask = (torch.arange(frames.shape[1]) * FRAME < lengths[:, None]).long()
        x = self.network.first(frames)
        for layer in self.network.layers:
            x = layer(x * mask[..., None])[0]
        x = self.network.top(x)
        share = mask[..., None].to(x.dtype)
        return Features((x * share).sum(1) / share.sum(1), x, mask)

    def zero_shift(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.inputs["wave"])


class TinyModality(Modality):
    name = "text"
    continuous = False

    def prepare(self, values: Sequence[Any], backbone: Backbone) -> Prepared:
        raise NotImplementedError

    def summary(self, values: Sequence[Any]) -> dict[str, np.ndarray]:
        return {}


class ImageModality(TinyModality):
    name = "image"
    continuous = True


class AudioModality(TinyModality):
    name = "audio"
    continuous = True


MODALITIES = {"text": TinyModality, "image": ImageModality, "audio": AudioModality}


class TinyTask(Task):
    name = "classes"
    labels = ("a", "b", "c")
    metric = "accuracy"
    greater_is_better = True

    @classmethod
    def fit(cls, values: Sequence[Any], **options: Any) -> Task:
        return cls()

    def encode(self, values: Sequence[Any]) -> Tensor:
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def scores(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        return outputs.softmax(1)

    def decode(self, scores: np.ndarray) -> Decoded:
        raise NotImplementedError

    def measure(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        raise NotImplementedError

    def mix(self, targets: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        soft = targets if targets.ndim == 2 else F.one_hot(targets, CLASSES).float()
        return share[:, None] * soft + (1 - share[:, None]) * soft[partner]

    def to_json(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Task:
        return cls()


def make_model(kind: str = "text", seed: int = 0) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = {"text": TextBackbone, "image": ImageBackbone, "audio": AudioBackbone}[kind]()
        return Model(backbone, nn.Linear(WIDTH, CLASSES))


def make_batch(kind: str = "text", rows: int = 6, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor]
    if kind == "text":
        ids = torch.randint(5, VOCABULARY, (rows, 9), generator=g)
        mask = torch.ones_like(ids)
        ids[:, 0] = CLS
        for row in range(rows):
            end = 4 + row % 5
            ids[row, end], ids[row, end + 1 :], mask[row, end + 1 :] = SEP, PAD, 0
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask.clone()}
    elif kind == "audio":
        lengths = 100 + 20 * (torch.arange(rows) % 6) + torch.arange(rows) % 7
        wave = 0.1 * torch.randn(rows, int(lengths.max()), generator=g)
        inputs = {"wave": wave * (torch.arange(wave.shape[1]) < lengths[:, None]), "lengths": lengths}
    else:
        inputs = {"pixels": torch.rand(rows, 3, 8, 8, generator=g)}
    return Batch(
        inputs=inputs,
        labels=torch.arange(rows) % CLASSES,
        weight=torch.linspace(0.5, 1.5, rows),
        origin=torch.zeros(rows, dtype=torch.int64),
        row=torch.arange(rows),
    )


def make_context(kind: str = "text", seed: int = 0, **changes: Any) -> Context:
    settings: dict[str, Any] = {
        "task": TinyTask(),
        "modality": MODALITIES[kind](),
        "progress": Progress(0, 10, 0, 5),
        "generator": torch.Generator().manual_seed(seed),
        "start": {},
        "owner": "me",
    }
    return Context(**{**settings, **changes})


def loss_of(model: Model, task: Task | None = None) -> Any:
    """The loop's loss of a micro-batch: the weighted mean over rows."""
    task = task or TinyTask()

    def compute(batch: Batch) -> Tensor:
        assert batch.labels is not None
        losses = task.loss(model(batch)[1], batch.labels)
        return (losses * batch.weight).sum() / batch.weight.sum()

    return compute


def outputs(model: nn.Module, batch: Batch) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(batch)[1]  # type: ignore[no-any-return]


def learn(model: Model, method: Method, ctx: Context, batch: Batch, steps: int = 3, rate: float = 0.1) -> None:
    """A few plain gradient steps on the method's groups and the head."""
    groups = method.groups(model, ctx)
    parameters = [p for group in groups for p in group.parameters] + list(model.head.parameters())
    for p in model.parameters():
        p.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)
    model.train()
    optimiser = torch.optim.SGD(parameters, rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(model)(batch).backward()
        optimiser.step()


def same_batch(a: Batch, b: Batch) -> bool:
    """Whether two batches hold the same numbers."""
    pairs = [(a.inputs[key], b.inputs[key]) for key in a.inputs]
    pairs += [(a.weight, b.weight), (a.origin, b.origin), (a.row, b.row)]
    if (a.labels is None) != (b.labels is None) or (a.mix is None) != (b.mix is None):
        return False
    if a.labels is not None and b.labels is not None:
        pairs.append((a.labels, b.labels))
    if a.mix is not None and b.mix is not None:
        pairs += [(a.mix.partner, b.mix.partner), (a.mix.share, b.mix.share)]
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)
