"""What each stage of a run is going to do and cost, tried on a copy of the model before anything is spent."""

from __future__ import annotations

import dataclasses
import functools

from headstart import planning
from headstart.parts import cuts
from headstart.running import set_modes
from headstart.spec import StageSpec, TrainingSpec
from headstart.stages import PROBE_ROWS, Stages
from headstart.steps import costing
from headstart.steps.precision import Precision


def describe(stages: Stages, asked: tuple[StageSpec, ...], *, timed: bool) -> list[planning.StagePlan]:
    """Each stage's plan. Surgery is tried on a copy of the model, so that what learns is counted, not guessed.

    timed: some batches are run to estimate time and memory, with gradients for what learns only.
    """
    found, fresh, train_rows = [], stages.fresh_head, stages.train_rows
    for stage in asked:
        trial, methods, learning, prefix = stages.trial(stage)
        training = stages.stats(stages.training(stage), methods)
        epochs = planning.choose_epochs(training, len(train_rows))
        named = "fp32" if training.precision == "auto" else training.precision
        chosen, costs, settled, once = Precision(named), None, None, None
        if timed and training.optimizer == "lbfgs":
            chosen = stages.answers(train_rows)
            costs = costing.measure(trial, train_rows, training, precision=chosen.name, backward=False)
        elif timed:
            settled = stages.settle(stage, training, trial, methods)
            chosen, prefix.precision = settled.precision, settled.precision.name
            set_modes(trial, keep_stats=training.running_stats == "keep")
            once = prefix.foreseen(trial, epochs)
            apart = training.parts == "auto" and stages.device.type == "cpu" and not prefix.hooks.rows_meet()
            costs = costing.measure(
                trial, train_rows, training, precision=chosen.name, backward=True,
                step=settled.ways.step(trial), bottom=once and once[1],
                apart=apart and cuts(trial, train_rows.batch([0])),
            )  # fmt: skip
            costs = dataclasses.replace(costs, kept=settled.memory.kept)
        start = 0.0
        if costs and (fresh or training.optimizer == "lbfgs"):  # a probe is solved whatever came before
            rows = train_rows, stages.validation
            answer = functools.partial(_answer, stages, training, costs, chosen)
            start = costing.head(stages.model.backbone.width, *rows, stages.task, training, answer, PROBE_ROWS)
        fresh = False
        described = planning.describe_stage(
            stage.name, methods, training, precision=chosen, costs=costs, start=start,
            versions=prefix.hooks.versions(),
            rows=len(train_rows), validated=len(stages.validation or ()),
            epochs=epochs, rate=planning.choose_rate(training, methods, stages.modality.name),
            trainable=sum(p.numel() for p in learning),
            total=sum(p.numel() for p in trial.parameters()),
            ways=() if settled is None else (*settled.said(), *(once or ())[:1]),
        )  # fmt: skip
        if settled is not None:
            stages.settled[stage.name] = dataclasses.replace(settled, seconds=described.seconds)
        found.append(described)
    return found


def _answer(stages: Stages, training: TrainingSpec, costs: costing.Costs, chosen: Precision) -> float:
    """Seconds of a row's frozen features, which run in bf16 where answers do, though steps may be faster in fp32."""
    answered = stages.answers(stages.train_rows).name
    if chosen.name != "fp32" or answered == "fp32":
        return costs.bottom + costs.answer
    return costing.measure(stages.model, stages.train_rows, training, precision=answered, backward=False).answer
