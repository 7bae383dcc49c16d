"""Spec -> Bundle: the only place that assembles data, backbone, task, methods and the loop."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart import bundle as bundles
from headstart import catalog, data, heap, planning, recipe
from headstart.bundle import Bundle
from headstart.encoded import Encoded
from headstart.errors import BundleError, SpecError
from headstart.evidence import Chosen, Evidence, forget_peak_memory, peak_memory
from headstart.fitted import fresh_model, task_of
from headstart.forecast import describe
from headstart.heads import starts
from headstart.loop import Listener
from headstart.model import Model
from headstart.planning import Plan
from headstart.protocols import Method, Modality, Task
from headstart.spec import MethodSpec, Spec
from headstart.stages import StageResult, Stages
from headstart.steps import memory
from headstart.tracking import Tracker, curves, open_tracker

RUN = "run.json"
CHECKPOINT = "checkpoint.safetensors"
STAGES = "stages"


@dataclass
class Run:
    """Everything that one `fit` needs, validated: nothing has been spent on training yet.

    answers: raw outputs of the finished model on the test rows, (rows,K), once it was measured on them.
    """

    spec: Spec
    data: data.Data
    task: Task
    modality: Modality
    model: Model
    stages: Stages
    test: Encoded | None
    started: float
    answers: np.ndarray | None = None

    @property
    def identity(self) -> str:
        """What must be equal for a resumed run to go on: the spec and the data."""
        return f"{self.spec.digest}:{self.data.fingerprint}"

    def plan(self, *, timed: bool = True) -> Plan:
        """What this run is going to do; `timed` spends a few batches on an estimate of time and memory."""
        before = memory.resident() if timed else None
        stages = tuple(describe(self.stages, self.spec.stages, timed=timed))
        return Plan(
            task=self.task.name,
            modality=self.modality.name,
            backbone=self.model.backbone.ref,
            labels=self.task.outputs,
            rows=self.data.rows.to_json(),
            stages=stages,
            said=self.data.said,
            findings=tuple(f"{finding.level}: {finding.message}" for finding in self.data.findings),
            # What the timed batches took is a floor: it has been seen.
            memory_bytes=None if before is None else max(before + planning.most_memory(stages), peak_memory()),
        )


def make_spec(
    train: Any = None,
    *,
    spec: Spec | Mapping[str, Any] | str | Path | None = None,
    methods: Sequence[Method | MethodSpec | str] | None = None,
    sets: Sequence[str] = (),
    **flat: Any,
) -> Spec:
    """A spec from what a user gave: a file or mapping, then single keys (`data__text="body"`), then `a.b=c` strings.

    Raises SpecError for anything unknown, and for methods whose class no catalogue entry leads to.
    """
    if methods is not None:
        flat["methods"] = [_method_spec(method).model_dump() for method in methods]
    if isinstance(train, str | Path):
        flat["data__train"] = str(train)
    if isinstance(spec, str | Path):
        return Spec.read(_spec_path(Path(spec)), sets, **flat)
    record = spec.to_json() if isinstance(spec, Spec) else spec
    return Spec.make(record, sets, **flat)


def _spec_path(path: Path) -> Path:
    """A bundle's folder stands for the spec inside it."""
    return path / "bundle.json" if path.is_dir() else path


def _method_spec(method: Method | MethodSpec | str) -> MethodSpec:
    if isinstance(method, Method):
        defaults = type(method)().options() if _constructs(type(method)) else {}
        options = {key: value for key, value in method.options().items() if defaults.get(key, ...) != value}
        return MethodSpec(name=catalog.name_of("methods", type(method)), options=options)
    return MethodSpec.parse(method) if isinstance(method, str) else method


def _constructs(cls: type[Method]) -> bool:
    try:
        cls()
    except Exception:  # a method may demand options; then all of them are written out
        return False
    return True


def prepare(
    spec: Spec,
    memory: Mapping[str, Any] | None = None,
    listen: Listener = lambda event, figures: None,
    start: Bundle | None = None,
) -> Run:
    """Read, check and assemble; raises the BadInput that applies before anything is spent.

    memory: `inputs`, `labels` (and `validation`, `test` pairs) when the rows are not in files; by task of several.
    start: a finished model to go on from, in place of the backbone that the spec names; it is left as it is.
    """
    started = time.monotonic()
    forget_peak_memory()
    loaded = data.load_rows(spec, memory)
    modality: Modality = catalog.find("modalities", loaded.columns.modality)()
    if modality.name == "text":
        heap.few_kernels()
    labels = loaded.train.labels()
    task = task_of(spec, loaded, labels) if start is None else start.task
    written = recipe.expand(
        spec, task=task.name, modality=modality.name, rows=len(loaded.train), outputs=task.outputs,
        validated=loaded.validation is not None, named=starts.named(task.labels),
    )  # fmt: skip
    device = planning.choose_device(spec.training.device)
    model = (fresh_model(spec, modality, task) if start is None else copy.deepcopy(start.model)).to(device)
    if modality.name == "image":
        model = model.to(memory_format=torch.channels_last)
    backbone = model.backbone

    def encode(part: data.Part | None) -> Encoded | None:
        return None if part is None else Encoded.of(modality, backbone, part.inputs(), task, part.labels())

    train_rows = Encoded.of(modality, backbone, loaded.train.inputs(), task, labels)
    free = loaded.unlabelled
    unlabelled = None if free is None else Encoded.of(modality, backbone, free.inputs())
    stages = Stages(
        written, task, modality, model, train_rows, encode(loaded.validation), labels, device, listen=listen,
        inputs=loaded.train.inputs(), unlabelled=unlabelled,
    )  # fmt: skip
    if start is not None:
        stages.go_on(start)
    for stage in written.stages:
        stages.check(stage)
    return Run(written, loaded, task, modality, model, stages, encode(loaded.test), started)


