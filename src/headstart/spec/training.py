"""The settings of training: one section of a spec."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from headstart.errors import SpecError
from headstart.spec.notation import parse_duration, parse_size
from headstart.spec.sections import Section


class TrainingSpec(Section):
    """How the loop runs. Defaults that are None are chosen by the plan from the data and the backbone, and said."""

    epochs: int | None = Field(None, ge=0)
    batch_size: int | None = Field(None, ge=1, description="rows a micro-batch")
    accumulate: int = Field(1, ge=1, description="micro-batches an optimiser step; equals the big batch")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of a text batch that are in memory at a time; longer ones go in parts, to the same step",
    )
    learning_rate: float | None = Field(None, gt=0)
    optimizer: Literal["adamw", "adam", "sgd", "lbfgs"] = Field(
        "adamw", description="lbfgs solves a linear head exactly on cached features"
    )
    schedule: Literal["cosine", "linear", "constant", "one_cycle"] = "cosine"
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.01, ge=0)
    decay_norms: bool = Field(False, description="whether weight decay holds for biases and norms too")
    running_stats: Literal["auto", "update", "keep"] = Field(
        "auto",
        description="means and variances of BatchNorm: taken from the batches, or kept as pretrained; auto keeps them "
        "in short runs",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="for sgd")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm")
    precision: Literal["auto", "fp32", "bf16", "bf16_weights"] = Field(
        "auto", description="of forward passes: as measured, fp32, bf16 by autocast, or bf16 with fp32 master weights"
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="compute blocks again in the backward pass instead of keeping them; auto: to fit memory"
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto", description="texts without their padding; auto: where much is padding and it measures faster"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile for the blocks; auto: in long runs, where it measures faster, warm-up included",
    )
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        "auto",
        description="on a GPU, passes recorded once and then started by one call each; auto: where it measures faster",
    )
    prefetch: Literal["auto", "on", "off"] = Field(
        "auto",
        description="take the next batches in the background; auto: where that takes long and it measures faster",
    )
    parts: Literal["auto", "off"] = Field(
        "auto",
        description="on a CPU, the pictures of a step a few at a time; auto: where it measures faster and is the same",
    )
    memory_limit: str | None = Field(
        None, description="memory that a run may take, such as 6GB; what is free when left out"
    )
    batches: Literal["length", "pairs"] = Field(
        "length", description="rows of like length together, or every row with another of its class"
    )
    sampling: Literal["size", "temperature", "uniform", "round_robin"] = Field(
        "size", description="of several tasks: each one's share of an epoch; round_robin has one task a batch"
    )
    sampling_temperature: float = Field(2.0, ge=1, description="T of shares that go with rows^(1/T); 1 is by size")
    task_weight: float = Field(
        1.0, ge=0, description="factor on the task's loss; 0 leaves the methods' penalties alone"
    )
    head_scale: float | None = Field(None, gt=0, description="the head's learning rate over the backbone's")
    head: Literal["probe", "random", "prototypes", "names"] = Field(
        "probe", description="a fresh head starts from the frozen probe, random, from class means or class names"
    )
    name_rows: int | None = Field(
        None, ge=0, description="texts a class made of its name, added to the training rows; the recipe chooses"
    )
    name_template: str = Field(
        "This text is about {name}.", pattern=r"\{name\}", description="the text made of a class's name"
    )
    patience: int | None = Field(3, ge=1, description="validations without a better metric before stopping")
    weights: Literal["best", "last"] = Field("best", description="kept: those of the best validation, or the last")
    metric: str | None = Field(None, description="what early stopping and the choice of weights compare")
    checkpoint_every: float = Field(60.0, gt=0, description="seconds between saved states")
    time_limit: float | None = Field(None, gt=0, description="seconds")
    cache: str = Field(
        "auto", description="room on disk for what a frozen bottom makes of the rows: auto, off, or a size such as 2GB"
    )
    seed: int = Field(0, ge=0)
    device: str = "auto"

    @property
    def batch_rows(self) -> int:
        """The batch size, 32 when nobody chose one."""
        return self.batch_size or 32

    @field_validator("cache")
    @classmethod
    def _cache(cls, value: str) -> str:
        if value not in ("auto", "off"):
            try:
                parse_size(value)
            except SpecError:
                raise ValueError(
                    f"training.cache: expected auto, off or a size such as 500MB or 2GB, received '{value}'"
                ) from None
        return value

    @field_validator("memory_limit")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                parse_size(value)
        except SpecError:
            raise ValueError(
                f"training.memory_limit: expected a size such as 500MB or 6GB, received '{value}'"
            ) from None
        return value

    @field_validator("time_limit", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value
