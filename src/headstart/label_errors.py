"""Training rows whose label looks wrong, found by confident learning on the frozen features.

Each row is judged by linear heads that have not seen it (`probe.out_of_fold`), so that a wrong label cannot have been
learned by heart. Which of the disagreements are likely errors is decided by cleanlab (Northcutt et al. 2021).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart import tasks
from headstart.errors import MissingExtra, SpecError
from headstart.heads import probe
from headstart.protocols import Task


@dataclass(frozen=True)
class Suspect:
    """A row worth a look. position: in the training rows. given: its label. suggested: the likeliest other one.

    probability: of the suggested label. quality: probability of the given one, cleanlab's self-confidence.
    """

    position: int
    given: str
    suggested: str
    probability: float
    quality: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def require(task: Task) -> None:
    """Raises SpecError for a task without one label a row, MissingExtra without cleanlab."""
    if task.name != "classification":
        raise SpecError(
            f"data.check_labels looks for wrong labels where each row has one of several, this run is {task.name}; "
            f"leave it out"
        )
    if find_spec("cleanlab") is None:
        raise MissingExtra("cleanlab", "labels", "data.check_labels")


def find(features: np.ndarray, targets: Tensor, task: Task, *, seed: int = 0) -> list[Suspect]:
    """The suspects, the likeliest error first. features: (n,D) frozen; targets: (n,) int64 as the task encodes them.

    The loss is plain cross-entropy whatever the task's own is: probabilities shall be those of the rows at hand. Rows
    of a class with one row are left out, as no head could know the class without them.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    counts = np.bincount(targets.numpy(), minlength=task.outputs)
    present = np.flatnonzero(counts > 1)
    rows = np.flatnonzero(counts[targets.numpy()] > 1)
    if len(present) < 2:
        return []
    given = np.searchsorted(present, targets.numpy()[rows])
    names = [task.labels[k] for k in present]
    plain = tasks.fit("classification", [names[k] for k in given], labels=names)
    outputs = probe.out_of_fold(features[rows], torch.from_numpy(given), plain, seed=seed)
    probabilities = torch.softmax(outputs.double(), 1).numpy()
    wrong = find_label_issues(given, probabilities, n_jobs=1)
    quality = get_label_quality_scores(given, probabilities)
    suggested = probabilities.argmax(1)
    listed = np.flatnonzero(wrong & (suggested != given))
    return [
        Suspect(
            position=int(rows[at]),
            given=names[given[at]],
            suggested=names[suggested[at]],
            probability=float(probabilities[at, suggested[at]]),
            quality=float(quality[at]),
        )
        for at in listed[np.argsort(quality[listed], kind="stable")]
    ]
