"""THE training loop. Every method meets every other here, through the hooks of `hooks.Hooks`.

One optimiser step: a window of micro-batches is taken, transformed, and each makes its share of the gradient of

    sum_i w_i * loss_i / sum_i w_i   +   penalties   (over the whole window, so accumulation equals the big batch)

then priors are added once, gradients are changed and clipped, and the parameters move. The state is saved every so
often; a resumed run goes on with the same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart import heap, inference, tables
from headstart.ahead import Ahead
from headstart.aside import aside
from headstart.encoded import Encoded, seed_of
from headstart.errors import BundleError, HeadstartError, Interrupted
from headstart.frozen.prefix import Prefix
from headstart.hooks import Hooks
from headstart.optimiser import Optimiser
from headstart.parts import Parts
from headstart.running import Listener as Listener
from headstart.running import Trained as Trained
from headstart.running import copied, interrupts, set_modes, swapped
from headstart.spec import TrainingSpec
from headstart.state import load_state, random_state, save_state, set_random_state
from headstart.steps.graphing import Graphed
from headstart.steps.ways import Ways
from headstart.values import Batch, Group, Progress, View

HEAD_SCALE = {"random": 10.0, "probe": 5.0, "prototypes": 5.0, "names": 5.0}
"""How many times faster the head learns than the backbone, by its start: ten times for a random one (the ratio of
thuml's transfer library), five times for one that knows something, whose weights are larger (the only ratio tried)."""


@dataclass
class Loop:
    """One run. `train()` does it; everything else is a step of it."""

    model: nn.Module
    hooks: Hooks
    train_rows: Encoded
    validation: Encoded | None
    training: TrainingSpec
    epochs: int
    learning_rate: float
    device: torch.device
    ways: Ways = field(default_factory=Ways)
    checkpoint: Path | None = None
    identity: str = ""
    listen: Listener = lambda event, figures: None
    known: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Pooled features of the rows that are at hand already, by 'train' and 'validation', for a frozen backbone."""

    answers: str = "fp32"
    """What validation rows are answered in: fp32 or bf16."""

    def train(self, *, resume: bool = False) -> Trained:
        """Run to the end and give back the model with the kept weights, methods finished.

        Raises Interrupted after saving the state on SIGINT, HeadstartError when the loss is not a number.
        """
        from accelerate import Accelerator
        from accelerate.state import is_initialized

        # Its state is one for the whole process, and someone else may have set it up by now.
        own = {} if is_initialized() else {"cpu": self.device.type == "cpu", "mixed_precision": "no"}
        self.accelerator = Accelerator(**own)
        self.result = Trained(self.model, ahead=Ahead(self.training.prefetch), parts=Parts(self.training.parts))
        self.position = (0, 0)
        self.steps_done, self.bad = 0, 0
        self.losses: list[float] = []
        self.best_weights: dict[str, Tensor] | None = None
        self.before = 0.0
        self.steps_per_epoch: int | None = None
        with torch.random.fork_rng(), interrupts() as self.interrupted:
            torch.manual_seed(seed_of(self.training.seed, "loop", self.accelerator.process_index))
            self.hooks.batches = lambda: (self._take(*item).to(self.device) for item in self._plan(self.position[0]))
            self.hooks.autocast, self.hooks.train_rows = self._autocast, self.train_rows
            self.hooks.validate = self._validate if self.validation is not None else None
            self.hooks.progress = Progress(0, self._steps(), 0, self.epochs)
            self.prefix = self._prefix()
            self.model = self.prefix.adapt(self.model.to(self.device))
            self.optimiser = Optimiser(self.training, self.learning_rate)
            self._set_learning()
            if resume and self.checkpoint is not None and self.checkpoint.exists():
                self._load()
            self.started = self.saved = time.monotonic()
            self._compile()
            self.result.parts.apart = self._rows_apart()
            if (self.ways.seconds or 0.0) > self.training.checkpoint_every:
                heap.give_back()  # what the plan's trials left free; a short run would wait for it longer than it gains
            try:
                self._epochs()
                return self._finish()
            finally:
                # Held by what it holds, a model would stay in memory until Python looks for cycles, which is seldom.
                self.hooks.leave()
                self.prefix.leave()

    def _compile(self) -> None:
        """Decide whether blocks are compiled, once it is known who learns."""

        def batches() -> list[Batch]:
            plan = sorted(self._plan(0), key=lambda item: int(self.train_rows.prepared.lengths[item[0]].max()))
            chosen = [plan[place * (len(plan) - 1) // 2] for place in range(3)]
            return [part for item in chosen for part in self._parts(self._take(*item).to(self.device))[:1]]

        if self.accelerator.num_processes == 1:
            self.ways, self.result.compiled = self.ways.settled(self.model, batches)

    def _rows_apart(self) -> bool:
        """Whether no method lets the rows of a step meet, and nothing was made for batches of one size."""
        made = self.ways.compiled is not None or self.ways.graphed is not None
        return self.device.type == "cpu" and not self.hooks.rows_meet() and not made

    def _steps(self) -> int:
        if self.steps_per_epoch is None:
            window = self.training.accumulate * self.accelerator.num_processes
            self.steps_per_epoch = math.ceil(len(self._plan(0)) / window)
        return max(1, self.steps_per_epoch * self.epochs)

    def _plan(self, epoch: int) -> list[Any]:
        """The batches of an epoch as row indices, each with the factor on its weights."""
        plan = self.train_rows.plan(self.training, epoch)
        # Every process takes each n-th batch. Where they do not divide evenly, a batch without weight fills the gap,
        # so that all processes step together.
        fillers = -len(plan) % self.accelerator.num_processes
        return [(rows, 1.0) for rows in plan] + [(plan[0], 0.0)] * fillers

    def _take(self, rows: Any, factor: float, *, source: Encoded | None = None) -> Batch:
        batch = (self.train_rows if source is None else source).batch(rows.tolist())
        return batch if factor == 1.0 else batch.replace(weight=batch.weight * factor)

    def _epochs(self) -> None:
        first = self.position[0]
        for epoch in range(first, self.epochs):
            skip = self.position[1] if epoch == first else 0
            self.hooks.progress = Progress(self.steps_done, self._steps(), epoch, self.epochs)
            self._set_learning()
            self.prefix.prepare(self.model, epoch, self.epochs)
            if not self._epoch(epoch, skip):
                return
            for note in self.hooks.idle():
                self.result.notes.append(note)
                self.listen("note", {"text": note})
            self.position = (epoch + 1, 0)
            if self._after_epoch(epoch):
                self.result.stopped = f"no better validation in {self.training.patience} epochs"
                return
            self._maybe_save()

    def _epoch(self, epoch: int, skip: int) -> bool:
        """Every window of one epoch, the first `skip` passed over. False when the time limit ended it."""
        plan, rank = self._plan(epoch), self.accelerator.process_index
        size, world = self.training.accumulate, self.accelerator.num_processes
        plan = plan[rank::world]
        source = self.prefix.of(self.train_rows, self.model)
        streams = bool(self.hooks.owners("stream"))
        # Rows that were kept cost little to take, and whether they hold is asked when a batch is used.
        feed = self.result.ahead if source is self.train_rows else Ahead("off")
        taken = feed.over(
            lambda item: self._take(*item, source=None if streams else source), plan if streams else plan[skip * size :]
        )
        with closing(taken):
            batches = self.hooks.stream(taken) if streams else taken
            for _ in islice(batches, skip * size if streams else 0):
                pass
            window_index = skip
            while window := list(islice(batches, size)):
                self._step(window, epoch)
                window_index += 1
                self.position = (epoch, window_index)
                self._maybe_save()
                if self.training.time_limit is not None and self._elapsed() > self.training.time_limit:
                    self.result.stopped = "time limit reached"
                    self._after_epoch(epoch)
                    return False
        return True

    def _step(self, window: list[Batch], epoch: int) -> None:
        self.hooks.progress = Progress(self.steps_done, self._steps(), epoch, self.epochs)
        window = [part for batch in window for part in self._parts(batch)]
        window = [self.hooks.transform(batch.to(self.device), i) for i, batch in enumerate(window)]
        whole, window = len(window), self.result.parts.cut(self.model, window)
        cut = len(window) > whole
        total = self.accelerator.reduce(torch.stack([batch.weight.sum() for batch in window]).sum())
        loss = torch.zeros((), device=self.device)
        in_rows = tables.within(self.optimiser.tables)
        with self.result.parts.timed(window, cut=cut), in_rows, self.ways.step(self.model):
            for position, batch in enumerate(window):
                loss = loss + self.hooks.make_gradients(batch, lambda b: self._loss(b, total), position)
        priors = self.hooks.priors(self.model)
        if priors:
            prior = torch.stack(list(priors.values())).sum()
            if prior.requires_grad:
                (prior / self.accelerator.num_processes).backward()
            loss = loss + prior.detach()
        parameters = self.optimiser.parameters
        self._reduce_gradients(parameters)
        self.hooks.gradients(parameters)
        if self.training.clip is not None:
            self.optimiser.clip(self.training.clip)
        value = float(loss)
        if not math.isfinite(value):
            raise HeadstartError(
                f"the loss is {value} at step {self.steps_done}: try a lower learning rate "
                f"(now {self.learning_rate:g}) or --set training.precision=fp32"
            )
        rate = self.optimiser.step(self.hooks.progress.fraction)
        self.hooks.after_step(self.model)
        self.losses.append(value)
        self.steps_done += 1
        rows = sum(len(batch) for batch in window)
        self.result.rows_trained += rows
        figures = {"step": self.steps_done, "steps": self._steps(), "epoch": epoch, "loss": value, "lr": rate}
        self.listen("step", {**figures, "rows": rows})

    def _parts(self, batch: Batch) -> list[Batch]:
        """A micro-batch in parts of at most `training.max_tokens`, padding included; one row makes a part at least."""
        most, mask = self.training.max_tokens, batch.inputs.get("attention_mask")
        size = len(batch) if most is None or mask is None else max(1, most // mask.shape[1])
        return [batch.part(slice(start, start + size)) for start in range(0, len(batch), size)]

    def _autocast(self) -> AbstractContextManager[Any]:
        return self.ways.pass_(self.model)

    def _loss(self, batch: Batch, total: Tensor) -> Tensor:
        with self._autocast():
            features, outputs = self.model(batch)
        outputs = outputs.float()
        if batch.labels is None:
            raise HeadstartError("a training batch has no labels")
        losses = self.hooks.task.loss(outputs, batch.labels)
        loss = self.training.task_weight * (losses * batch.weight).sum() / total
        penalties = self.hooks.penalties(View(batch, features, outputs, losses, self.model))
        for value in penalties.values():
            loss = loss + value * (batch.weight.sum() / total)
        return loss

    def _reduce_gradients(self, parameters: list[nn.Parameter]) -> None:
        if self.accelerator.num_processes == 1:
            return
        for parameter in parameters:
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = self.accelerator.reduce(gradient, reduction="sum")

    def _set_learning(self) -> None:
        """Ask who learns; switch gradients on for them and the head; parts in which nothing learns run as at use."""
        scale = self.training.head_scale or HEAD_SCALE[self.training.head]
        head = tuple(self.model.head.parameters())  # type: ignore[union-attr]
        groups = [*self.hooks.groups(self.model), Group(head, scale)]
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for group in groups:
            for parameter in group.parameters:
                parameter.requires_grad_(True)
        self.optimiser.set_groups([group for group in groups if group.parameters], self._tables())
        set_modes(self.model, keep_stats=self.training.running_stats == "keep")

    def _tables(self) -> list[tables.Table]:
        """The tables to be moved in rows: where no method looks at gradients, or at weights between steps."""
        alone = self.accelerator.num_processes == 1
        return tables.find(self.model) if alone and self.optimiser.moves_rows and not self.hooks.looks() else []

    def _after_epoch(self, epoch: int) -> bool:
        """Validate, keep the best weights, tell the methods. True when it is time to stop early."""
        self.optimiser.settle()
        figures = {"epoch": epoch + 1, "step": self.steps_done, "seconds": self._elapsed()}
        if self.losses:
            figures["loss"] = sum(self.losses) / len(self.losses)
            self.losses.clear()
        if self.validation is None:
            self.result.history.append(figures)
            self.listen("epoch", figures)
            return False
        own = self.hooks.weights()
        with swapped(self.model, own):
            score = self._validate(self.model)
            self.hooks.after_validation(self.model, score)
            if self.result.best is None or self.hooks.task.better(score, self.result.best):
                self.result.best, self.bad = score, 0
                self.best_weights = copied(self.model) if self.training.weights == "best" else None
            else:
                self.bad += 1
        set_modes(self.model, keep_stats=self.training.running_stats == "keep")
        figures[self.metric] = score
        self.result.history.append(figures)
        self.listen("epoch", figures)
        return self.training.patience is not None and self.bad >= self.training.patience

    @property
    def metric(self) -> str:
        """What early stopping compares."""
        return self.hooks.task.metric

    def _validate(self, model: nn.Module) -> float:
        if self.validation is None or self.validation.targets is None:
            raise HeadstartError("there are no validation rows to choose on")
        rows = self.prefix.of(self.validation, model)
        scores = self.hooks.task.scores(torch.from_numpy(inference.outputs(model, rows, precision=self.answers)))
        measured = self.hooks.task.measure(scores.numpy(), self.validation.targets.numpy())
        return measured[self.metric]

    def _finish(self) -> Trained:
        kept = self.best_weights if self.best_weights is not None else self.hooks.weights()
        if kept is not None:
            self.model.load_state_dict(kept, strict=False)
        self.model.eval()
        self.result.model = self.hooks.finish(self.model)
        self.result.seconds = self._elapsed()
        if self.ways.compiled is not None and (why := self.ways.compiled.failed):
            self.result.notes.append(f"the compiler was given up, and steps were computed without it: {why}")
        if self.ways.graphed is not None and (why := self.ways.graphed.failed):
            self.result.notes.append(f"CUDA graphs were given up, and steps were computed without them: {why}")
        for parameter in self.result.model.parameters():
            parameter.grad = None
        return self.result

    def _prefix(self) -> Prefix:
        def stop() -> bool:
            limit = self.training.time_limit
            return self.interrupted.is_set() or (limit is not None and self._elapsed() > limit)

        def tell(sentence: str) -> None:
            self.result.bottom.append(sentence)
            self.listen("note", {"text": sentence})

        alone = self.accelerator.num_processes == 1
        return Prefix(
            self.hooks, self.train_rows, self.validation, self.training.cache,
            precision=self.ways.precision, answers=self.answers, alone=alone, tell=tell, stop=stop, known=self.known,
        )  # fmt: skip

    def _elapsed(self) -> float:
        return self.before + time.monotonic() - self.started

    def _maybe_save(self) -> None:
        if self.interrupted.is_set():
            self._save()
            where = f"; its state is in '{self.checkpoint}'" if self.checkpoint else ""
            raise Interrupted(f"interrupted after step {self.steps_done}{where}; go on with --resume")
        if time.monotonic() - self.saved >= self.training.checkpoint_every:
            self._save()

    def _save(self) -> None:
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return
        heap.give_back()  # what steps over long rows left free, between blocks that others need whole
        self.optimiser.settle()
        names = {id(p): name for name, p in self.model.named_parameters()}
        moments = self.optimiser.torch.state if self.optimiser.torch else {}
        record = {
            "identity": self.identity,
            "position": list(self.position),
            "steps_done": self.steps_done,
            "precision": self.ways.precision,
            "pack": self.ways.pack,
            "compiled": self.ways.compiled is not None,
            "graphs": self.ways.graphed is not None,
            "bad": self.bad,
            "losses": self.losses,
            "seconds": self._elapsed(),
            "model": self.model.state_dict(),
            "optimiser": {names[id(p)]: dict(values) for p, values in moments.items()},
            "best_weights": self.best_weights,
            "best": self.result.best,
            "history": self.result.history,
            "rows_trained": self.result.rows_trained,
            "notes": self.result.notes,
            "hooks": self.hooks.state(),
            "prefix": self.prefix.state(),
            "random": random_state(),
        }
        save_state(self.checkpoint, record)
        if self.best_weights is not None:
            self.best_weights = aside(self.best_weights)  # what was read to be saved would stay in memory
        self.saved = time.monotonic()

    def _load(self) -> None:
        record = load_state(self.checkpoint) if self.checkpoint else {}
        if record["identity"] != self.identity:
            raise BundleError("the saved state belongs to another spec or other data; start again without --resume")
        self.position = (record["position"][0], record["position"][1])
        self.steps_done, self.bad, self.before = record["steps_done"], record["bad"], record["seconds"]
        # A run ends in the ways that it was begun in, whatever would measure faster now.
        compiled = "on" if record["compiled"] else "off"
        self.ways = replace(
            self.ways, precision=record["precision"], pack=record["pack"], compile=compiled,
            graphed=Graphed() if record["graphs"] else None,
        )  # fmt: skip
        self.prefix.precision = self.ways.precision
        self.model.load_state_dict(record["model"])
        self.losses = list(record["losses"])
        self.best_weights = None if record["best_weights"] is None else aside(record["best_weights"])
        self.result.best = record["best"]
        self.result.history, self.result.rows_trained = record["history"], record["rows_trained"]
        self.result.notes = record["notes"]
        self.hooks.load_state(record["hooks"], self.model)
        self.prefix.load_state(record["prefix"])
        self.hooks.progress = Progress(self.steps_done, self._steps(), self.position[0], self.epochs)
        self._set_learning()
        if self.optimiser.torch is not None:
            named = dict(self.model.named_parameters())
            for name, values in record["optimiser"].items():
                at = named[name].device
                self.optimiser.torch.state[named[name]] = {
                    key: value.to(at) if isinstance(value, Tensor) else value for key, value in values.items()
                }
            self.optimiser.follow(self._tables())
        set_random_state(record["random"])
