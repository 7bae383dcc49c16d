"""A student learns from a teacher: what a large model knows, in a small one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods import _likeness
from headstart.methods._checks import choice, number, refuse, whole
from headstart.methods._example import example
from headstart.methods._rows import weighted
from headstart.methods._teacher import Answers, Teacher, label_order, pool
from headstart.methods._told import SUFFIX, Told, write_outputs
from headstart.methods._watch import attention, channels_last, states, tokens, watch
from headstart.protocols import Context, Method
from headstart.values import Batch, Features, View

__all__ = ["Distil", "write_outputs"]

PROJECTION = "distil"
"""Where the projections stand inside the head: there they learn in every run, whoever decides what else does."""


@dataclass
class Distil(Method):
    """Learns the answers of a teacher, a finished model of any size, beside or instead of the labels.

    Equation: with s of the student and t of the teacher, the sum of
    `logits` * mean_i T^2 KL(softmax(t_i / T) || softmax(s_i / T)), for several labels a row the mean of KL over its
    labels' two-way answers, for a regression its own loss with the teacher's values as targets;
    `hidden` * mean over matched blocks and i of || W s_i / |W s_i| - t_i / |t_i| ||^2, W learned where widths differ;
    `attention` * mean over matched blocks, heads and tokens of KL(t || s) of the attention maps;
    `relations` * (mean over pairs of huber(|s_i - s_j| / m_s, |t_i - t_j| / m_t) + 2 * mean over triples of
    huber(cos s_ijk, cos t_ijk)) on pooled features, m the mean distance and cos the angle's at the middle row.
    The labels' own loss is weighed by `training.task_weight`; 0 leaves the teacher alone.

    Source: `logits`: Hinton et al. 2015, section 2. `hidden`: Sun et al. 2019 (Patient Knowledge Distillation) for the
    lengths that are divided out, Romero et al. 2015 (FitNets) for W, Jiao et al. 2020 (TinyBERT) for the even match of
    blocks; Sun et al. compare [CLS], this the mean over tokens. `attention`: Wang et al. 2020 (MiniLM) for the loss,
    which is that of the last block there, over all matched blocks here. `relations`: Park et al. 2019 (RKD).

    Requires: `teacher`, a bundle on the same modality; for `logits` of the same task, knowing every label (they are
    matched by name). Other tokenizers, picture sizes and widths are fine: the teacher then reads the rows itself. It
    cannot where other methods change batches, nor for `of=tokens` and `attention`: there both must read alike. A
    file of outputs offers `logits` alone, for rows that no method changes; rows are found in it by their content.

    Shapes: outputs (N,K), pooled (N,D), hidden (N,D) or (N,T,D), maps (N,heads,T,T) -> a scalar each. The teacher is
    asked once for every row before training, which keeps 4 bytes a number of outputs, of pooled features (`relations`)
    and of matched blocks; again for every batch where batches are changed or tokens matched.

    Neighbours: `backbone.layers` makes the student from a pretrained network; `prune` makes one by cutting and
    combines with this. `lwf` holds features to the run's own start. The teacher sees mixed and augmented rows as the
    student does, and attacked ones (`fgm`, `pgd`) as they were. Rows of `data.unlabelled` join every
    micro-batch, as many at a time as it has, by length.

    Example: `--method distil:teacher=runs/big,hidden=1 --set backbone.layers=3 --set training.task_weight=0.5`;
    `hs.methods.Distil(teacher="runs/big", hidden=1.0)`.

    Defaults: logits alone, as in Hinton et al.; their T for soft answers of a 10-class network is from 2.5 to 4 for
    small students (section 3), and T = 2 is untuned. Angles weigh twice as much as distances, as in Park et al.
    hidden=2, relations=1 at task_weight = 0.3 were the only strengths tried on Banking77 (half of MiniLM's blocks).

    teacher: the folder of its bundle, or a file of its outputs by `write_outputs` of this module. logits, hidden,
    attention, relations: strength of each term, 0 for none. temperature: T. of: what `hidden` compares, the mean over a
    row's tokens or places (pooled), or each of them (tokens). unlabelled: rows without labels for each labelled one,
    where there are any; 0 leaves them out.
    """

    teacher: str = ""
    logits: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    relations: float = 0.0
    temperature: float = 2.0
    of: str = "pooled"
    unlabelled: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, str) or not self.teacher:
            raise refuse("distil:teacher", "the folder of a bundle", self.teacher, "such as teacher=runs/big")
        terms = ("logits", "hidden", "attention", "relations")
        for name in terms:
            number(f"distil:{name}", getattr(self, name), 0, f"such as {name}=1; 0 leaves the term out")
        if not any(getattr(self, name) for name in terms):
            raise MethodError("distil: every term is 0, so there is nothing to learn from the teacher: set logits=1")
        number("distil:temperature", self.temperature, 0, "such as temperature=2", above=True)
        choice("distil:of", self.of, ("pooled", "tokens"))
        whole("distil:unlabelled", self.unlabelled, 0, "such as unlabelled=1; 0 leaves rows without labels out")

    def passes(self) -> float:
        """A pass forwards of the teacher a batch where it is asked again, and one more of the student for its maps."""
        return (4 / 3 if self._each_batch else 1.0) + (1.0 if self.attention else 0.0)

    @property
    def _each_batch(self) -> bool:
        """Whether the terms need more than can be kept of every row."""
        return bool(self.attention) or bool(self.hidden and self.of == "tokens")

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Load the teacher; where `hidden` compares different widths, put the projections into the head.

        Raises MethodError for a teacher of another modality or with other labels, or one that would have to read
        batches as they are prepared for the student and cannot; BundleError where there is no bundle.
        """
        student: Any = model.backbone
        self.answers_: dict[str, Answers] = {}
        self.stop_ = None
        if self.teacher.endswith(SUFFIX):
            return self._adapt_to_file(model, ctx)
        if ctx.bundle is None:
            raise MethodError("'distil' needs a run that can load its teacher: use it in headstart.fit")
        bundle = ctx.bundle(self.teacher)
        theirs = bundle.model.backbone
        if theirs.modality != student.modality:
            raise MethodError(
                f"'distil': the teacher reads {theirs.modality} and the rows are {student.modality}; take another"
            )
        self.pairs_ = matched(len(student.blocks), len(theirs.blocks)) if self.hidden or self.attention else []
        self.teacher_: Teacher | Told = Teacher(
            bundle,
            label_order(ctx.task, bundle.task) if self.logits else None,
            [there for _, there in self.pairs_],
            self.of == "tokens",
            bool(self.attention),
            bool(self.relations),
        )
        self.again_ = ctx.altered or self._each_batch
        if self.again_ and not self.teacher_.reads_like(student):
            why = "another method changes the batches" if ctx.altered else "distil:of=tokens or distil:attention is set"
            raise MethodError(
                f"'distil': the teacher reads its rows in another way than the student (tokenizer, length or picture "
                f"size), and {why}: take a teacher that reads alike, or leave that out"
            )
        bundle.model.to(next(model.parameters()).device)
        self.record_ = self._record(bundle)
        self.stop_ = watch(student) if self.pairs_ else None
        if self.hidden:
            self._add_projections(model, theirs, ctx)
        return model

    def _adapt_to_file(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Read a teacher's outputs, which are of whole rows and say nothing of what is inside."""
        if self.hidden or self.attention or self.relations:
            raise MethodError(f"'{self.teacher}' holds outputs alone: leave hidden, attention and relations out")
        if ctx.altered:
            raise MethodError(
                f"'distil': '{self.teacher}' holds outputs for rows as they are, and another method changes the "
                f"batches: leave that out, or give the teacher as a bundle"
            )
        self.teacher_ = Told(self.teacher, ctx.task)
        self.pairs_, self.again_ = [], False
        self.record_ = {"file": self.teacher, "sha256": self.teacher_.digest}
        return model

    def _record(self, bundle: Any) -> dict[str, Any]:
        """Who the teacher is."""
        known = {"folder": self.teacher, "sha256": self.teacher_.digest, "backbone": bundle.model.backbone.ref}
        lineage = getattr(bundle, "record", {}).get("lineage")
        return known if lineage is None else {**known, "lineage": lineage}

    def _add_projections(self, model: nn.Module, theirs: Any, ctx: Context) -> None:
        whole: Any = model
        with torch.no_grad(), ctx.quiet(model):
            ours, others = (states(net(example(net))) for net in (whole.backbone, theirs))
        last = channels_last(whole.backbone), channels_last(theirs)
        wide = [(_width(ours[a], last[0]), _width(others[b], last[1])) for a, b in self.pairs_]
        made = {str(i): nn.Linear(a, b, bias=False) for i, (a, b) in enumerate(wide) if a != b}
        if made:
            whole.head.add_module(PROJECTION, nn.ModuleDict(made).to(next(model.parameters()).device))

    def penalty(self, view: View, ctx: Context) -> dict[str, Tensor]:
        """`distil` and, where asked for, `distil_hidden`, `distil_attention`, `distil_relations`."""
        terms = self._terms(view.batch, view.features, view.outputs, view.model, "rows", ctx)
        if ctx.unlabelled is not None and self.unlabelled:
            for batch in self._more(view.batch, ctx):
                with ctx.quiet(view.model), ctx.autocast():
                    features, outputs = view.model(batch)
                more = self._terms(batch, features, outputs.float(), view.model, "unlabelled", ctx)
                terms = {name: value + more[name] for name, value in terms.items()}
            terms = {name: value / (1 + self.unlabelled) for name, value in terms.items()}
        return terms

    def _more(self, batch: Batch, ctx: Context) -> Iterator[Batch]:
        """Rows without labels, drawn for each row of the batch, so that a divided batch draws the same.

        As many at a time as the batch has, by length as batches of labelled rows are: a long text among them all would
        make each as long.
        """
        free: Any = ctx.unlabelled
        rows = len(ctx.train_rows) if ctx.train_rows is not None else int(batch.row.max()) + 1
        draws = torch.randint(len(free), (max(1, rows), self.unlabelled), generator=ctx.generator)
        drawn = draws[batch.row.cpu()].flatten().numpy()
        drawn = drawn[np.argsort(free.prepared.lengths[drawn], kind="stable")]
        for part in np.array_split(drawn, self.unlabelled):
            found: Batch = free.batch(part.tolist())
            yield found.to(batch.weight.device)

    def _ask(self, batch: Batch, kind: str, model: nn.Module, ctx: Context) -> Answers:
        """What the teacher says of these rows: remembered, or asked now."""
        whole: Any = model
        rows = ctx.train_rows if kind == "rows" else ctx.unlabelled
        strange = bool((batch.row < 0).any())
        if self.again_ or rows is None or strange:
            if isinstance(self.teacher_, Told) or not self.teacher_.reads_like(whole.backbone):
                raise MethodError("'distil': the teacher cannot read these rows, which are not those of the run")
            return self.teacher_.ask(batch, ctx)
        if kind not in self.answers_:
            self.answers_[kind] = self.teacher_.ask_all(rows, whole.backbone, ctx)
        return self.answers_[kind].take(batch.row, batch.weight.device)

    def _terms(
        self, batch: Batch, features: Features, outputs: Tensor, model: nn.Module, kind: str, ctx: Context
    ) -> dict[str, Tensor]:
        answers = self._ask(batch, kind, model, ctx)
        found: dict[str, Tensor] = {}
        if self.logits and answers.outputs is not None:
            loss = _likeness.outputs(outputs, answers.outputs, self.temperature, ctx.task)
            found["distil"] = self.logits * weighted(loss, batch)
        if self.hidden:
            found["distil_hidden"] = self.hidden * weighted(self._hidden(features, answers, model), batch)
        if self.attention:
            found["distil_attention"] = self.attention * weighted(
                self._maps(batch, features, answers, model, ctx), batch
            )
        if self.relations:
            found["distil_relations"] = self.relations * _likeness.relations(features.pooled.float(), answers.pooled)
        return found

    def _hidden(self, features: Features, answers: Answers, model: nn.Module) -> Tensor:
        """(N,): the distance of the matched blocks' outputs."""
        whole: Any = model
        mine, last = states(features), channels_last(whole.backbone)
        projections = getattr(whole.head, PROJECTION, {})
        each = []
        for place, ((here, _), wanted) in enumerate(zip(self.pairs_, answers.hidden, strict=True)):
            values, mask = tokens(mine[here], features, last)
            if self.of == "pooled":
                values, mask = pool(values, mask)[:, None], mask[:, :1] * 0 + 1
                wanted = wanted[:, None]
            if str(place) in projections:
                values = projections[str(place)](values)
            if values.shape != wanted.shape:
                raise MethodError(
                    f"'distil': block {here} gives {values.shape[1]} places and the teacher's {wanted.shape[1]}: "
                    f"set distil:of=pooled"
                )
            each.append((_likeness.directions(values, wanted) * mask).sum(1) / mask.sum(1).clamp_min(1))
        return _likeness.mean(each)

    def _maps(self, batch: Batch, features: Features, answers: Answers, model: nn.Module, ctx: Context) -> Tensor:
        """(N,): the divergence of attention maps, which dropout would leave holes in, so a pass without is made."""
        whole: Any = model
        with ctx.quiet(model), ctx.autocast():
            mine = attention(whole.backbone, batch)
        each = []
        for (here, _), wanted in zip(self.pairs_, answers.maps, strict=True):
            if mine[here].shape != wanted.shape:
                raise MethodError(
                    f"'distil': the student has {mine[here].shape[1]} attention heads a block and the teacher "
                    f"{wanted.shape[1]}: leave distil:attention out"
                )
            mask = features.mask
            if mask is None or mask.shape[1] != wanted.shape[2]:
                mask = torch.ones(wanted.shape[0], wanted.shape[2], device=wanted.device)
            each.append(_likeness.attentions(mine[here], wanted, mask.float()))
        return _likeness.mean(each)

    def finish(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model without projections; the teacher is let go."""
        whole: Any = model
        if hasattr(whole.head, PROJECTION):
            delattr(whole.head, PROJECTION)
        if self.stop_ is not None:
            self.stop_()
        self.teacher_.release()
        del self.teacher_, self.answers_
        return model

    def artefacts(self) -> dict[str, bytes]:
        """`teacher.json`: which model the student learned from."""
        return {"teacher.json": json.dumps(self.record_, indent=2).encode()} if hasattr(self, "record_") else {}

    def state(self) -> dict[str, Any]:
        """Which teacher it was."""
        return {"teacher": self.record_["sha256"]} if hasattr(self, "record_") else {}

    def load_state(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Raises MethodError when the run was begun with another teacher."""
        if state and state["teacher"] != self.record_["sha256"]:
            raise MethodError(
                f"the teacher in '{self.teacher}' is not the one that this run was begun with: put it back, or start "
                f"again without --resume"
            )


def matched(student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs of blocks: the end of each part of the student with the end of the same part of the teacher."""
    pairs = [(here, (here + 1) * teacher // student - 1) for here in range(student)]
    return [(here, there) for here, there in pairs if there >= 0]


def _width(state: Tensor, last: bool) -> int:
    return int(state.shape[1] if state.ndim == 4 and not last else state.shape[-1])
