"""How a finished model answers when its rows are attacked or spoiled.

An attack moves the continuous input of each row, token embeddings, pixels or a wave, within a small ball
(`attack.ascend`); of all points that it tries the worst counts, and points of a smaller ball count for the larger ones
too, so a larger radius never looks better. Spoiled rows are those that happen by themselves: noise, blur, brightness,
typing errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from headstart import inference
from headstart.attack import ascend, inside, usual_norm, usual_radius
from headstart.encoded import Encoded, seed_of
from headstart.evaluation.intervals import intervals
from headstart.model import Model
from headstart.protocols import Modality, Task
from headstart.values import Batch

ROWS = 300
"""Rows that are attacked when nobody says how many: each costs about sixty passes forwards."""

STEPS = 10
"""Steps of an attack: a few more than the 7 with which Madry et al. 2018 (section 5) train on CIFAR."""

BATCH = 32

NOISE, BRIGHTER, WORDS = 0.08, 0.3, 0.15
"""Standard deviation of pixel noise, and brightening: severity 3 of Hendrycks and Dietterich 2019 for CIFAR (noise) and
ImageNet (brightness, there of the colour's value). Share of words that are misspelt: ours."""


def measure(
    model: Model,
    task: Task,
    modality: Modality,
    rows: Encoded,
    *,
    inputs: Sequence[Any] | None = None,
    radii: Sequence[float] | None = None,
    most: int = ROWS,
    steps: int = STEPS,
    temperature: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """The task's metric on clean, attacked and spoiled rows, with intervals, as plain JSON.

    rows: with targets; a seeded sample of at most `most` is used. inputs: the raw texts of the rows, to misspell them;
    without them texts are not spoiled. radii: of the balls, l2 for texts and linf for pictures and sounds; a quarter of
    the usual radius and the whole when left out.

    Keys: `metric`, `rows`, `norm`, `steps`, `clean`, `attacks` (one record a radius) and `corruptions` (one a name),
    each record with `value`, `low` and `high`. Raises ValueError for rows without targets.
    """
    if rows.targets is None or not len(rows):
        raise ValueError("expected labelled rows to measure on, received none")
    index = np.arange(len(rows))
    if len(rows) > most:
        index = np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))
    sample = rows.some(index)
    targets = rows.targets[torch.from_numpy(index)].numpy()
    norm = usual_norm(modality=modality.name)
    if radii is None:
        whole = usual_radius(torch.zeros(1, 1), norm, modality=modality.name)
        radii = (whole / 4, whole)

    def record(outputs: np.ndarray) -> dict[str, float | None]:
        scores = task.scores(torch.from_numpy(outputs), temperature).numpy()
        return intervals(task, scores, targets, names=(task.metric,), seed=seed)[task.metric].to_json()

    radii = sorted(radii)
    clean = inference.outputs(model, sample, batch_size=BATCH)
    attacked = _attacked(model, task, sample, radii, norm, steps, seed)
    spoiled = _spoiled(model, modality, sample, inputs, index, seed)
    return {
        "metric": task.metric,
        "rows": len(index),
        "norm": norm,
        "steps": steps,
        "clean": record(clean),
        "attacks": [{"radius": r, **record(outputs)} for r, outputs in zip(radii, attacked, strict=True)],
        "corruptions": [{"name": name, **record(outputs)} for name, outputs in spoiled.items()],
    }


class _Worst:
    """The loss of a batch, which remembers the worst answer that each row was ever led to."""

    def __init__(self, model: Model, task: Task, targets: Tensor) -> None:
        self.model, self.task, self.targets = model, task, targets
        self.outputs = np.zeros((0, 0), dtype=np.float32)
        self.wrong = np.full(len(targets), -np.inf)
        self.losses = np.full(len(targets), -np.inf)

    def __call__(self, batch: Batch) -> Tensor:
        outputs = self.model(batch)[1].float()
        losses = self.task.loss(outputs, self.targets)
        self._offer(outputs.detach().cpu(), losses.detach().cpu().numpy())
        return losses.sum()

    def _offer(self, outputs: Tensor, losses: np.ndarray) -> None:
        """Keep what is more wrong; between answers that are right, what is nearer to being wrong."""
        wrong = self.task.wrongness(self.task.scores(outputs).numpy(), self.targets.cpu().numpy())[1]
        worse = (wrong > self.wrong) | ((wrong == self.wrong) & (losses > self.losses))
        if not len(self.outputs):
            self.outputs = outputs.numpy().copy()
        self.outputs[worse] = outputs.numpy()[worse]
        self.wrong, self.losses = np.where(worse, wrong, self.wrong), np.where(worse, losses, self.losses)