def fit(
    train: Any = None,
    labels: Sequence[Any] | None = None,
    *,
    tasks: Mapping[str, Any] | None = None,
    validation: Any = None,
    test: Any = None,
    unlabelled: Any = None,
    task: str | None = None,
    text: str | None = None,
    image: str | None = None,
    audio: str | None = None,
    label: str | Sequence[str] | None = None,
    backbone: str | None = None,
    methods: Sequence[Method | MethodSpec | str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    time_limit: str | float | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    spec: Spec | Mapping[str, Any] | str | Path | None = None,
    sets: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    track: str | None = None,
    listen: Listener = lambda event, figures: None,
) -> Bundle:
    """Labelled rows and a pretrained backbone in, a proven bundle out.

    train: a file or folder, or the inputs themselves (texts; paths, PIL pictures, arrays or sounds) with `labels`
    beside them; validation and test likewise (in memory: a pair of inputs and labels); unlabelled: inputs without
    labels for methods that learn from them. tasks, in place of all these, is several tasks on one backbone: name ->
    `data` and `task` as in a spec, with pairs of inputs and labels where files may stand. With no `methods` the default
    recipe runs. With `out` the bundle is saved there, and a run that was cut off goes on with `resume=True`.

    Raises BadInput (SpecError, DataError, BackboneError, MethodError, BundleError) before training, Interrupted on
    SIGINT with the state saved.
    """
    files = train is None or (isinstance(train, str | Path) and labels is None)
    several: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    if tasks is not None:
        several, memory = data.apart(tasks)
    flat = {
        "tasks": several,
        "data__validation": str(validation) if files and validation is not None else None,
        "data__test": str(test) if files and test is not None else None,
        "data__unlabelled": str(unlabelled) if files and unlabelled is not None else None,
        "data__text": text,
        "data__image": image,
        "data__audio": audio,
        "data__label": label,
        "task__name": task,
        "backbone__ref": backbone,
        "training__epochs": epochs,
        "training__batch_size": batch_size,
        "training__learning_rate": learning_rate,
        "training__time_limit": time_limit,
        "training__seed": seed,
    }
    folder = None if out is None else Path(out)
    if resume and folder is not None and train is None and spec is None:
        spec = _unfinished(folder)
    asked = make_spec(train if files else None, spec=spec, methods=methods, sets=sets, **flat)
    if files and asked.data.train is None and not asked.tasks:
        raise SpecError("there is nothing to learn from: give the training file, or data.train in the spec")
    if not files:
        memory = {"inputs": train, "labels": labels, "validation": validation, "test": test, "unlabelled": unlabelled}
    if folder is not None and resume and (folder / "bundle.json").exists():
        listen("note", {"text": f"'{folder}' is finished; nothing to resume"})
        return bundles.load(folder)
    _check_out(folder, resume=resume, overwrite=overwrite)
    # The caller's own random numbers are none of our business.
    with torch.random.fork_rng(devices=[]):
        run = prepare(asked, memory, listen)
        return execute(run, folder, resume=resume, overwrite=overwrite, track=track)


def _unfinished(folder: Path) -> Mapping[str, Any]:
    if (folder / "bundle.json").exists():
        return dict(bundles.read_record(folder)["spec"])
    try:
        return dict(json.loads((folder / RUN).read_text(encoding="utf-8"))["asked"])
    except (OSError, ValueError, KeyError):
        raise BundleError(f"'{folder}' holds no unfinished run to resume") from None


def _check_out(folder: Path | None, *, resume: bool, overwrite: bool) -> None:
    if folder is None:
        if resume:
            raise BundleError("resume needs out, the folder of the run that was cut off")
        return
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"--out '{folder}' is a file; a bundle needs a folder")
    if (folder / "bundle.json").exists() and not overwrite:
        raise BundleError(f"'{folder}' already holds a bundle; choose another folder or pass --overwrite")
    if (folder / RUN).exists() and not (resume or overwrite):
        raise BundleError(f"'{folder}' holds an unfinished run; go on with --resume or start anew with --overwrite")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise BundleError(f"cannot write to '{parent}'; choose another --out")


