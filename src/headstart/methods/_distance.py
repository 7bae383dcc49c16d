"""How far apart two answers are, row by row, whatever the task."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from headstart.protocols import Task


def divergence(a: Tensor, b: Tensor, task: str) -> Tensor:
    """(N,). KL(p || q) of the answers p of outputs a and q of outputs b, each (N,K).

    Several labels a row are one Bernoulli distribution each, and their mean is taken; regression answers are Gaussians
    of unit variance, for which it is half the squared difference, and the mean over targets is taken.
    """
    if task == "regression":
        return 0.5 * (a - b).square().mean(1)
    if task == "multilabel":
        have = a.sigmoid() * (functional.logsigmoid(a) - functional.logsigmoid(b))
        lack = (-a).sigmoid() * (functional.logsigmoid(-a) - functional.logsigmoid(-b))
        return (have + lack).mean(1)
    p, q = functional.log_softmax(a, 1), functional.log_softmax(b, 1)
    return (p.exp() * (p - q)).sum(1)


def symmetric(a: Tensor, b: Tensor, task: str) -> Tensor:
    """(N,). KL(p || q) + KL(q || p), which is sum_k (p_k - q_k) (log p_k - log q_k)."""
    if task == "regression":
        return (a - b).square().mean(1)
    if task == "multilabel":
        return ((a.sigmoid() - b.sigmoid()) * (a - b)).mean(1)
    p, q = functional.log_softmax(a, 1), functional.log_softmax(b, 1)
    return ((p.exp() - q.exp()) * (p - q)).sum(1)


def of_task(distance: Callable[[Tensor, Tensor, str], Tensor], a: Tensor, b: Tensor, task: Task) -> Tensor:
    """(N,). A distance of two answers to a task; of several tasks the mean of theirs: every head answers every row."""
    if not task.members:
        return distance(a, b, task.name)
    each = [distance(a[:, own.columns], b[:, own.columns], own.task.name) for own in task.members]
    return torch.stack(each).mean(0)
