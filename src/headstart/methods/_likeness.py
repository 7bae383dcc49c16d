"""How far a student's answers are from its teacher's: the terms of distillation, each over the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from headstart.protocols import Task

SMALLEST = 1e-12

RELATED = 64
"""Rows of a micro-batch whose relations are compared at most: triples grow with their third power."""


def outputs(student: Tensor, teacher: Tensor, temperature: float, task: Task) -> Tensor:
    """(N,): T^2 times the divergence of softened answers (N,K) from the teacher's; a regression's own loss."""
    if task.name == "regression":
        return task.loss(student, teacher)
    mine, theirs = student / temperature, teacher / temperature
    if task.name == "multilabel":
        share = theirs.sigmoid()
        gap = share * (functional.logsigmoid(theirs) - functional.logsigmoid(mine))
        gap = gap + (1 - share) * (functional.logsigmoid(-theirs) - functional.logsigmoid(-mine))
        return temperature**2 * gap.mean(1)
    log_share = theirs.log_softmax(1)
    return temperature**2 * (log_share.exp() * (log_share - mine.log_softmax(1))).sum(1)


def directions(student: Tensor, teacher: Tensor) -> Tensor:
    """(...): the squared distance of two vectors (...,D), each divided by its length."""
    gap = functional.normalize(student, dim=-1) - functional.normalize(teacher, dim=-1)
    return gap.square().sum(-1)


def attentions(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """(N,): the divergence of attention maps (N,heads,T,T), mean over heads and tokens that count (N,T)."""
    logs = teacher.clamp_min(SMALLEST).log() - student.clamp_min(SMALLEST).log()
    each = (teacher * logs).sum(-1).mean(1)
    return (each * mask).sum(1) / mask.sum(1).clamp_min(1)


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """A scalar: the Huber loss of relative distances plus twice that of angles, over pairs and triples of rows."""
    mine, theirs = student[:RELATED], teacher[:RELATED]
    rows = len(mine)
    if rows < 2:
        return mine.sum() * 0.0
    other = ~torch.eye(rows, dtype=torch.bool, device=mine.device)
    gaps, wanted = _differences(mine), _differences(theirs)
    near, far = (_relative(value, other) for value in (gaps, wanted))
    loss = functional.smooth_l1_loss(near, far)
    if rows < 3:
        return loss
    # Angles at row j between rows i and k, all three different.
    triples = other[:, :, None] & other[:, None, :] & other[None]
    angles, ideal = (_angles(value)[triples] for value in (gaps, wanted))
    return loss + 2 * functional.smooth_l1_loss(angles, ideal)


def _differences(rows: Tensor) -> Tensor:
    """(N,N,D): row i minus row j at [j,i]."""
    return rows[None] - rows[:, None]


def _relative(gaps: Tensor, other: Tensor) -> Tensor:
    """The distance of each pair, divided by the mean distance."""
    distances = gaps[other].square().sum(-1).clamp_min(SMALLEST).sqrt()
    return distances / distances.mean()


def _angles(gaps: Tensor) -> Tensor:
    """(N,N,N): the cosine of the angle at row j between rows i and k, at [j,i,k]."""
    unit = functional.normalize(gaps, dim=-1)
    return unit @ unit.transpose(1, 2)


def mean(values: Sequence[Tensor]) -> Tensor:
    """The mean of equal shapes."""
    return torch.stack(list(values)).mean(0)
