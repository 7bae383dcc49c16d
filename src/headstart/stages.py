"""A sequence of runs on one model: each stage starts from the one before it, and its result can be kept."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart import bundle, inference, label_errors, planning, settings
from headstart.encoded import Encoded, seed_of
from headstart.errors import SpecError
from headstart.evaluation.calibration import temperature_of
from headstart.fitted import make_task, make_tasks
from headstart.frozen.prefix import Prefix
from headstart.heads import probe, starts
from headstart.hooks import Hooks, make_methods, own_passes
from headstart.loop import Listener, Loop
from headstart.model import Model
from headstart.protocols import Method, Modality, Task
from headstart.running import has_statistics, twin
from headstart.spec import MethodSpec, Spec, StageSpec, TaskSpec, TrainingSpec
from headstart.steps import answering, costing, precision
from headstart.steps.precision import Precision
from headstart.steps.ways import Settled, told

Methods = Mapping[str, Method]

PROBE_ROWS = 20_000
"""Rows that a fresh head's probe is solved on at most: more changes a linear head little and costs a pass each."""

HEAD_ROWS = 4096
"""Rows whose features go through the head at a time."""


@dataclass
class StageResult:
    """What a stage leaves. score: the validation metric, or across folds for an exact probe without validation rows."""

    name: str
    score: float | None
    seconds: float
    rows_trained: int
    trainable: int
    stopped: str
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)


