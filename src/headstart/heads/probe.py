"""The linear probe: a linear head solved exactly on frozen features, its strength chosen on rows it has not seen.

The objective is the task's own loss, so one solver serves classes, several labels and regression:

    min_W,b  1/n sum_i loss(W z_i + b, y_i) + l2/2 |W|^2        z = (x - mean) / (sd * sqrt(D))

Features are standardised one by one and scaled to a mean square norm of 1, which is folded back into W and b: the
problem is well conditioned, and one grid of strengths serves every backbone. C = 1 / (n * l2) is the inverse strength
of scikit-learn's LogisticRegression. Solved by L-BFGS (Liu & Nocedal 1989), full batch, float64, each strength from
where the one before ended. Large problems are tried in float32, each strength for some steps, which is near enough to
choose by; the chosen one is then solved on in float64.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headstart import products
from headstart.protocols import Task

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Values of C that are tried, simplest model first; on Banking77 the best are 10 (all rows) and 30 (10 a class)."""

FLAT = 0.1
"""A feature's sd counts as at least this share of the root mean square sd, lest a nearly constant one be blown up."""

FOLDS = 5
"""Folds of the cross-validation that chooses C where no validation rows are given."""

STEPS, STEPS_LARGE, STEPS_LAST = 40, 24, 15
"""Steps of the solver that a strength takes, on the mean over strengths, and its share of a last solution: 20 to 60
evaluations on 150 to 4,500 texts in 5 or 77 classes, `TRIED` and some on a large problem, 60 to 150 for the last."""

TRIED = 20
"""Steps of a strength that is tried on a large problem. On Banking77 accuracies are then within two rows of 1,003 of
those at the solution, and the path takes a third of the time."""

HISTORY, HISTORY_LARGE = 100, 30
"""Steps that the solver knows the curvature from, and those in float32."""

FEW_NUMBERS, ROWS_A_STEP = 2**13, 20
"""Numbers that are solved for up to which all of that history is free. Going through one step of it took as long as an
evaluation on a tenth of a row or so; of more numbers it has a step for so many rows, which was 1.5 to 2.5 times as fast
on 120 to 360 rows of 77 classes."""

TIMED_ROWS, TIMED_STEPS = 1024, 30
"""Rows and steps of a problem that is timed for an estimate."""

ITERATIONS = 200
TOLERANCE = 1e-6

LARGE = 2**25
"""Products (rows times D times K) of a pass from which strengths are tried in float32; below, float64 costs nothing."""

BLOCK = 2**16
"""Raw outputs (rows times K) that are worked on at a time: what the objective needs beside x does not grow with it."""


@dataclass(frozen=True)
class Probe:
    """weight: (K,D), bias: (K,), c: the chosen strength, score: the task's metric on rows not fitted, outputs: theirs.

    Of several tasks each is solved on its own rows, and c is one strength a task by name.
    held_out: (rows,K) raw outputs on the validation rows, or out-of-fold on the training rows.
    """

    weight: Tensor
    bias: Tensor
    c: float | Mapping[str, float]
    score: float
    held_out: Tensor


def fit(
    features: np.ndarray,
    targets: Tensor,
    task: Task,
    validation: tuple[np.ndarray, Tensor] | None = None,
    extra: tuple[np.ndarray, Tensor] | None = None,
    *,
    seed: int = 0,
) -> Probe:
    """Solve the probe for each strength, keep the one that is best on the validation rows or across folds.

    features: (n,D) float32; targets as the task encodes them; validation: the same pair for rows to choose on.
    extra: rows that are always fitted and never held out, such as texts made of the classes' names.
    """
    if task.members:
        return _each(features, targets, task, validation, seed)
    x, rows = torch.from_numpy(np.ascontiguousarray(features)).double(), len(features)
    if extra is not None:
        x = torch.cat([x, torch.from_numpy(np.ascontiguousarray(extra[0])).double()])
        targets = torch.cat([targets, extra[1]])
    if validation is not None:
        held_x, held_y = torch.from_numpy(np.ascontiguousarray(validation[0])).double(), validation[1]
        found = list(_path(x, targets, task))
        answers = [held_x @ weight.T + bias for weight, bias in found]
        best, score = _choose(task, answers, held_y)
        weight, bias = found[best]
        if _large(x, task):
            weight, bias = solve(x, targets, task, STRENGTHS[best], start=(weight, bias))
            answers = [held_x @ weight.T + bias]
            score = _choose(task, answers, held_y)[1]
            return Probe(weight.float(), bias.float(), STRENGTHS[best], score, answers[0].float())
        return Probe(weight.float(), bias.float(), STRENGTHS[best], score, answers[best].float())
    always = torch.arange(rows, len(x))
    parts = [(torch.cat([fitted, always]), held) for fitted, held in folds(targets[:rows], FOLDS, seed)]
    answers = [answer[:rows] for answer in _crossed(x, targets, task, parts)]
    best, score = _choose(task, answers, targets[:rows])
    weight, bias = solve(x, targets, task, STRENGTHS[best])
    return Probe(weight.float(), bias.float(), STRENGTHS[best], score, answers[best].float())


