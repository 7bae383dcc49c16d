"""What the user asked for: one validated value, from flags, TOML or Python.

A spec is frozen, hashable (`digest`), saved in every bundle, and running it again repeats the run. Unknown keys are
refused with the nearest known one. Sections: `data`, `task`, `backbone`, `training`, `evaluation`, plus `methods` and
`stages`; for several tasks on one backbone `tasks`, a table of `data` and `task` a name, in place of the first two.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from headstart.errors import SpecError, did_you_mean
from headstart.spec.notation import parse_value, split_commas, written
from headstart.spec.sections import Section, plain, plant, sentence
from headstart.spec.training import TrainingSpec


class DataSpec(Section):
    """Where the rows are and what their columns mean. Columns left out are inferred, and the inference is said."""

    train: str | None = Field(
        None, description="csv, tsv, jsonl, parquet, saved Arrow data set, or folder of images or sounds"
    )
    validation: str | None = Field(None, description="rows to choose on; split off the training rows when left out")
    test: str | None = Field(None, description="rows to report on; the report says so when there are none")
    unlabelled: str | None = Field(None, description="rows without labels, for methods that learn from them")
    text: str | None = Field(None, description="the text column")
    image: str | None = Field(None, description="the column of image paths or bytes")
    audio: str | None = Field(None, description="the column of paths or bytes of sounds")
    label: str | tuple[str, ...] | None = Field(None, description="the label column, or several for many targets")
    split: Literal["stratified", "random", "group", "time"] = "stratified"
    group: str | None = Field(None, description="rows that share this column's value stay on one side of a split")
    time: str | None = Field(None, description="rows are split in this column's order, the latest validate")
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.0, ge=0, lt=1, description="split off when no test file is given")
    folds: int | None = Field(None, ge=2, description="parts of the training rows, for cross-validation")
    fold: int | None = Field(None, ge=1, description="the part that is measured on, of `folds`")
    on_bad_row: Literal["error", "skip"] = "error"
    encoding: str = "utf-8"
    separator: str | None = Field(None, description="between the labels of one cell, for several labels a row")
    per_class: int | None = Field(None, ge=1, description="keep this many training rows of each class")
    fraction: float | None = Field(None, gt=0, le=1, description="keep this share of the training rows, by class")
    check_labels: bool = Field(False, description="list training rows whose label looks wrong, in the report")


class TaskSpec(Section):
    """What is to be learned."""

    name: str | None = Field(None, description="classification, multilabel or regression; inferred when left out")
    class_weights: Literal["none", "balanced", "effective"] = Field(
        "none", description="rare classes weigh more: by their rows, or by their effective number (Cui et al. 2019)"
    )
    effective_beta: float = Field(0.999, ge=0, lt=1, description="how far class_weights=effective goes; 0 not at all")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    focal_gamma: float = Field(0.0, ge=0, description="focal loss (Lin et al. 2017); 0 is cross-entropy")
    logit_adjustment: float = Field(
        0.0, ge=0, description="tau of the logit-adjusted loss (Menon et al. 2021) for rare classes; 0 is off, 1 usual"
    )
    gce_q: float = Field(
        0.0,
        ge=0,
        le=1,
        description="q of generalised cross-entropy (Zhang and Sabuncu 2018) for wrong labels; 0 is off",
    )


class MemberSpec(Section):
    """One task of several: its rows, and what is to be learned of them."""

    data: DataSpec = DataSpec()
    task: TaskSpec = TaskSpec()


class BackboneSpec(Section):
    """The pretrained network."""

    ref: str | None = Field(
        None, description="hf:, timm:, file: or pkg: reference; a default per modality when left out"
    )
    revision: str | None = None
    pooling: Literal["cls", "mean", "attention"] | None = Field(
        None, description="as the model was trained if left out"
    )
    max_length: int | None = Field(None, ge=4, description="tokens kept of a text")
    image_size: int | None = Field(None, ge=16, description="height and width in pixels")
    max_seconds: float | None = Field(None, gt=0, description="seconds kept of a sound")
    layers: Annotated[int, Field(ge=1)] | tuple[int, ...] | None = Field(
        None, description="keep this many blocks, evenly spaced, or those of a list such as [0, 2, 5]"
    )
    pretrained: bool = Field(True, description="false starts from random weights: what `compare` calls scratch")
    allow_pickle: bool = Field(False, description="read weights that are not safetensors")
    trust_remote_code: bool = False


class MethodSpec(Section):
    """A transfer method by public name with its options: `lora:r=8,alpha=16`."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> MethodSpec:
        """From `name[:key=value,...]`; a bare key means true. Values are read as TOML values, else as strings."""
        name, _, rest = text.partition(":")
        if not name.strip():
            raise SpecError(f"expected a method as name[:key=value,...], received '{text}'")
        options: dict[str, Any] = {}
        for part in filter(None, (piece.strip() for piece in split_commas(rest))):
            key, equals, value = part.partition("=")
            options[key.strip().replace("-", "_")] = parse_value(value) if equals else True
        return cls(name=name.strip(), options=options)

    def __str__(self) -> str:
        listed = ",".join(f"{key}={written(value)}" for key, value in self.options.items())
        return f"{self.name}:{listed}" if listed else self.name


