"""Rows with a wrong label are listed, from heads that have not seen them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from headstart import label_errors, tasks
from headstart.errors import MissingExtra, SpecError
from headstart.heads import probe


def problem(rows: int = 240, classes: int = 3, flipped: int = 24, width: int = 8) -> tuple[np.ndarray, Any, set[int]]:
    """Well-parted classes, and labels of which `flipped` are wrong."""
    generator = np.random.default_rng(0)
    truth = np.arange(rows) % classes
    features = np.eye(classes, width)[truth] * 4 + generator.normal(size=(rows, width))
    wrong = set(generator.choice(rows, flipped, replace=False).tolist())
    given = [
        int((k + 1 + generator.integers(classes - 1)) % classes) if i in wrong else int(k) for i, k in enumerate(truth)
    ]
    return features.astype(np.float32), torch.tensor(given), wrong


def task(classes: int = 3, **options: Any) -> Any:
    return tasks.fit("classification", [f"c{k}" for k in range(classes)], **options)


def test_out_of_fold_answers_come_from_heads_that_have_not_seen_the_row() -> None:
    features, targets, _ = problem()
    found = probe.out_of_fold(features, targets, task(), seed=3)
    x = torch.from_numpy(features).double()
    losses, heads = [], dict[int, tuple[torch.Tensor, torch.Tensor]]()
    for c in probe.STRENGTHS:
        slow = torch.zeros(len(x), 3, dtype=torch.float64)
        for fold, (fitted, held) in enumerate(probe.folds(targets, probe.FOLDS, 3)):
            weight, bias = heads[fold] = probe.solve(x[fitted], targets[fitted], task(), c, start=heads.get(fold))
            for row in held.tolist():
                slow[row] = weight @ x[row] + bias
        losses.append((float(task().loss(slow, targets).mean()), slow))
    best = next(i for i in range(len(losses)) if i + 1 == len(losses) or losses[i + 1][0] >= losses[i][0])
    torch.testing.assert_close(found, losses[best][1].float())


def test_wrong_labels_are_listed_with_what_they_should_be() -> None:
    pytest.importorskip("cleanlab")
    features, targets, wrong = problem()
    suspects = label_errors.find(features, targets, task())
    hit = {s.position for s in suspects} & wrong
    assert len(hit) >= 20 and len(hit) / len(suspects) > 0.8
    for s in suspects:
        assert s.given == f"c{int(targets[s.position])}" and s.suggested != s.given
        assert 0 <= s.quality < s.probability <= 1
    assert [s.quality for s in suspects] == sorted(s.quality for s in suspects)
    right = [s for s in suspects if s.position in hit]
    assert np.mean([s.suggested == f"c{s.position % 3}" for s in right]) > 0.9


def test_the_tasks_own_loss_plays_no_part() -> None:
    pytest.importorskip("cleanlab")
    features, targets, _ = problem()
    plain = label_errors.find(features, targets, task())
    assert label_errors.find(features, targets, task(gce_q=0.7, label_smoothing=0.3)) == plain


def test_classes_without_enough_rows_are_left_out() -> None:
    pytest.importorskip("cleanlab")
    features, targets, _ = problem()
    targets[0] = 3  # the only row of its class; the fifth has none
    suspects = label_errors.find(features, targets, task(5))
    assert suspects and 0 not in {s.position for s in suspects}
    assert label_errors.find(features[:2], torch.tensor([0, 1]), task()) == []


def test_other_tasks_and_a_missing_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="this run is regression"):
        label_errors.require(tasks.fit("regression", [1.0, 2.5]))
    monkeypatch.setattr(label_errors, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"headstart\[labels\]"):
        label_errors.require(task())
