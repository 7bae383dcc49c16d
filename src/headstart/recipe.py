"""The default recipe: which stages run when the user names no method. A pure function of the data's size.

Very few texts, and classes to tell apart (for very few pictures the probe alone: on digits, far from what the backbone
has seen, contrast cost 12 points in one trial, and no rows are left that could have told):
    1. contrast  the body learns for a few epochs which rows share a class (the idea of SetFit, Tunstall et al. 2022).
    2. probe     the head is solved exactly on the features so tuned; a few texts made of the classes' names stand
                 among its rows where the labels are names (label-name rows are SetFit's idea for no labels at all).
Otherwise:
    1. probe     a linear head solved exactly on frozen features (Kumar et al. 2022: fine-tune from the probe's head).
    2. finetune  the blocks learn from that head, lower ones more slowly, with a contrastive term and label smoothing;
                 weights are averaged. The stage that validates better is kept; without validation rows the last one.

The numbers come from validation rows with MiniLM-L6, tried in sketches before this loop stood (their scripts are not
kept; `benchmarks/README.md` has what the product itself reaches):
    contrast   cosine loss, 1e-4, 10 epochs of 16: 55.9 on the mean of three sets at 8 rows a class, 3 draws each;
               frozen 50.1, supervised contrastive loss 54.8, cosine loss beside cross-entropy 54.2.
    names      4 texts a class in the probe: 58.2 on the mean of the three sets at 8 rows a class, 5 draws that are
               reported nowhere, measured on 500 to 700 training and validation rows a set; without 55.6 (tweet
               emotion 60.7 and 54.0, SST-5 30.7 and 29.6, AG News 83.3 and 83.2); 2 texts 58.0, 8 texts 58.3. On
               frozen features 54.7 and 49.8. Among the rows of the contrast as well, one draw: one text a
               class -0.9, three +0.9 (AG News -1.2), at more cost.
    finetune   rate 2e-4 falling by 0.85 a block, 4 epochs of 64, smoothing 0.1, contrast 0.3: 94.45 on Banking77,
               3 seeds; without contrast 94.0, one seed. The average's decay of 0.995 beat 0.998 by 0.1.
    few        10 epochs of 32 at 1e-4 over pairs, decay 0.99: 87.1 at 10 rows a class of Banking77, 2 draws; without
               contrast and pairs 85.7.
The embedding tables stay frozen for speed: a batch touches few of their rows, and the optimiser and the average would
pass over all of them. The norm above them learns, which keeps their dropout on: 94.5 on Banking77's validation rows, 2
seeds, where a wholly frozen stem gives 94.2.
"""

from __future__ import annotations

from typing import Any

from headstart.spec import MethodSpec, Spec, StageSpec

FEW_ROWS = 256
"""Training rows below which the contrastive stage runs instead of fine-tuning: then every row meets every other."""

FEW_BATCH = 16
"""Rows a batch of it: as good as 32 over three sets' validation rows, at half the cost."""

FEW_EPOCHS = 10
"""Epochs of it, and of fine-tuning on few rows a class."""

FEW_A_CLASS = 64
"""Rows a class below which fine-tuning takes more, gentler epochs."""

NAME_ROWS = 4
"""Texts a class, made of its name, among the rows of the probe: each counts as much as a training row, so that names
matter less the more rows there are."""

MANY_CLASSES = 16
"""Classes above which those epochs go over batches of same-class pairs: a random batch of 32 would hold too few."""

PROBE = StageSpec(
    name="probe",
    methods=(MethodSpec(name="freeze", options={"probe": True}),),
    training={"optimizer": "lbfgs"},
)


def expand(
    spec: Spec, *, task: str, modality: str, rows: int, outputs: int, validated: bool, named: bool = False
) -> Spec:
    """The spec with its stages written out. Methods that the user named become one stage of their own.

    named: whether the labels are names that a text encoder can read.
    """
    if spec.stages:
        return spec
    if spec.methods is not None:
        return spec.model_copy(update={"stages": (_single(spec, spec.methods),), "methods": None})
    if task == "classification" and rows < FEW_ROWS:
        stages = (_contrast(spec), _named_probe(spec, named)) if modality == "text" else (PROBE,)
        return spec.model_copy(update={"stages": stages, "keep": "last"})
    few = rows < FEW_A_CLASS * outputs
    stages = (PROBE, _finetune(spec, task, modality, outputs, few=few))
    return spec.model_copy(update={"stages": stages, "keep": "best" if validated else "last"})


def _single(spec: Spec, methods: tuple[MethodSpec, ...]) -> StageSpec:
    """The user's methods as one stage. A probe alone is solved exactly unless the user says how to train it."""
    plain = all(getattr(spec.training, key) is None for key in ("epochs", "learning_rate"))
    if methods == PROBE.methods and plain and spec.training.optimizer == "adamw":
        return PROBE
    return StageSpec(name="+".join(method.name for method in methods) or "finetune", methods=methods)


def _named_probe(spec: Spec, named: bool) -> StageSpec:
    """The probe with name rows, unless the user has said how many the whole run shall have."""
    rows = _unset(spec, {"name_rows": NAME_ROWS}) if named else {}
    return PROBE.model_copy(update={"training": {**PROBE.training, **rows}})


def _contrast(spec: Spec) -> StageSpec:
    return StageSpec(
        name="contrast",
        methods=(
            MethodSpec(name="freeze", options={"decay": 0.9, "bottom": 0}),
            MethodSpec(name="contrast", options={"kind": "cosine", "strength": 1.0}),
        ),
        training={
            **_unset(spec, {"epochs": FEW_EPOCHS, "learning_rate": 1e-4, "batch_size": FEW_BATCH}),
            "batches": "pairs",
            "task_weight": 0.0,
            "head": "random",
            "schedule": "linear",
            "patience": None,
        },
    )


def _finetune(spec: Spec, task: str, modality: str, outputs: int, *, few: bool) -> StageSpec:
    gentle = {"epochs": FEW_EPOCHS, "learning_rate": 1e-4, "batch_size": 32}
    usual = {"epochs": 4, "learning_rate": 2e-4, "batch_size": 64}
    training = _unset(spec, gentle if few else usual)
    learns = {"tables": True} if modality == "text" else {"bottom": 0}
    methods = [MethodSpec(name="freeze", options={"decay": 0.85, **learns})]
    options: dict[str, Any] = {}
    if task == "classification":
        methods.append(MethodSpec(name="contrast", options={"strength": 0.3}))
        training["task_weight"] = 0.7
        if few and outputs > MANY_CLASSES:
            training["batches"] = "pairs"
        if spec.task.label_smoothing == 0:
            options["label_smoothing"] = 0.1
    methods.append(MethodSpec(name="ema", options={"decay": 0.99 if few else 0.995}))
    return StageSpec(name="finetune", methods=tuple(methods), training=training, task=options)


def _unset(spec: Spec, defaults: dict[str, Any]) -> dict[str, Any]:
    """The defaults for what the user has not set."""
    return {key: value for key, value in defaults.items() if getattr(spec.training, key) is None}