def _each(
    features: np.ndarray, targets: Tensor, task: Task, validation: tuple[np.ndarray, Tensor] | None, seed: int
) -> Probe:
    """The probes of several tasks side by side, each on its own rows; a task without validation rows takes folds."""
    held_targets = targets if validation is None else validation[1]
    weight, bias = torch.zeros(task.outputs, features.shape[1]), torch.zeros(task.outputs)
    held_out = torch.zeros(len(held_targets), task.outputs)
    strengths: dict[str, float] = {}
    for member in task.members:
        rows, held_rows, held = member.rows(targets), member.rows(held_targets), None
        if validation is not None and bool(held_rows.any()):
            held = (validation[0][held_rows.numpy()], member.own(held_targets[held_rows]))
        found = fit(features[rows.numpy()], member.own(targets[rows]), member.task, held, seed=seed)
        weight[member.columns], bias[member.columns] = found.weight, found.bias
        strengths[member.name] = float(found.c)  # type: ignore[arg-type]
        if validation is None or held is not None:
            held_out[held_rows.nonzero(), torch.arange(task.outputs)[member.columns]] = found.held_out
    scores = task.scores(held_out).numpy()
    return Probe(weight, bias, strengths, task.measure(scores, held_targets.numpy())[task.metric], held_out)


