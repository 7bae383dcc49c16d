"""Starts of a fresh head that need no solver: class means of frozen features, and the names of the classes.

Both give each class k a unit vector u_k in the space of the backbone's features, and the linear layer

    outputs_k = x . u_k / (T r)        T: temperature, r: mean length of the training rows' features

Its largest output is that of the nearest u_k by cosine, whatever the length of x; T makes the outputs' softmax
likeliest on training rows that did not shape u (`calibration.fit_temperature`), so that the layer is of use untrained
and is a start of the right size for training.

    prototypes   u_k = mean of the normalised features of class k, normalised (Snell et al. 2017, section 2.2: for their
                 squared Euclidean distance |x - c|^2 = |x|^2 - 2 x.c + |c|^2 the layer is w = 2c, b = -|c|^2; section
                 2.4. With rows and means of length 1 the first and the last term are the same for every class.)
    names        u_k = normalised features of a sentence that holds the class's name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headstart.errors import SpecError
from headstart.evaluation.calibration import fit_temperature
from headstart.protocols import Task

TYPICAL = 0.1
"""The temperature of cosines that counts as likeliest before any row is seen."""

NUMBER = re.compile(r"[\s+\-_.,#%\d]*\d[\s+\-_.,#%\d]*")
SEAM = re.compile(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Start:
    """weight: (K,D), bias: (K,) zeros, score: the task's metric on training rows that did not shape it, if any."""

    weight: Tensor
    bias: Tensor
    score: float | None
    temperature: float


def prototypes(features: np.ndarray, targets: Tensor, task: Task) -> Start:
    """The layer of the nearest class mean; features (n,D), targets (n,) int64.

    A row is measured against the mean of its class without itself; a class's only row is left out of that.
    """
    x = _unit(features)
    member = torch.nn.functional.one_hot(targets, task.outputs).double()
    sums = member.T @ x
    cosines = x @ torch.nn.functional.normalize(sums, dim=1).T
    others = torch.nn.functional.normalize(sums[targets] - x, dim=1)
    cosines[torch.arange(len(x)), targets] = (x * others).sum(1)
    kept = member.sum(0)[targets] > 1
    return _start(torch.nn.functional.normalize(sums, dim=1), cosines[kept], targets[kept], features, task)


def names(named: np.ndarray, features: np.ndarray, targets: Tensor, task: Task) -> Start:
    """The layer of the nearest name; named (K,D), features (n,D) of the training rows, targets (n,) int64."""
    directions = _unit(named)
    return _start(directions, _unit(features) @ directions.T, targets, features, task)


def _start(directions: Tensor, cosines: Tensor, targets: Tensor, features: np.ndarray, task: Task) -> Start:
    temperature = TYPICAL * fit_temperature(cosines / TYPICAL, targets)
    length = max(float(np.linalg.norm(features.astype(np.float64), axis=1).mean()), 1e-12)
    score = None
    if len(targets):
        scores = task.scores((cosines / temperature).float())
        score = task.measure(scores.numpy(), targets.numpy())[task.metric]
    weight = directions / (temperature * length)
    return Start(weight.float(), torch.zeros(task.outputs), score, temperature)


def _unit(features: np.ndarray) -> Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(np.ascontiguousarray(features)).double(), dim=1)


def spoken(label: str) -> str:
    """A label as people say it: underscores and CamelCase become spaces ('card_arrival', 'VeryGood')."""
    return " ".join(SEAM.sub(" ", label.replace("_", " ")).split())


def named(labels: Sequence[str]) -> bool:
    """Whether every label is more than a bare number."""
    return all(spoken(label) and not NUMBER.fullmatch(label) for label in labels)


def sentences(labels: Sequence[str], template: str, asked: str) -> list[str]:
    """One sentence a label. asked: the key that asks for them, for the error.

    Raises SpecError for labels that are bare numbers, since a number says nothing of what its class is about.
    """
    for label in labels:
        if not named([label]):
            raise SpecError(
                f"{asked} needs labels with names, received the label '{label}': "
                f"write what each class is called into the label column, or leave {asked} out"
            )
    return [template.replace("{name}", spoken(label)) for label in labels]


def rows(labels: Sequence[str], targets: Tensor, template: str) -> list[tuple[int, str]]:
    """A row a class that says its name, as (number, text): it takes the label, weight and origin of that training row.

    targets: (N,) class numbers of the training rows; the first of each class is the one.
    """
    texts = sentences(labels, template, "training.name_rows")
    return [(int((targets == k).nonzero()[0]), text) for k, text in enumerate(texts)]
