"""Few-shot draws: the same rows for every method that is compared."""

from __future__ import annotations

import numpy as np
import pandas as pd


def draw(frame: pd.DataFrame, per_class: int, seed: int) -> pd.DataFrame:
    """Take ``per_class`` rows of each label, without replacement.

    The labels are visited in sorted order and one generator seeded with ``seed`` serves
    them all, so the same frame, count and seed always give the same rows in the same
    order. The index is reset; ``frame`` is not changed.
    """
    rng = np.random.default_rng(seed)
    labels = frame["label"].to_numpy()
    taken = []
    for label in sorted(frame["label"].unique()):
        rows = np.flatnonzero(labels == label)
        if len(rows) < per_class:
            raise ValueError(f"label {label!r} has {len(rows)} rows, {per_class} were asked for")
        taken.append(rng.choice(rows, size=per_class, replace=False))
    return frame.iloc[np.concatenate(taken)].reset_index(drop=True)