@dataclass
class Stages:
    """Runs stages on one model and remembers frozen features while the backbone has not changed."""

    spec: Spec
    task: Task
    modality: Modality
    model: Model
    train_rows: Encoded
    validation: Encoded | None
    labels: list[Any]
    device: torch.device
    inputs: Sequence[Any] = ()
    """The raw training rows, for methods that make more of them."""

    fresh_head: bool = True
    untouched: bool = True
    """Whether the backbone still has the weights it was loaded with, so that cached features hold."""

    listen: Listener = lambda event, figures: None
    methods: dict[str, Method] = field(default_factory=dict)
    remaining: list[MethodSpec] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    unlabelled: Encoded | None = None
    features: dict[str, np.ndarray] = field(default_factory=dict)
    measured: dict[str, Precision] = field(default_factory=dict)
    """What `training.precision` has become, by its setting."""

    answered: Precision | None = None
    """What `training.precision = auto` has become for passes that only answer, once there were rows enough to try."""

    settled: dict[str, Settled] = field(default_factory=dict)
    """How the steps of stages are made, by name."""

    suspects: list[label_errors.Suspect] = field(default_factory=list)
    """Training rows whose label looks wrong, the likeliest first."""

    parent: str | None = None
    """The lineage of the finished model that they go on from."""

    def go_on(self, saved: bundle.Bundle) -> None:
        """Take over what a finished model brings beside its network, which `model` already is."""
        self.remaining = [MethodSpec(**method) for method in saved.record["surgery"]]
        self.files = dict(saved.files)
        self.fresh_head = self.untouched = False
        self.parent = saved.record["lineage"]["id"]

    def copy(self) -> Stages:
        """The stages as they are now, with a model of their own."""
        frozen = copy.copy(self)
        frozen.model = twin(self.model)  # type: ignore[assignment]
        frozen.remaining, frozen.files = list(self.remaining), dict(self.files)
        return frozen

    def training(self, stage: StageSpec) -> TrainingSpec:
        """The run's training section with the stage's changes."""
        return TrainingSpec.model_validate({**self.spec.training.model_dump(), **stage.training})

    def stage_task(self, stage: StageSpec) -> Task:
        """The task with the stage's loss options."""
        metric = self.training(stage).metric
        if self.task.members:
            kinds = {m.name: m.task.name for m in self.task.members}
            columns = {m.name: m.task.labels for m in self.task.members}
            return make_tasks(kinds, self.labels, self.spec, metric, columns)
        options = TaskSpec.model_validate({**self.spec.task.model_dump(), **stage.task})
        return make_task(self.task.name, self.labels, options, metric, self.task.labels)

    def check(self, stage: StageSpec) -> tuple[dict[str, Method], Hooks]:
        """Methods and their legality, before anything is spent."""
        if self.spec.data.check_labels:
            label_errors.require(self.task)
        methods = make_methods(stage.methods)
        seed = seed_of(self.spec.training.seed, stage.name)
        hooks = Hooks(
            methods, self.stage_task(stage), self.modality, seed, unlabelled=self.unlabelled, bundle=bundle.load
        )
        training = self.training(stage)
        known = self.spec.backbone.pretrained
        settings.check(training, methods, self.model, self.task, self.modality, pretrained=known)
        if training.optimizer == "lbfgs" and (
            len(methods) != 1 or getattr(methods.get("freeze"), "probe", False) is not True
        ):
            raise SpecError(
                f"stage '{stage.name}': optimizer = 'lbfgs' solves a linear head on frozen features, so its one method "
                f"must be freeze:probe; received {[str(m) for m in stage.methods]}"
            )
        return methods, hooks

    def run(
        self, stage: StageSpec, *, checkpoint: Path | None, identity: str, resume: bool, deadline: float | None
    ) -> StageResult:
        """Do one stage. `self.model` is the result."""
        started = time.monotonic()
        methods, hooks = self.check(stage)
        training = self.training(stage)
        torch.manual_seed(seed_of(training.seed, stage.name, "start"))
        result = self._probe(stage, training) if training.optimizer == "lbfgs" else None
        if result is None:
            result = self._learn(stage, training, methods, hooks, checkpoint, identity, resume, deadline)
        self.methods = methods
        for name, method in methods.items():
            if method.remains():
                self.remaining.append(MethodSpec(name=name, options=method.options()))
            self.files.update(method.artefacts())
            for note in method.notes():
                result.notes.append(note)
                self.listen("note", {"text": note})
        self.fresh_head = False
        result.seconds = time.monotonic() - started
        return result

    def _set_head(self, weight: Tensor, bias: Tensor) -> None:
        head = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        self.model.head = head.to(self.device)

    def _start_head(self, stage: StageSpec, training: TrainingSpec) -> dict[str, Any]:
        """Give a fresh head its start on frozen features; what is worth saying of it."""
        if training.head == "probe":
            solved = self._probe(stage, training)
            return {"start": "probe", "score": solved.score, **solved.details}
        targets = self.train_rows.targets
        if targets is None:
            raise SpecError(f"training.head = '{training.head}' needs labels")
        features = self._features("train", self.train_rows)
        if training.head == "prototypes":
            start = starts.prototypes(features, targets, self.task)
        else:
            named = self._named(training, "training.head = 'names'")
            start = starts.names(named, features, targets, self.task)
        self._set_head(start.weight, start.bias)
        return {"start": training.head, "score": start.score, "head_temperature": start.temperature}

    def _probe(self, stage: StageSpec, training: TrainingSpec) -> StageResult:
        found = self._solve(training)
        self._set_head(found.weight, found.bias)
        head = self.model.head
        crossed = self.validation is None
        details: dict[str, Any] = {"c": found.c, "chosen_on": f"{probe.FOLDS} folds" if crossed else "validation"}
        if self.answered is not None and self.answered.name != "fp32":
            details |= {"features": self.answered.name, "features_why": self.answered.why}
        if training.name_rows:
            details["rows_added"] = {"name_rows": training.name_rows * self.task.outputs}
        # Answers out of fold are honest only while the backbone has not seen the rows' labels.
        if crossed and self.untouched and self.train_rows.targets is not None:
            details["temperature"] = temperature_of(self.task, found.held_out, self.train_rows.targets)
        trainable = sum(p.numel() for p in head.parameters())
        return StageResult(stage.name, found.score, 0.0, len(self.train_rows), trainable, "solved", details=details)

    def _solve(self, training: TrainingSpec) -> probe.Probe:
        targets = self.train_rows.targets
        if targets is None:
            raise SpecError("a probe needs labels")
        rows = self.train_rows
        features, validation = self._features("train", rows), None
        if self.validation is not None and self.validation.targets is not None:
            validation = (self._features("validation", self.validation), self.validation.targets)
        if len(rows) > PROBE_ROWS and self.fresh_head and training.optimizer != "lbfgs":
            chosen = np.random.default_rng(training.seed).choice(len(rows), PROBE_ROWS, replace=False)
            features, targets = features[chosen], targets[torch.from_numpy(chosen)]
        extra = None
        if training.name_rows:
            labels = list(self.task.labels) * training.name_rows
            named = self._named(training, "training.name_rows")
            extra = (np.tile(named, (training.name_rows, 1)), self.task.encode(labels))
        return probe.fit(features, targets, self.task, validation, extra, seed=training.seed)

    def _named(self, training: TrainingSpec, asked: str) -> np.ndarray:
        """Features (K,D) of a text made of each class's name. asked: the key that wants them."""
        backbone = self.model.backbone
        texts = starts.sentences(self.task.labels, training.name_template, asked)
        return inference.pooled(backbone, Encoded.of(self.modality, backbone, texts))

    def check_labels(self) -> None:
        """Where the spec asks for it, find training rows whose label looks wrong; comes before any stage is run."""
        if self.spec.data.check_labels and self.train_rows.targets is not None:
            features, targets = self._features("train", self.train_rows), self.train_rows.targets
            self.suspects = label_errors.find(features, targets, self.task, seed=self.spec.training.seed)

    def _features(self, name: str, rows: Encoded) -> np.ndarray:
        found = self.features.get(name) if self.untouched else None
        if found is None:
            found = inference.pooled(self.model.backbone, rows, precision=self.answers(rows).name)
            if self.untouched:
                self.features[name] = found
        return found

    def answers(self, rows: Encoded) -> Precision:
        """What passes over these rows that only answer run in. `auto` is measured once a run, with rows enough.

        Of several processes each would measure for itself, and they must come to the same head and the same scores.
        """
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        if self.spec.training.precision == "auto" and self.answered is None and alone:
            self.answered = answering.choose(self.model, rows)
        return self.answered or Precision()

    def outputs(self, name: str, rows: Encoded) -> np.ndarray:
        """The model's raw outputs, (rows,K) float32; of an untouched backbone the features are computed once.

        name: of the rows, 'validation' or 'test', which are always the same ones under it.
        """
        if not self.untouched:
            return answering.outputs(self.model, rows, self.task, self.answers(rows))
        made, backbone = self._headed(self._features(name, rows)), self.model.backbone

        def again(some: Encoded) -> np.ndarray:
            return self._headed(inference.pooled(backbone, some))

        return answering.sure(made, rows, self.task, self.answers(rows), again)

    def _headed(self, features: np.ndarray) -> np.ndarray:
        """The head's raw outputs on pooled features."""
        with torch.inference_mode():
            parts = torch.from_numpy(features).split(HEAD_ROWS)
            return torch.cat([self.model.head(part.to(self.device)).cpu() for part in parts]).numpy()

    def _learn(
        self,
        stage: StageSpec,
        training: TrainingSpec,
        methods: Methods,
        hooks: Hooks,
        checkpoint: Path | None,
        identity: str,
        resume: bool,
        deadline: float | None,
    ) -> StageResult:
        rows, details = self._rows(hooks, training)
        if not self.fresh_head:
            training = training.model_copy(update={"head": "probe"})
        elif training.head != "random" and not (resume and checkpoint is not None and checkpoint.exists()):
            details["head"] = self._start_head(stage, training)
        epochs = planning.choose_epochs(training, len(self.train_rows))
        training = self.stats(training, methods)
        rate = planning.choose_rate(training, methods, self.modality.name)
        settled = self.settled.get(stage.name) or self.settle(stage, training, *self.trial(stage)[:2])
        chosen = settled.precision
        if deadline is not None:
            left = max(1.0, deadline - time.monotonic())
            costs = costing.measure(self.model, rows, training, precision=chosen.name, backward=True)
            passes = math.prod(method.passes() for method in methods.values())
            epoch = planning.epoch_seconds(costs, len(rows), len(self.validation or ()), passes)
            epochs = max(1, min(epochs, int(left / max(1e-9, epoch))))
            training = training.model_copy(update={"time_limit": left})
        answers = self.answers(self.validation or self.train_rows).name
        known = dict(self.features) if self.untouched and answers == "fp32" else {}
        if rows is not self.train_rows:
            known.pop("train", None)
        loop = Loop(
            self.model, hooks, rows, self.validation, training, epochs, rate, self.device,
            ways=settled.ways, checkpoint=checkpoint, identity=identity, listen=self.listen,
            known=known, answers=answers,
        )  # fmt: skip
        trained = loop.train(resume=resume)
        self.model = trained.model  # type: ignore[assignment]
        learned = sum(p.numel() for p in loop.optimiser.parameters)
        own = {id(p) for p in self.model.backbone.parameters()}
        learned_inside = any(id(p) in own for p in loop.optimiser.parameters)
        # Methods that merge or cut at the end change the backbone without a parameter of it having learned.
        self.untouched = self.untouched and not learned_inside and not hooks.owners("finish")
        score = None if self.validation is None else self._score(loop.prefix.of(self.validation, self.model))
        details |= {"bottom": trained.bottom} if trained.bottom else {}
        details |= {"epochs": epochs, "learning_rate": rate, "precision": loop.ways.precision}
        details |= {"running_stats": training.running_stats} if has_statistics(self.model) else {}
        details |= {"precision_why": chosen.why} if chosen.why and chosen.name == loop.ways.precision else {}
        details |= settled.record() | told(prefetch=trained.ahead, compiled=trained.compiled, parts=trained.parts)
        return StageResult(
            stage.name, score, trained.seconds, trained.rows_trained, learned, trained.stopped,
            trained.history, trained.notes, details,
        )  # fmt: skip

    def stats(self, training: TrainingSpec, methods: Methods) -> TrainingSpec:
        """The settings with BatchNorm's statistics decided."""
        return planning.choose_stats(
            training, methods, self.model, len(self.train_rows), pretrained=self.spec.backbone.pretrained
        )

    def _precision(self, model: nn.Module, training: TrainingSpec) -> Precision:
        """What the stage runs in. `auto` is measured once a run, so that all of it runs in one precision."""
        if training.precision not in self.measured:
            learned = planning.rows_learned(map(self.training, self.spec.stages), len(self.train_rows))
            self.measured[training.precision] = precision.choose(model, self.train_rows, training, learned=learned)
        return self.measured[training.precision]

    def _rows(self, hooks: Hooks, training: TrainingSpec) -> tuple[Encoded, dict[str, Any]]:
        """The training rows with those that methods and class names add, and for the report how many each added."""
        added = {name: rows for name, rows in hooks.rows(self.inputs).items() if rows}
        if training.name_rows and self.train_rows.targets is not None:
            each = starts.rows(self.task.labels, self.train_rows.targets, training.name_template)
            added["name_rows"] = each * training.name_rows
        if not added:
            return self.train_rows, {}
        counts = {name: len(rows) for name, rows in added.items()}
        for name, count in counts.items():
            self.listen("note", {"text": f"'{name}' adds {count} rows to the {len(self.train_rows)} training rows"})
        every = [row for rows in added.values() for row in rows]
        rows = self.train_rows.extended(self.modality, self.model.backbone, self.inputs, every)
        return rows, {"rows_added": counts}

    def _score(self, rows: Encoded) -> float | None:
        if rows.targets is None:
            return None
        scores = self.task.scores(
            torch.from_numpy(inference.outputs(self.model, rows, precision=self.answers(rows).name))
        )
        return self.task.measure(scores.numpy(), rows.targets.numpy())[self.task.metric]

    def trial(self, stage: StageSpec) -> tuple[nn.Module, dict[str, Method], list[nn.Parameter], Prefix]:
        """A copy of the model after surgery, with gradients for what learns; its methods; what learns; its bottom."""
        methods, hooks = self.check(stage)
        prefix = Prefix(hooks, self.train_rows, self.validation, self.training(stage).cache)
        trial = prefix.adapt(copy.deepcopy(self.model))
        learning = {id(p): p for group in hooks.groups(trial) for p in group.parameters}
        learning |= {id(p): p for p in trial.head.parameters()}  # type: ignore[union-attr]
        for parameter in trial.parameters():
            parameter.requires_grad_(id(parameter) in learning)
        return trial, methods, list(learning.values()), prefix

    def settle(self, stage: StageSpec, training: TrainingSpec, trial: nn.Module, methods: Methods) -> Settled:
        """How the stage's steps are made: decided once, on a copy of the model after its surgery."""
        rows, chosen = self.train_rows, self._precision(trial, training)
        epochs = planning.choose_epochs(training, len(rows))
        found = Settled.of(trial, rows, training, chosen, epochs=epochs, passes=own_passes(methods))
        self.settled[stage.name] = found
        return found
