"""The methods of one run, held together: legality first, then every hook in its lawful order.

Refused at construction: two owners of an exclusive hook, a capability that the run lacks, one method twice. Refused
as they happen: two claims on one module, two penalties of one name, a transform that loses `origin`. Reported after the
first epoch, or the first in which it acts: a method that changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from headstart import catalog
from headstart.aside import aside
from headstart.encoded import Encoded, seed_of
from headstart.errors import MethodError, SpecError, did_you_mean
from headstart.protocols import EXCLUSIVE, Context, Method, Modality, Task, overrides
from headstart.spec import MethodSpec
from headstart.values import Batch, Group, Progress, View

WHAT = {
    "groups": "decides which parameters learn and how fast",
    "backward": "decides how gradients are made",
    "weights": "decides which weights are validated and kept",
}


@dataclass
class Hooks:
    """Named methods in the user's order, with what their hooks may ask of the run."""

    methods: Mapping[str, Method]
    task: Task
    modality: Modality
    seed: int
    start: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    progress: Progress = field(default_factory=lambda: Progress(0, 1, 0, 1))
    backward: Callable[[Tensor], None] = lambda loss: loss.backward()
    validate: Callable[[nn.Module], float] | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    batches: Callable[[], Iterator[Batch]] | None = None
    unlabelled: Encoded | None = None
    train_rows: Encoded | None = None
    bundle: Callable[[str], Any] | None = None
    claims: dict[int, str] = field(default_factory=dict)
    effect: dict[str, bool] = field(default_factory=dict)
    """Whether a method was seen to change something; absent where its hooks leave no trace to look at."""

    def __post_init__(self) -> None:
        for hook in EXCLUSIVE:
            owners = self.owners(hook)
            if len(owners) > 1:
                raise MethodError(
                    f"'{owners[0]}' and '{owners[1]}' cannot share a run: each {WHAT[hook]}. "
                    f"Keep one of them, or run them one after the other as two stages"
                )
        for name, method in self.methods.items():
            for need, reason in method.requires().items():
                if not self._offers(need):
                    raise MethodError(
                        f"'{name}' cannot be used here: {reason}; this run is {self.task.name} on {self.modality.name}"
                    )

    def _offers(self, need: str) -> bool:
        # Every run has a start; asking for it is what keeps it (`adapt`). What settings decide is seen to by stages.
        if need in ("run.start", "run.mixed", "run.statistics"):
            return True
        if need == "run.unlabelled":
            return self.unlabelled is not None
        room, _, what = need.partition(".")
        if need == "task.mix":
            return type(self.task).mix is not Task.mix
        holder: Any = {"task": self.task, "modality": self.modality}.get(room)
        return bool(getattr(holder, what, False)) or getattr(holder, "name", None) == what

    def leave(self) -> None:
        """The run is over: forget what it offered the methods."""
        self.batches = self.validate = self.train_rows = None
        self.autocast = nullcontext

    def owners(self, hook: str) -> list[str]:
        """The names of the methods that override a hook, in order."""
        return [name for name, method in self.methods.items() if overrides(method, hook)]

    def owner(self, hook: str) -> tuple[str, Method] | None:
        """The one method that owns an exclusive hook, if any."""
        names = self.owners(hook)
        return (names[0], self.methods[names[0]]) if names else None

    def context(self, name: str, *salt: object) -> Context:
        """The context of one call: its generator depends on seed, method and position, not on what ran before."""
        generator = torch.Generator()
        generator.manual_seed(seed_of(self.seed, name, self.progress.epoch, self.progress.step, *salt))
        return Context(
            task=self.task,
            modality=self.modality,
            progress=self.progress,
            generator=generator,
            start=self.start,
            owner=name,
            claims=self.claims,
            backward=self.backward,
            validate=self.validate,
            autocast=self.autocast,
            batches=self.batches,
            unlabelled=self.unlabelled,
            train_rows=self.train_rows,
            altered=bool(self.owners("transform")),
            bundle=self.bundle,
        )

    def adapt(self, model: nn.Module) -> nn.Module:
        """Snapshot the start, then every surgery in order."""
        asked = any("run.start" in method.requires() for method in self.methods.values())
        if asked or self.owners("prior") or self.owners("penalty"):
            named = dict(model.named_parameters())
            kept = aside({name: p.detach() for name, p in named.items()})
            self.start.update({p: kept[name] for name, p in named.items()})
        for name in self.owners("adapt"):
            before = sum(p.numel() for p in model.parameters())
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(self.seed, name, "adapt"))
                model = self.methods[name].adapt(model, self.context(name, "adapt"))
            if sum(p.numel() for p in model.parameters()) != before:
                self._seen(name, True)
        return model

    def groups(self, model: nn.Module) -> list[Group]:
        """The owner's groups (by default the whole backbone); the head is added by the loop."""
        owner = self.owner("groups")
        if owner is None:
            return Method().groups(model, self.context(""))
        groups = owner[1].groups(model, self.context(owner[0]))
        everything = {id(p) for p in model.backbone.parameters()}  # type: ignore[union-attr]
        learning = {id(p) for group in groups for p in group.parameters}
        self._seen(owner[0], learning != everything or any(group.lr_scale != 1 for group in groups))
        return groups

    def rows(self, inputs: Sequence[Any]) -> dict[str, list[tuple[int, Any]]]:
        """The training rows that each method adds to these raw ones, by method: (index of its source, raw input)."""
        found = {}
        for name in self.owners("rows"):
            found[name] = list(self.methods[name].rows(inputs, self.context(name, "rows")))
            if any(not 0 <= source < len(inputs) for source, _ in found[name]):
                raise MethodError(f"'{name}' added a row that was made from none of the {len(inputs)} training rows")
            self._seen(name, bool(found[name]))
        return found

    def stream(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The epoch's batches through every stream hook in order."""
        for name in self.owners("stream"):
            batches = self.methods[name].stream(batches, self.context(name))
        return iter(batches)

    def transform(self, batch: Batch, position: int) -> Batch:
        """The batch through every transform in order; `position` is the micro-batch's place in its window.

        What was kept of rows is a version of them already; tokens are changed all the same, as their mask is needed.
        """
        done = batch.kept is not None and "input_ids" not in batch.inputs
        for name in self.owners("transform"):
            if done and self.methods[name].versions():
                continue
            changed = self.methods[name].transform(batch, self.context(name, position))
            if len(changed.origin) != len(changed) or not set(changed.origin.tolist()) <= set(batch.origin.tolist()):
                raise MethodError(f"'{name}' returned a batch whose 'origin' does not say where its rows came from")
            self._seen(name, _differs(batch, changed))
            batch = changed
        return batch

    def versions(self) -> int:
        """How many versions of each training row the epochs see; 1 where nothing changes them, or always anew."""
        return max((method.versions() for method in self.methods.values()), default=0) or 1

    def version(self, batch: Batch, epoch: int) -> Batch:
        """The version of these rows that an epoch sees."""
        progress, self.progress = self.progress, replace(self.progress, epoch=epoch)
        try:
            return self.transform(batch, 0)
        finally:
            self.progress = progress

    def penalties(self, view: View) -> dict[str, Tensor]:
        """Every penalty on a micro-batch, names disjoint."""
        return self._sum("penalty", view)

    def priors(self, model: nn.Module) -> dict[str, Tensor]:
        """Every penalty on the parameters alone, names disjoint."""
        return self._sum("prior", model)

    def _sum(self, hook: str, subject: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        holder: dict[str, str] = {}
        for name in self.owners(hook):
            for key, value in getattr(self.methods[name], hook)(subject, self.context(name)).items():
                if key in found:
                    raise MethodError(f"'{holder[key]}' and '{name}' both report a penalty called '{key}'")
                found[key], holder[key] = value, name
                if not self.effect.get(name, False):  # a look at a number waits for the device
                    self._seen(name, bool((value.detach() != 0).any()))
        return found

    def make_gradients(self, batch: Batch, loss_of: Callable[[Batch], Tensor], position: int) -> Tensor:
        """One micro-batch's gradients, by the owner of `backward` or plainly."""
        name, method = self.owner("backward") or ("", Method())
        return method.backward(batch, loss_of, self.context(name, position))

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every change of gradients in order."""
        for name in self.owners("gradients"):
            self.methods[name].gradients(parameters, self.context(name))

    def rows_meet(self) -> bool:
        """Whether a method lets the rows of a step meet: in its own part of the loss, or in the gradients."""
        return bool(self.owners("penalty") or self.owners("backward"))

    def looks(self) -> bool:
        """Whether a method may look at gradients, or at weights between steps."""
        return any(self.owners(hook) for hook in ("backward", "prior", "gradients", "after_step", "weights"))

    def after_step(self, model: nn.Module) -> None:
        """Every `after_step` in order."""
        for name in self.owners("after_step"):
            self.methods[name].after_step(model, self.context(name))

    def after_validation(self, model: nn.Module, score: float) -> None:
        """Every `after_validation` in order."""
        for name in self.owners("after_validation"):
            self.methods[name].after_validation(model, score, self.context(name))

    def weights(self) -> Mapping[str, Tensor] | None:
        """The weights to validate and keep, where a method has its own."""
        owner = self.owner("weights")
        return owner[1].weights() if owner else None

    def finish(self, model: nn.Module) -> nn.Module:
        """Every `finish`, last listed first; averages come before surgery, whose layers they were taken from."""
        for name in sorted(reversed(self.owners("finish")), key=lambda name: overrides(self.methods[name], "adapt")):
            model = self.methods[name].finish(model, self.context(name))
        return model

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of every method."""
        return {"methods": {name: method.state() for name, method in self.methods.items()}, "effect": dict(self.effect)}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """The inverse of `state`."""
        for name, method in self.methods.items():
            method.load_state(state["methods"].get(name, {}), model)
        self.effect.update(state["effect"])

    def _seen(self, name: str, changed: bool) -> None:
        self.effect[name] = self.effect.get(name, False) or changed

    def idle(self) -> list[str]:
        """At the end of an epoch: a sentence for each method that was watched, changed nothing and should have by now.

        Should have: since its first epoch, or at the latest by the end of a run that is over before that.
        """
        epoch, last = self.progress.epoch, self.progress.epochs - 1
        since = "the first epoch" if epoch == 0 else f"{epoch + 1} epochs"
        return [
            f"method '{name}' changed nothing in {since}: check its options, or leave it out"
            for name, changed in self.effect.items()
            if not changed and min(self.methods[name].first_epoch(), last) == epoch
        ]


def _differs(before: Batch, after: Batch) -> bool:
    if before is after:
        return False
    if after.mix is not None or after.shift is not None or not torch.equal(before.weight, after.weight):
        return True
    if before.inputs.keys() != after.inputs.keys():
        return True
    pairs = [(before.inputs[key], after.inputs[key]) for key in before.inputs]
    if before.labels is not None and after.labels is not None:
        pairs.append((before.labels, after.labels))
    return any(a is not b and (a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a, b)) for a, b in pairs)


def make_methods(specs: tuple[MethodSpec, ...]) -> dict[str, Method]:
    """Methods by public name. Raises MethodError for an unknown name or option, or a name given twice."""
    found: dict[str, Method] = {}
    for spec in specs:
        if spec.name in found:
            raise MethodError(
                f"method '{spec.name}' is listed twice: give its options together, as {spec.name}:a=1,b=2"
            )
        try:
            cls = catalog.find("methods", spec.name)
        except SpecError as error:
            raise MethodError(str(error)) from None
        known = [item.name for item in fields(cls) if item.init]
        for key in spec.options:
            if key not in known:
                raise MethodError(f"method '{spec.name}' has no option '{key}': {did_you_mean(key, known)}")
        try:
            found[spec.name] = cls(**spec.options)
        except TypeError as error:
            raise MethodError(f"method '{spec.name}' cannot take {spec.options}: {error}") from None
    return found


def own_passes(methods: Mapping[str, Method]) -> list[str]:
    """The names of those that make passes or gradients of their own in a step."""
    return [name for name, method in methods.items() if overrides(method, "backward") or method.passes() != 1]
