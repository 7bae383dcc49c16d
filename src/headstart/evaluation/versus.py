"""Several arms on the same rows: what each reaches, and which differences are more than chance.

All arms are resampled together: one draw of rows measures every arm and seed, so that what makes a row hard for all of
them cancels in a difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.evaluation.intervals import measured_draws, paired, percentiles

if TYPE_CHECKING:
    from headstart.protocols import Task


@dataclass(frozen=True)
class Answers:
    """What one fit answered: scores (rows,K), and the encoded targets of the same rows."""

    scores: np.ndarray
    targets: np.ndarray


Arms = Mapping[tuple[str, str], Mapping[int, Sequence[Answers]]]
"""(arm, budget) -> seed -> the answers of each fold."""


@dataclass(frozen=True)
class _Drawn:
    """by_seed: the metric of each seed; draws: the mean over seeds for each resample of the rows."""

    by_seed: np.ndarray
    draws: np.ndarray

    @classmethod
    def of(cls, task: Task, seeds: Mapping[int, Sequence[Answers]], *, same_rows: bool) -> _Drawn:
        values, draws = [], []
        for place, folds in enumerate(seeds.values()):
            scores = np.concatenate([fold.scores for fold in folds])
            targets = np.concatenate([fold.targets for fold in folds])
            value, drawn = measured_draws(task, scores, targets, seed=0 if same_rows else place)
            values.append(value)
            draws.append(drawn)
        return cls(np.array(values), np.mean(draws, axis=0))


def summarise(
    task: Task, cells: Sequence[Mapping[str, Any]], answers: Arms, *, same_rows: bool
) -> list[dict[str, Any]]:
    """One record for each arm and budget.

    mean and sd: over seeds, of the metric on all rows measured (those of all folds together). low, high: what other
    test rows would do to the mean. Costs are means over fits.
    """
    found = []
    for (arm, budget), seeds in answers.items():
        own = [cell for cell in cells if cell["arm"] == arm and cell["budget"] == budget]
        drawn = _Drawn.of(task, seeds, same_rows=same_rows)
        low, high = percentiles(drawn.draws)
        costs = ("seconds", "cpu_seconds", "peak_memory_bytes")
        found.append(
            {
                "arm": arm,
                "budget": budget,
                "rows": own[0]["rows"],
                "seeds": len(seeds),
                "mean": float(drawn.by_seed.mean()),
                "sd": float(drawn.by_seed.std(ddof=1)) if len(seeds) > 1 else None,
                "low": low,
                "high": high,
                **{key: float(np.mean([cell[key] for cell in own])) for key in costs},
                "trainable": own[0]["trainable"],
                "total": own[0]["total"],
                "bytes": own[0]["bytes"],
            }
        )
    return found


def effects(task: Task, baseline: str, answers: Arms, *, same_rows: bool) -> list[dict[str, Any]]:
    """The baseline minus every other arm at each budget.

    value, low, high, p: of the mean over seeds, paired over rows. p_holm: p corrected for the number of arms (Holm
    1979). wins: seeds on which the baseline is better; sd: of the difference over seeds.
    """
    found: list[dict[str, Any]] = []
    for budget in dict.fromkeys(budget for _, budget in answers):
        ours = _Drawn.of(task, answers[baseline, budget], same_rows=same_rows)
        records: list[dict[str, Any]] = []
        for arm in dict.fromkeys(arm for arm, _ in answers if arm != baseline):
            theirs = _Drawn.of(task, answers[arm, budget], same_rows=same_rows)
            change = ours.by_seed - theirs.by_seed
            wins = sum(task.better(a, b) for a, b in zip(ours.by_seed, theirs.by_seed, strict=True))
            records.append(
                {
                    "arm": baseline,
                    "against": arm,
                    "budget": budget,
                    **paired(float(change.mean()), ours.draws - theirs.draws),
                    "seeds": len(change),
                    "wins": int(wins),
                    "sd": float(change.std(ddof=1)) if len(change) > 1 else None,
                }
            )
        for record, corrected in zip(records, holm([record["p"] for record in records]), strict=True):
            record["p_holm"] = corrected
        found += records
    return found


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number (Holm 1979): the k-th smallest of m is multiplied by m - k + 1."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[place] = least
    return corrected
