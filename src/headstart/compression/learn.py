"""The steps that change a finished model itself: heads and neurons cut out of it, fewer blocks, taught by another."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart import bundle as bundles
from headstart import data
from headstart.adapt import execute, prepare
from headstart.backbones import shorten
from headstart.bundle import Bundle
from headstart.compression.forms import report_of
from headstart.compression.plan import Step
from headstart.compression.quality import Labelled
from headstart.encoded import Encoded, seed_of
from headstart.errors import BundleError, DataError, MethodError, SpecError
from headstart.hooks import Hooks, make_methods
from headstart.loop import Listener
from headstart.methods.prune import shares
from headstart.spec import MethodSpec, Spec

HEAL = 2
"""Epochs in which a pruned model heals when none are asked for."""

EPOCHS = 5
"""Epochs of a student when none are asked for."""

SEEN = 512
"""Training rows that the importance of heads and neurons is read from where nothing heals."""

LEARNS: Mapping[str, Mapping[str, Any]] = {"text": {"tables": True}, "image": {"bottom": 0}}
"""What learns beside the blocks, as in the default recipe: options of `freeze`."""

OWN = {"prune": ("share", "heal", "rate"), "distil": ("layers", "epochs", "rate", "weight")}
"""Options of a step that are not its method's."""


def learn(
    source: Bundle,
    step: Step,
    teacher: Path,
    out: Path,
    *,
    rows: Labelled | None,
    heal: int = HEAL,
    train: str | None = None,
    resume: bool = False,
    listen: Listener = lambda event, figures: None,
) -> Bundle:
    """Do `prune` or `distil` on a finished model and save the result in `out`.

    teacher: the folder of the model whose answers are learned. heal: epochs after a cut where the step does not say.
    train: training rows in place of those that the model was made with. resume: go on with a run that was cut off.
    Raises MethodError or BackboneError for a network that cannot be cut, DataError where the training rows are gone.
    """
    spec = _spec(source, train)
    if step.name == "prune":
        if any(method["name"] == "prune" for method in source.record["surgery"]):
            raise BundleError("this model was pruned already: prune the one that it was made from, by a larger share")
        options = _cut_options(source, step)
        epochs = int(step.options.get("heal", heal))
        if epochs == 0:
            made = _cut_only(source, options, spec, rows)
            made.save(out, overwrite=True)
            return made
        methods = [("prune", options), ("distil", {"teacher": str(teacher)})]
        asked, weight = {"epochs": epochs}, 0.5
    else:
        layers = step.options.get("layers")
        source = source if layers is None else shortened(source, layers)
        more = {"hidden": 2.0, "relations": 1.0} if source.modality.name == "text" else {}
        methods = [("distil", {"teacher": str(teacher), **more, **_rest(step)})]
        asked = {"epochs": int(step.options.get("epochs", EPOCHS))}
        weight = float(step.options.get("weight", 0.3 if source.modality.name == "text" else 0.5))
    # Who learns as in the default recipe. The average comes last: it copies what pruning has chosen.
    methods = [
        ("freeze", {"decay": 0.85, **LEARNS.get(source.modality.name, {})}), *methods, ("ema", {"decay": 0.99})
    ]  # fmt: skip
    stage = {
        "name": step.name,
        "methods": [MethodSpec(name=name, options=options).model_dump() for name, options in methods],
        "training": {**asked, **_training(source, step), "task_weight": weight},
    }
    run = prepare(Spec.make({**spec.to_json(), "stages": [stage]}), listen=listen, start=source)
    run.stages.fresh_head = "layers" in step.options
    return execute(run, out, resume=resume and (out / "run.json").exists(), overwrite=True)


def _spec(source: Bundle, train: str | None) -> Spec:
    """The spec that the model was made by, without its stages. Raises DataError where its training rows are gone."""
    record = dict(source.record["spec"])
    if record.get("tasks"):
        raise SpecError(
            f"a model of several tasks is compressed one at a time: say --task {next(iter(record['tasks']))}"
        )
    record |= {"stages": [], "methods": None, "keep": "last"}
    record["data"] = {**record["data"], "check_labels": False, **({} if train is None else {"train": train})}
    path = record["data"]["train"]
    if path is None or not Path(path).exists():
        known = "were not in a file" if path is None else f"are no longer at '{path}'"
        raise DataError(f"the rows that this model was trained on {known}: give training rows, as --train FILE")
    return Spec.make(record)


