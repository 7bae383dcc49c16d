"""Another finished model whose answers a run learns from: asked once for every row, or again for every batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.errors import MethodError, did_you_mean
from headstart.methods._watch import attention, channels_last, states, tokens, watch
from headstart.protocols import Backbone, Context, Prepared, Task
from headstart.values import Batch

ROWS = 64
"""Rows asked at a time."""


@dataclass
class Answers:
    """What a teacher says of N rows.

    outputs: (N,K) in the order of the student's labels; values in the targets' own units for a regression; None where
    its labels are not asked for. pooled: (N,D). hidden: of each block that is matched, one vector a row (N,D), or each
    token's (N,T,D). maps: (N,heads,T,T) of each of these blocks.
    """

    outputs: Tensor | None
    pooled: Tensor
    hidden: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)

    def _all(self) -> list[Tensor]:
        return [*([] if self.outputs is None else [self.outputs]), self.pooled, *self.hidden]

    def room(self, rows: int) -> Answers:
        """Space for the answers about so many rows, each like these."""
        made = [torch.empty((rows, *value.shape[1:])) for value in self._all()]
        return Answers(None, made[0], made[1:]) if self.outputs is None else Answers(made[0], made[1], made[2:])

    def put(self, rows: Tensor, answers: Answers) -> None:
        """Store the answers about these rows."""
        for place, value in zip(self._all(), answers._all(), strict=True):
            place[rows] = value.float().cpu()

    def take(self, rows: Tensor, device: torch.device) -> Answers:
        """The answers about these rows."""
        index = rows.cpu()
        taken = [value[index].to(device) for value in self._all()]
        return Answers(None, taken[0], taken[1:]) if self.outputs is None else Answers(taken[0], taken[1], taken[2:])


@dataclass
class Teacher:
    """A bundle's model in evaluation mode, without gradients.

    blocks: the numbers of its blocks that are matched. each_token: whether their outputs are kept for each token.
    with_maps, with_pooled: whether attention maps and pooled features are asked for; what is not takes no memory.
    """

    bundle: Any
    order: list[int] | None
    blocks: Sequence[int] = ()
    each_token: bool = False
    with_maps: bool = False
    with_pooled: bool = True

    def __post_init__(self) -> None:
        self.model: nn.Module = self.bundle.model
        self.model.eval().requires_grad_(False)
        self.backbone: Backbone = self.bundle.model.backbone
        self.end = watch(self.backbone) if self.blocks else None

    @property
    def digest(self) -> str:
        """sha256 over the bytes of its weights, which tells one teacher from another."""
        total = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            total.update(name.encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()

    def reads_like(self, student: Backbone) -> bool:
        """Whether it takes the very inputs that were prepared for the student."""
        same = dict(self.backbone.preprocessing) == dict(student.preprocessing)
        return same and self.backbone.modality == student.modality

    def ask(self, batch: Batch, ctx: Context) -> Answers:
        """Its answers about a batch as it is, mixed rows mixed. A shift is the student's own, so it is left out."""
        batch = batch.replace(shift=None)
        with torch.no_grad(), ctx.autocast():
            features, outputs = self.model(batch)
            said = None if self.order is None else self._said(outputs.float())
            hidden = []
            for number in self.blocks:
                values, mask = tokens(states(features)[number], features, channels_last(self.backbone))
                hidden.append(values if self.each_token else pool(values, mask))
            every = attention(self.backbone, batch) if self.with_maps else []
            maps = [every[number] for number in self.blocks] if self.with_maps else []
        pooled = features.pooled.float() if self.with_pooled else features.pooled[:, :0].float()
        return Answers(said, pooled, hidden, maps)

    def _said(self, outputs: Tensor) -> Tensor:
        task: Task = self.bundle.task
        if task.name == "regression":
            outputs = task.scores(outputs)
        return outputs[:, self.order]

    def ask_all(self, rows: Any, student: Backbone, ctx: Context) -> Answers:
        """Its answers about every row. Rows that were prepared for another kind of network are prepared anew.

        Raises MethodError when they would have to be and are not known.
        """
        prepared: Prepared = rows.prepared
        if not self.reads_like(student):
            if rows.raw is None:
                raise MethodError(
                    "'distil': the teacher reads its rows in another way than the student, and the rows as they were "
                    "read are not there: take a teacher with the same tokenizer or picture size"
                )
            prepared = self.bundle.modality.prepare(rows.raw, self.backbone)
        device = next(self.model.parameters()).device
        order = np.argsort(-np.asarray(prepared.lengths, dtype=np.int64), kind="stable")
        found: Answers | None = None
        for start in range(0, len(order), ROWS):
            index = torch.from_numpy(order[start : start + ROWS].copy())
            answers = self.ask(_batch(prepared.take(index.tolist()), index).to(device), ctx)
            found = answers.room(len(order)) if found is None else found
            found.put(index, answers)
        if found is None:
            raise MethodError("'distil': there are no rows to ask the teacher about")
        return found

    def release(self) -> None:
        """Leave the teacher's network as it was."""
        if self.end is not None:
            self.end()


def pool(values: Tensor, mask: Tensor) -> Tensor:
    """(N,D): the mean over the places (N,P,D) that count (N,P)."""
    return (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def label_order(task: Task, teacher: Task) -> list[int]:
    """Where each of the task's labels stands among the teacher's. Raises MethodError for a label it does not know."""
    if task.members:
        raise MethodError(
            "'distil': a run of several tasks has no common answers to learn from: set distil:logits=0 "
            "and match hidden, attention or relations, or give it one task alone"
        )
    if task.name != teacher.name:
        raise MethodError(
            f"'distil': the run is {task.name} and its teacher was made for {teacher.name}: its outputs say something "
            f"else; set distil:logits=0 and match hidden, attention or relations, or take another teacher"
        )
    places = {label: place for place, label in enumerate(teacher.labels)}
    missing = [label for label in task.labels if label not in places]
    if missing:
        shown = ", ".join(f"'{label}'" for label in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise MethodError(
            f"'distil': the teacher does not know the labels {shown}{more} ({did_you_mean(missing[0], places)}); "
            f"take a teacher that was trained with them, or set distil:logits=0"
        )
    return [places[label] for label in task.labels]


def _batch(inputs: dict[str, Tensor], index: Tensor) -> Batch:
    rows = len(index)
    return Batch(inputs, None, torch.ones(rows), torch.zeros(rows, dtype=torch.int64), index)