def expected(width: int, targets: Tensor, task: Task, *, crossed: bool, extra: int = 0) -> float:
    """Seconds that `fit` will take: a few steps of the solver are timed. crossed: whether it goes over folds.

    extra: how many rows are always fitted beside these.
    Several tasks are not estimated, and count nothing.
    """
    if task.members:
        return 0.0
    rows = max(1, len(targets) * (FOLDS - 1) // FOLDS if crossed else len(targets)) + extra
    own = targets[: min(rows, TIMED_ROWS)]
    large = rows * width * task.outputs >= LARGE
    x = torch.randn(len(own), width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spent = 0.0
    for count in (1, TIMED_STEPS):  # the first warms up
        started = time.perf_counter()
        solve(x, own, task, 1.0, dtype=torch.float32 if large else torch.float64, steps=count)
        spent = time.perf_counter() - started
    each = (STEPS_LARGE if large else STEPS) * (FOLDS if crossed else 1) + (STEPS_LAST if crossed or large else 0)
    return spent / TIMED_STEPS * rows / len(own) * each * len(STRENGTHS)


def out_of_fold(features: np.ndarray, targets: Tensor, task: Task, *, seed: int = 0) -> Tensor:
    """(n,K) raw outputs on the rows themselves, each by a head that has not seen it.

    Here probabilities are wanted, not the best answers: the strength is that of the lowest loss across folds. They are
    tried simplest first, until the loss rises.
    """
    x = torch.from_numpy(np.ascontiguousarray(features)).double()
    parts = list(folds(targets, FOLDS, seed))
    heads: list[tuple[Tensor, Tensor] | None] = [None] * len(parts)
    best, lowest = torch.zeros(len(x), task.outputs, dtype=torch.float64), float("inf")
    for c in STRENGTHS:
        answer = torch.zeros_like(best)
        for place, (fitted, held) in enumerate(parts):
            # Only heads are kept between strengths: rows and solvers of all folds at once are several times as large.
            weight, bias = heads[place] = solve(x[fitted], targets[fitted], task, c, start=heads[place])
            answer[held] = x[held] @ weight.T + bias
        loss = float(task.loss(answer, targets).mean())
        if loss >= lowest:
            break
        best, lowest = answer, loss
    return best.float()


def _crossed(x: Tensor, targets: Tensor, task: Task, parts: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """For each strength the raw outputs of every row by the head of its fold, float64."""
    answers = [torch.zeros(len(x), task.outputs, dtype=torch.float64) for _ in STRENGTHS]
    for fitted, held in parts:
        for answer, (weight, bias) in zip(answers, _path(x[fitted], targets[fitted], task), strict=True):
            answer[held] = x[held] @ weight.T + bias
    return answers


def _history(rows: int, numbers: int) -> int:
    return HISTORY if numbers <= FEW_NUMBERS else min(HISTORY, max(8, rows // ROWS_A_STEP))


def _large(x: Tensor, task: Task) -> bool:
    return x.numel() * task.outputs >= LARGE


def _path(x: Tensor, targets: Tensor, task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """W and b for one strength after the other, float64; of a large problem near enough to choose by."""
    large = _large(x, task)
    problem = _Problem(x, targets, task, torch.float32 if large else torch.float64)
    for c in STRENGTHS:
        problem.solve(c, TRIED if large else ITERATIONS)
        yield problem.found()


def solve(
    x: Tensor,
    targets: Tensor,
    task: Task,
    c: float,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    steps: int = ITERATIONS,
) -> tuple[Tensor, Tensor]:
    """W (K,D) and b (K,) float64 for one strength; x (n,D) float64. start: W and b to go on from, else zeros.

    dtype: what it is computed in. In float32 it stops where that can tell no better from worse. steps: at most.
    """
    problem = _Problem(x, targets, task, dtype, start)
    problem.solve(c, steps)
    return problem.found()


class _Problem:
    """One problem to be solved for one strength after the other, each from where the one before ended."""

    def __init__(
        self, x: Tensor, targets: Tensor, task: Task, dtype: torch.dtype, start: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.task, self.rows, self.l2 = task, len(x), 0.0
        self.mean = x.mean(0)
        spread = (x - self.mean).square().mean(0).sqrt()
        floor = (FLAT * spread.square().mean().sqrt()).clamp_min(1e-12)
        self.scale = spread.clamp_min(floor) * x.shape[1] ** 0.5
        self.weight = torch.zeros(task.outputs, x.shape[1], dtype=dtype)
        self.bias = torch.zeros(task.outputs, dtype=dtype)
        if start is not None:
            self.weight, self.bias = (start[0] * self.scale).to(dtype), (start[1] + start[0] @ self.mean).to(dtype)
        self.weight.requires_grad_(True)
        self.bias.requires_grad_(True)
        exact = dtype == torch.float64
        self.optimiser = torch.optim.LBFGS(
            [self.weight, self.bias],
            tolerance_grad=TOLERANCE,
            tolerance_change=1e-10 if exact else 1e-7,
            history_size=_history(len(x), self.weight.numel()) if exact else HISTORY_LARGE,
            line_search_fn="strong_wolfe",
        )
        own = targets.to(dtype) if targets.is_floating_point() else targets
        z, size = ((x - self.mean) / self.scale).to(dtype), max(1, BLOCK // task.outputs)
        self.blocks = list(zip(z.split(size), own.split(size), strict=True))

    def solve(self, c: float, steps: int) -> None:
        """Go on to the solution for this strength, at most so many steps.

        What the solver knows of the curvature stays: strengths change it by a multiple of one.
        """
        self.l2 = 1.0 / (c * self.rows)
        state = self.optimiser.state[self.weight]
        if "d" in state:  # the last step counts as none: gradients before and after it are of two problems
            state["d"].zero_()
        self.optimiser.param_groups[0].update(max_iter=steps, max_eval=steps * 5 // 4)
        with _flushed():
            self.optimiser.step(self._objective)

    def found(self) -> tuple[Tensor, Tensor]:
        """W and b, float64."""
        folded = self.weight.detach().double() / self.scale
        return folded, self.bias.detach().double() - folded @ self.mean

    def _objective(self) -> Tensor:
        self.optimiser.zero_grad()
        value: Tensor = 0.5 * self.l2 * self.weight.square().sum()
        value.backward()
        value = value.detach()
        for rows, own in self.blocks:
            part: Tensor = self.task.loss(products.linear(rows, self.weight, self.bias), own).sum() / self.rows
            part.backward()
            value += part.detach()
        return value


@contextmanager
def _flushed() -> Iterator[None]:
    """Inside, numbers too small for float32's full precision (below 1e-38) count as zero, in this thread.

    Probabilities of classes that are out of the question are such numbers, and processors are far slower on them.
    """
    before = float(torch.tensor(1e-39) * 1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def folds(targets: Tensor, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(fitted, held out) row indices; classes are spread evenly over the folds."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(targets))
    if targets.ndim == 1 and not targets.is_floating_point():
        order = order[np.argsort(targets.numpy()[order], kind="stable")]
    fold = np.empty(len(targets), dtype=np.int64)
    fold[order] = np.arange(len(targets)) % max(2, min(count, len(targets)))
    for number in range(int(fold.max()) + 1):
        yield torch.from_numpy(np.flatnonzero(fold != number)), torch.from_numpy(np.flatnonzero(fold == number))


def _choose(task: Task, answers: list[Tensor], targets: Tensor) -> tuple[int, float]:
    """The strength with the best held-out metric, the lower loss among equals, and that metric.

    The loss alone would pick a stronger head, which all but knows its training rows by heart: a poor place to start.
    """
    double = targets.double() if targets.is_floating_point() else targets
    found: list[tuple[float, float]] = []
    for answer in answers:
        measured = task.measure(task.scores(answer.float()).numpy(), targets.numpy())[task.metric]
        found.append((measured, float(task.loss(answer, double).mean())))
    best = 0
    for position, (measured, loss) in enumerate(found):
        held = found[best]
        if task.better(measured, held[0]) or (measured == held[0] and loss < held[1]):
            best = position
    return best, found[best][0]