def _attacked(
    model: Model, task: Task, rows: Encoded, radii: Sequence[float], norm: str, steps: int, seed: int
) -> list[np.ndarray]:
    """The worst outputs (rows,K) found within each radius, which ascend."""
    device = next(model.parameters()).device
    order = np.argsort(-np.asarray(rows.prepared.lengths, dtype=np.int64), kind="stable")
    found = [np.zeros((len(rows), task.outputs), dtype=np.float32) for _ in radii]
    training = model.training
    model.eval()
    try:
        for begin in range(0, len(order), BATCH):
            index = order[begin : begin + BATCH]
            batch = rows.batch(index.tolist()).to(device)
            generator = torch.Generator().manual_seed(seed_of(seed, "attack", begin))
            assert batch.labels is not None
            worst = _Worst(model, task, batch.labels)
            with torch.no_grad():
                worst(batch)
            zeros = model.backbone.zero_shift(batch)
            for place, eps in enumerate(radii):
                start = inside(zeros, eps, norm, batch, generator)
                change = ascend(worst, batch, start, eps, norm, steps)
                with torch.no_grad():
                    worst(batch.replace(shift=change))
                found[place][index] = worst.outputs
    finally:
        model.train(training)
    return found


def _spoiled(
    model: Model, modality: Modality, rows: Encoded, inputs: Sequence[Any] | None, index: np.ndarray, seed: int
) -> Mapping[str, np.ndarray]:
    """Outputs (rows,K) by the name of what was done to the rows."""
    if modality.name in SPOILED:
        found = {}
        for name, spoil in SPOILED[modality.name].items():
            change = _repeated(spoil, name, seed)
            found[name] = inference.outputs(model, rows.some(np.arange(len(rows)), change), batch_size=BATCH)
        return found
    if modality.name != "text" or inputs is None:
        return {}
    texts = [misspelt(str(inputs[int(row)]), np.random.default_rng(seed_of(seed, "typos", int(row)))) for row in index]
    return {"typos": inference.outputs(model, Encoded.of(modality, model.backbone, texts), batch_size=BATCH)}


def _repeated(spoil: Callable[[Tensor, torch.Generator], Tensor], name: str, seed: int) -> Any:
    """The change of collated inputs, drawing the same for the same rows."""

    def change(inputs: dict[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed_of(seed, name, *rows))
        if "wave" in inputs:
            return {**inputs, "wave": spoil(inputs["wave"], generator)}
        return {**inputs, "pixels": spoil(inputs["pixels"], generator).clamp(0, 1)}

    return change


def _noisy(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels + NOISE * torch.randn(pixels.shape, generator=generator)


def _blurred(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """The mean of three by three pixels, borders repeated."""
    return functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _brighter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels + BRIGHTER


PIXELS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "noise": _noisy,
    "blur": _blurred,
    "brightness": _brighter,
}


def _hissing(wave: Tensor, generator: torch.Generator) -> Tensor:
    """White noise 20 dB below the row, whose filling with silence makes the noise no louder than that."""
    loudness = wave.square().mean(1, keepdim=True).sqrt()
    return wave + 0.1 * loudness * torch.randn(wave.shape, generator=generator)


SPOILED: Mapping[str, Mapping[str, Callable[[Tensor, torch.Generator], Tensor]]] = {
    "image": PIXELS,
    "audio": {"noise": _hissing},
}
"""What is done to the rows of a modality, by name."""


def misspelt(text: str, generator: np.random.Generator) -> str:
    """The text with a share of its words of four letters or more misspelt: two letters swapped, one lost or doubled."""
    words = text.split(" ")
    for place, word in enumerate(words):
        if len(word) < 4 or generator.random() >= WORDS:
            continue
        at = int(generator.integers(1, len(word) - 1))
        kind = generator.integers(3)
        middle = (word[at + 1] + word[at], word[at + 1], word[at] + word[at] + word[at + 1])[kind]
        words[place] = word[:at] + middle + word[at + 2 :]
    return " ".join(words)