def execute(
    run: Run, folder: Path | None, *, resume: bool = False, overwrite: bool = False, track: str | None = None,
    timed: bool = True,
) -> Bundle:  # fmt: skip
    """Print the plan, `timed` or not, run the stages, gather the evidence, save the bundle."""
    listen = run.stages.listen
    if folder is not None:
        _begin(run, folder, resume=resume)
    plan_made = run.plan(timed=timed)
    listen("plan", {"plan": plan_made})
    tracker = _tracker(run, folder, track, resume=resume)
    limit = run.spec.training.time_limit
    deadline = None if limit is None else run.started + limit
    run.stages.listen = curves(listen, tracker)
    try:
        run.stages.check_labels()
        chosen = _run_stages(run, folder, resume=resume, deadline=deadline)
        evidence = Evidence(run.spec, run.data, run.task, run.stages, plan_made, chosen, run.started)
        made = evidence.bundle(run.test)
        run.answers = evidence.answers
        if folder is not None:
            made.save(folder, overwrite=overwrite)
            (folder / RUN).unlink(missing_ok=True)
            (folder / CHECKPOINT).unlink(missing_ok=True)
    except BaseException as error:
        if tracker is not None:
            tracker.finish(
                "KILLED" if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Interrupted" else "FAILED"
            )
        raise
    if tracker is not None:
        _track(tracker, made)
    return made


def _begin(run: Run, folder: Path, *, resume: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN
    if resume and path.exists():
        try:
            identity = json.loads(path.read_text(encoding="utf-8"))["identity"]
        except (ValueError, KeyError):
            raise BundleError(f"'{path}' cannot be read; start again with --overwrite") from None
        if identity != run.identity:
            raise BundleError(
                f"the unfinished run in '{folder}' was started with another spec or other data; "
                f"repeat its command, or start anew with --overwrite"
            )
        return
    (folder / CHECKPOINT).unlink(missing_ok=True)
    for old in (folder / STAGES).glob("*/bundle.json"):
        old.unlink()
    fresh = folder / f".{RUN}.{os.getpid()}"
    fresh.write_text(json.dumps({"identity": run.identity, "asked": run.spec.to_json()}, indent=2), encoding="utf-8")
    fresh.replace(path)


def _run_stages(run: Run, folder: Path | None, *, resume: bool, deadline: float | None) -> Chosen:
    """Every stage in order; `run.stages` ends as the stage that is kept."""
    results: list[StageResult] = []
    kept: tuple[int, Stages] | None = None
    frozen: np.ndarray | None = None
    for position, stage in enumerate(run.spec.stages):
        home = folder / STAGES / f"{position + 1}-{stage.name}" if folder and len(run.spec.stages) > 1 else None
        if resume and home is not None and (home / "bundle.json").exists():
            results.append(_restore(run, home))
        else:
            run.stages.listen("stage", {"name": stage.name, "number": position + 1, "of": len(run.spec.stages)})
            checkpoint = folder / CHECKPOINT if folder else None
            results.append(
                run.stages.run(
                    stage,
                    checkpoint=checkpoint,
                    identity=f"{run.identity}:{stage.name}",
                    resume=resume,
                    deadline=deadline,
                )
            )
            if home is not None:
                _keep_stage(run, home, results)
                if checkpoint is not None:
                    checkpoint.unlink(missing_ok=True)
        if run.stages.untouched and run.test is not None and position < len(run.spec.stages) - 1:
            frozen = run.stages.outputs("test", run.test)
        if kept is None or run.spec.keep == "last" or _improves(run, results[position].score, results[kept[0]].score):
            last = position == len(run.spec.stages) - 1
            kept = (position, run.stages if last or run.spec.keep == "last" else run.stages.copy())
    if kept is None:
        raise SpecError("the spec has no stages to run")
    run.stages = kept[1]
    return Chosen(results, kept[0], None if run.stages.untouched else frozen)


def _improves(run: Run, new: float | None, old: float | None) -> bool:
    """Whether a stage's score beats the kept one; without scores the later stage does."""
    return new is None or old is None or run.task.better(new, old)


def _keep_stage(run: Run, home: Path, results: list[StageResult]) -> None:
    made = Evidence.plain_bundle(run.spec, run.data, run.task, run.stages, results)
    made.record["untouched"] = run.stages.untouched
    made.save(home, overwrite=True)


def _restore(run: Run, home: Path) -> StageResult:
    """A stage that was finished before the run was cut off."""
    saved, parent = bundles.load(home), run.stages.parent
    run.stages.model = saved.model.to(run.stages.device)
    run.stages.go_on(saved)
    run.stages.untouched, run.stages.parent = saved.record["untouched"], parent
    return StageResult(**saved.record["stages"][-1])


def _tracker(run: Run, folder: Path | None, track: str | None, *, resume: bool) -> Tracker | None:
    """Where the curves go; the spec is written first, so that a run that fails has it too."""
    if folder is None and track is None:
        return None
    tracker = open_tracker(track, folder or Path(), run_name=folder.name if folder else "fit", fresh=not resume)
    if tracker.note() and track is not None:
        run.stages.listen("note", {"text": tracker.note()})
    tracker.params(run.spec.to_json())
    return tracker


def _track(tracker: Tracker, made: Bundle) -> None:
    if made.report is not None:
        tracker.report(made.report.to_json())
    if made.folder is not None:
        tracker.artefact(made.folder)
    tracker.finish("FINISHED")