def _rest(step: Step) -> dict[str, Any]:
    """The options that are the method's own."""
    return {key: value for key, value in step.options.items() if key not in OWN[step.name]}


def _training(source: Bundle, step: Step) -> dict[str, Any]:
    """Rates and batches; a student that lost blocks has more to learn than a model that heals."""
    text = source.modality.name == "text"
    usual = (5e-4 if "layers" in step.options else 2e-4) if text else 3e-4
    return {
        "learning_rate": float(step.options.get("rate", usual)),
        "batch_size": 32 if text else 16,
        "patience": None,
        "optimizer": "adamw",
        "head": "probe",
    }


def _cut_options(source: Bundle, step: Step) -> dict[str, Any]:
    """What `prune` is told. Raises MethodError for a backbone that nothing can be cut out of."""
    given = {} if "share" not in step.options else shares(source.model.backbone, float(step.options["share"]))
    return {**given, **_rest(step)}


def shortened(source: Bundle, layers: int | Sequence[int]) -> Bundle:
    """A copy of the model with some of its blocks; what was pruned from these stays cut.

    Raises BackboneError for a network that cannot be shortened, MethodError for one with other changes inside.
    """
    others = [method["name"] for method in source.record["surgery"] if method["name"] != "prune"]
    if others:
        raise MethodError(f"distil:layers cannot shorten a model that holds the layers of '{others[0]}': leave it out")
    model = copy.deepcopy(source.model)
    moved = shorten(model.backbone, layers)
    surgery = []
    for method in source.record["surgery"]:
        kept = method["options"]["kept"]
        left = {moved[path]: members for path, members in kept.items() if path in moved}
        surgery.append({**method, "options": {**method["options"], "kept": left}})
    return dataclasses.replace(source, model=model, record={**source.record, "surgery": surgery})


def _cut_only(source: Bundle, options: Mapping[str, Any], spec: Spec, rows: Labelled | None) -> Bundle:
    """The model with its least important heads and neurons cut out at once, by the loss on some training rows."""
    once = MethodSpec(name="prune", options={**options, "begin": 1.0, "end": 1.0})
    method = make_methods((once,))["prune"]
    seed = seed_of(spec.training.seed, "prune")
    hooks = Hooks({"prune": method}, source.task, source.modality, seed)
    model = hooks.adapt(copy.deepcopy(source.model)).eval()
    loaded = data.load_rows(spec)
    chosen = np.random.default_rng(0).permutation(len(loaded.train))[:SEEN]
    inputs, labels = loaded.train.inputs(), loaded.train.labels()
    some = Encoded.of(
        source.modality, source.model.backbone, [inputs[i] for i in chosen], source.task, [labels[i] for i in chosen]
    )
    starts = range(0, len(some), 16)
    device = next(model.parameters()).device
    for step, start in enumerate(starts):
        hooks.progress = dataclasses.replace(hooks.progress, step=step, steps=len(starts))
        batch = some.batch(list(range(start, min(len(some), start + 16)))).to(device)
        losses = source.task.loss(model(batch)[1].float(), batch.labels)  # type: ignore[arg-type]
        torch.autograd.backward(losses.sum())
        hooks.after_step(model)
    model.zero_grad(set_to_none=True)
    model = hooks.finish(model)
    record = {
        **source.record,
        "surgery": [*source.record["surgery"], {"name": "prune", "options": method.options()}],
        "lineage": bundles.lineage(source.record["lineage"]["id"], "prune"),
    }
    made = dataclasses.replace(source, record=record, methods={"prune": method}, report=None, folder=None)
    made.model = model  # type: ignore[assignment]
    made.probe_outputs = made.outputs(made.probe_inputs)
    outputs = None if rows is None else made.outputs(rows.inputs)
    made.report = report_of(source, made, rows, outputs, "This model was pruned without healing")
    return made
