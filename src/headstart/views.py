"""Test-time augmentation: the mean of a model's answers over augmented views of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from headstart import catalog, inference
from headstart.encoded import Encoded
from headstart.errors import SpecError
from headstart.hooks import Hooks
from headstart.model import Model
from headstart.protocols import Method, Modality, Task
from headstart.values import Batch

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "image": {"flip": 0.5, "crop": 0.8},
    "audio": {"bands": 0, "gaps": 0, "share": 1.0},
    "text": {"drop": 0.1, "delete": 0, "swap": 0, "insert": 0, "synonym": 0, "share": 1.0},
}
"""Options of `augment` by modality, for models that were trained without it: what keeps nearly every label."""


def augmentation(modality: Modality, specs: Sequence[Mapping[str, Any]]) -> Method:
    """`augment` with the options that the model was trained with, the last where there are several, else a mild one.

    Views are drawn anew, however many a picture had in training.
    """
    own = [spec["options"] for spec in specs if spec["name"] == "augment"]
    options = {**(own[-1] if own else DEFAULTS.get(modality.name, {}))}
    options.pop("views", None)
    method: Method = catalog.find("methods", "augment")(**options)
    return method


def averaged(
    model: Model,
    task: Task,
    modality: Modality,
    inputs: Sequence[Any],
    specs: Sequence[Mapping[str, Any]],
    temperature: float,
    views: int,
    seed: int,
) -> np.ndarray:
    """Mean scores (rows,K) over `views` views of each row, of which the first is the row as it is.

    specs: the methods that the model was trained with. Draws depend on the seed, the view and the batch, so the same
    rows in the same order get the same answers.

    Raises SpecError for fewer than one view, MethodError for a modality that `augment` does not know.
    """
    if type(views) is not int or views < 1:
        raise SpecError(f"expected tta to be a whole number of at least 1, received {views!r}; such as tta=8")
    method = augmentation(modality, specs)
    hooks = Hooks({"augment": method}, task, modality, seed)
    method.adapt(model, hooks.context("augment", "adapt"))

    def change(batch: Batch, view: int, number: int) -> Batch:
        return method.transform(batch, hooks.context("augment", "view", view, number))

    def score(outputs: torch.Tensor) -> torch.Tensor:
        return task.scores(outputs, temperature)

    return inference.averaged(model, Encoded.of(modality, model.backbone, inputs), score, change, views)