class EvaluationSpec(Section):
    """What the report measures beside the metrics."""

    robust: bool = Field(False, description="measure attacked and spoiled rows too: see docs/robustness.md")
    robust_rows: int = Field(300, ge=1, description="rows that are attacked at most, a seeded sample")
    robust_steps: int = Field(10, ge=1, description="steps of an attack")
    radii: tuple[float, ...] | None = Field(None, description="of the attacks; the usual ones when left out")

    @field_validator("radii")
    @classmethod
    def _lengths(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (not value or min(value) < 0):
            raise ValueError(f"evaluation.radii: expected one or more lengths of at least 0, received {list(value)}")
        return value


class StageSpec(Section):
    """One run of a sequence. It starts from the stage before it; what it leaves out is taken from the spec."""

    name: str
    methods: tuple[MethodSpec, ...] = ()
    training: dict[str, Any] = Field(default_factory=dict, description="keys of `training` that differ in this stage")
    task: dict[str, Any] = Field(default_factory=dict, description="options of `task` that differ in this stage")

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return _method_list(value)

    @model_validator(mode="after")
    def _known(self) -> StageSpec:
        for given, section in ((self.training, TrainingSpec), (self.task, TaskSpec)):
            for key in given:
                if key not in section.model_fields:
                    raise ValueError(
                        f"unknown key '{key}' in stage '{self.name}': {did_you_mean(key, section.model_fields)}"
                    )
            try:
                section.model_validate(given)
            except ValidationError as error:
                where = "training" if section is TrainingSpec else "task"
                raise SpecError(f"stage '{self.name}': {where}.{sentence(error, section)}") from None
        return self


class Spec(Section):
    """The whole request. With neither `methods` nor `stages` the default recipe runs."""

    data: DataSpec = DataSpec()
    task: TaskSpec = TaskSpec()
    tasks: dict[str, MemberSpec] = Field(default_factory=dict, description="several tasks on one backbone, by name")
    backbone: BackboneSpec = BackboneSpec()
    methods: tuple[MethodSpec, ...] | None = None
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    stages: tuple[StageSpec, ...] = ()
    keep: Literal["last", "best"] = Field("last", description="which stage's model is the result, by validation")

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return None if value is None else _method_list(value)

    @model_validator(mode="after")
    def _together(self) -> Spec:
        if self.stages and self.methods is not None:
            raise ValueError("give either methods or stages, not both: a stage lists its own methods")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages need different names, received {names}")
        for where, data in (("", self.data), *((f"tasks.{name}.", own.data) for name, own in self.tasks.items())):
            if data.split in ("group", "time") and getattr(data, data.split) is None:
                raise ValueError(f"{where}data.split = '{data.split}' needs data.{data.split}, the column to split by")
        if self.tasks:
            self._several()
        elif self.training.sampling != "size":
            raise ValueError(
                "training.sampling shares an epoch between several tasks, and this run has one: leave it out"
            )
        if "multitask" in (self.task.name, *(own.task.name for own in self.tasks.values())):
            raise ValueError("task.name says what one set of rows is about; several have a table [tasks.NAME] each")
        return self

    def _several(self) -> None:
        """What runs of several tasks must and must not have."""
        if len(self.tasks) == 1:
            raise ValueError("tasks: expected two or more, received one; give it as data and task at the top instead")
        for name in self.tasks:
            if not re.fullmatch(r"[A-Za-z0-9]\w*", name):
                raise ValueError(f"tasks: expected names of letters, digits and underscores, received '{name}'")
        for key, section in (("data", DataSpec), ("task", TaskSpec)):
            if (given := getattr(self, key)) != section():
                first = min(given.model_fields_set, default="")
                raise ValueError(
                    f"{key}.{first} stands beside tasks, which have their own: write it in tasks.NAME.{key}"
                )
        if self.training.batches == "pairs" or any(s.training.get("batches") == "pairs" for s in self.stages):
            raise ValueError("training.batches = 'pairs' is about rows of one class, which several tasks do not share")
        for stage in self.stages:
            if stage.task:
                raise ValueError(
                    f"stage '{stage.name}' changes its task, of which there are several: use tasks.NAME.task"
                )

    def alone(self, name: str) -> Spec:
        """The spec of one of the tasks by itself, with the same settings."""
        own = self.tasks[name]
        single = self.training.model_copy(update={"sampling": "size"})
        return self.model_copy(update={"tasks": {}, "data": own.data, "task": own.task, "training": single})

    @classmethod
    def make(cls, record: Mapping[str, Any] | None = None, sets: Sequence[str] = (), **flat: Any) -> Spec:
        """Validate a nested mapping, `a.b=c` strings and dotted keyword paths (`training__epochs=3`) into a spec.

        Raises SpecError naming the key, what was expected and, for unknown keys, the nearest known one.
        """
        tree: dict[str, Any] = json.loads(json.dumps(record, default=plain)) if record else {}
        for path, value in flat.items():
            if value is not None:
                plant(tree, path.split("__"), value)
        for text in sets:
            path, equals, value = text.partition("=")
            if not equals:
                raise SpecError(f"expected --set section.key=value, received '{text}'")
            plant(tree, path.strip().split("."), parse_value(value))
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise SpecError(sentence(error, cls)) from None

    @classmethod
    def read(cls, path: str | Path, sets: Sequence[str] = (), **flat: Any) -> Spec:
        """From a TOML file, or the JSON that a bundle keeps. Relative data paths are kept as written."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            record = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"cannot read the spec '{path}': {error}") from None
        except ValueError as error:
            raise SpecError(f"'{path}' is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
        if path.name == "bundle.json" and isinstance(record, dict):
            if "spec" not in record:
                raise SpecError(f"'{path}' holds no spec: expected the bundle.json of a bundle")
            record = record["spec"]
        if not isinstance(record, dict):
            raise SpecError(f"'{path}' must hold a table of sections, received {type(record).__name__}")
        return cls.make(record, sets, **flat)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON from which `make` gives an equal spec."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _method_list(value: Any) -> Any:
    if isinstance(value, str | Mapping | MethodSpec):
        value = [value]
    if not isinstance(value, list | tuple):
        raise SpecError(f"methods: expected a list of methods such as lora:r=8, received {value!r}")
    return [MethodSpec.parse(item) if isinstance(item, str) else item for item in value]
