"""Which parts of one row speak for an answer: Integrated Gradients for texts, occlusion for pictures, by captum.

Texts. With f the score of a label, x the word embeddings and b those of as many padding tokens (special tokens are left
as they are), token i gets

    (x_i - b_i) * integral over a from 0 to 1 of  df/dx_i (b + a (x - b)),

and all tokens together f(x) - f(b): Sundararajan et al. 2017, equation 1 and proposition 1. It is what captum's
LayerIntegratedGradients gives at the layer of word embeddings, but the way goes through `Batch.shift`: nothing is hung
into a network that may answer others meanwhile.

Pictures. A part gets f(x) - f(x with the part blurred): Zeiler and Fergus 2014, section 4.2. Integrated Gradients of
pixels, added up to the same parts, cost more on a convolutional network, missed their sum by far at 32 steps, and found
no more of what the answer rests on (benchmarks/explain/faithful.py).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.bundle import Bundle
from headstart.encoded import Encoded
from headstart.errors import BadInput, MissingExtra, SpecError, did_you_mean
from headstart.explanation.picture import blurred, png
from headstart.explanation.words import Pieces, read
from headstart.model import quiet
from headstart.protocols import Task
from headstart.values import Batch

STEPS = (32, 64, 128)
"""Points at which the integral is taken; the next number where the parts do not add up well enough."""

CLOSE = 0.02
"""How far the parts may be from adding up, as a share of the sum of their sizes, before more points are taken."""

TOKENS = 1024
"""Tokens of one pass with gradients: about 300 MB for a small encoder."""

PARTS = 7
"""Parts along each side of a picture."""

PICTURES = 8
"""Pictures of one pass without gradients."""

BLUR = 0.09
"""Radius of the blur that hides a part, as a share of the picture's side: of the order of a part's own side."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a model gives one row this score.

    score: of `label`, as predictions give it: a probability, or a value. baseline: the score with nothing in the row.
    text and words: (start, end, weight) in characters of the text as it was read; whole: whether all of it was.
    error: by how much the weights, added up, miss score - baseline. steps: points at which gradients were taken.
    heat: (rows,columns) weights of the parts of `picture`, which is (H,W,3) uint8 as the network saw it; they need not
    add up, so there is no error.
    """

    task: str
    label: str
    score: float
    baseline: float
    error: float | None = None
    steps: int | None = None
    text: str | None = None
    words: tuple[tuple[int, int, float], ...] = ()
    whole: bool = True
    picture: np.ndarray | None = None
    heat: np.ndarray | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the picture is a PNG in base64."""
        found: dict[str, Any] = {"task": self.task} if self.task else {}
        found |= {"label": self.label, "score": self.score, "baseline": self.baseline}
        if self.picture is not None and self.heat is not None:
            code = base64.b64encode(png(self.picture)).decode()
            return {**found, "picture": code, "heat": [[float(cell) for cell in row] for row in self.heat]}
        text = self.text or ""
        words = [{"text": text[s:e], "start": s, "end": e, "weight": w} for s, e, w in self.words]
        found |= {"error": self.error, "steps": self.steps}
        return {**found, "text": text, "whole": self.whole, "words": words}


@dataclass(frozen=True)
class Question:
    """One row ready to be explained. batch: the row, alone; pieces: of a text."""

    bundle: Bundle
    task: Task
    name: str
    first: int
    label: int | None
    batch: Batch
    pieces: Pieces | None


def refusal(bundle: Bundle) -> str | None:
    """Why rows of this model cannot be explained, as a sentence; None where they can."""
    if "runtime" in bundle.record:
        engine = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}.get(
            str(bundle.record["runtime"]["name"]), "an engine"
        )
        return (
            f"this model was exported and is run by {engine}, which gives no gradients: explain the bundle that it was "
            f"exported from"
        )
    backbone: Any = bundle.model.backbone
    if bundle.modality.name == "image" or (bundle.modality.name == "text" and hasattr(backbone, "words")):
        return None
    return f"explanations are for models of texts and pictures, and this one reads {bundle.modality.name}"


def ready() -> bool:
    """Whether captum is installed."""
    return find_spec("captum") is not None


def explain(
    bundle: Bundle, row: Any, *, label: str | None = None, task: str | None = None, steps: int | None = None
) -> Explanation:
    """Which words of a text, or parts of a picture, speak for an answer and which against it.

    row: as `Bundle.predict` takes it. label: whose score is explained; else the one that is predicted, and of several
    numbers the first. task: of several, the one that answers. steps: points of the integral; else as many as needed.

    Raises BadInput for a model that cannot be explained, SpecError for an unknown label, task or number of steps,
    DataError for a row that cannot be read, MissingExtra without captum.
    """
    return answer(ask(bundle, row, label=label, task=task), steps=steps)


def ask(bundle: Bundle, row: Any, *, label: str | None = None, task: str | None = None) -> Question:
    """Everything that can be wrong about a question, and the row encoded. Raises as `explain` does."""
    why = refusal(bundle)
    if why is not None:
        raise BadInput(why)
    if not ready():
        raise MissingExtra("captum", "explain", "an explanation")
    name, one, first = _one_task(bundle, task)
    if label is not None and label not in one.labels:
        raise SpecError(f"there is no label '{label}' in this model: {did_you_mean(label, one.labels)}")
    backbone: Any = bundle.model.backbone
    batch = Encoded.of(bundle.modality, backbone, [row]).batch([0])
    pieces = read(row, backbone) if bundle.modality.name == "text" else None
    return Question(bundle, one, name, first, None if label is None else one.labels.index(label), batch, pieces)


def _one_task(bundle: Bundle, task: str | None) -> tuple[str, Task, int]:
    """The name of the task that answers, the task, and the first of its outputs."""
    members = bundle.task.members
    if task is None and not members:
        return "", bundle.task, 0
    for member in members:
        if member.name == task:
            return member.name, member.task, int(member.columns.start)
    if task is None:
        names = ", ".join(member.name for member in members)
        raise SpecError(f"this model has several tasks ({names}): say which is to be explained")
    have = did_you_mean(task, bundle.tasks) if members else "this model has a single task, and it has no name"
    raise SpecError(f"there is no task '{task}' in this model: {have}")


def answer(question: Question, *, steps: int | None = None, tell: Callable[[], None] = lambda: None) -> Explanation:
    """The explanation. tell: called before each pass through the network; what it raises ends the work.

    The model is left as it was: no gradient, hook or mode stays. Safe beside other threads that run it.
    """
    if steps is not None and question.pieces is None:
        raise SpecError("steps are for texts: the parts of a picture are hidden one by one, whatever their number")
    if steps is not None and steps < 1:
        raise SpecError(f"expected steps of at least 1, received {steps}")
    model, backbone = question.bundle.model, question.bundle.model.backbone
    device = next(model.parameters()).device
    batch = question.batch.to(device)
    with quiet(model):
        away = _away(backbone, batch, question.pieces)
        score = _score(question, batch, tell)
        with torch.no_grad():
            both = score(torch.cat([torch.zeros_like(away), away]))
        chosen = _chosen(question, both[0])
        value, baseline = (float(each) for each in both[:, chosen])
        found = Explanation(question.name, question.task.labels[chosen - question.first], value, baseline)
        if question.pieces is None:
            pixels = batch.inputs["pixels"][0].permute(1, 2, 0).cpu().numpy()
            return replace(found, picture=np.rint(255 * pixels).astype(np.uint8), heat=_hidden(score, away, chosen))
        for count in STEPS if steps is None else (steps,):
            weights = _integrated(score, away, chosen, count)
            error = abs(float(weights.sum()) - (value - baseline))
            if error <= CLOSE * float(weights.abs().sum()):
                break
    return replace(found, error=error, steps=count, **_worded(question.pieces, weights))


def _away(backbone: Any, batch: Batch, pieces: Pieces | None) -> Tensor:
    """b - x, shaped like `Backbone.zero_shift`: what is added to the row so that nothing is in it."""
    if pieces is None:
        pixels = batch.inputs["pixels"]
        return blurred(pixels[0].permute(1, 2, 0).cpu().numpy(), BLUR).to(pixels) - pixels
    own = torch.tensor([[span is not None for span in pieces.spans]], device=batch.weight.device)
    ids = batch.inputs["input_ids"]
    with torch.no_grad():
        words = backbone.words()
        empty: Tensor = words(torch.where(own, backbone.preprocessing["pad_id"], ids)) - words(ids)
    return empty


def _score(question: Question, batch: Batch, tell: Callable[[], None]) -> Callable[[Tensor], Tensor]:
    """Scores (n,K) of the row under n shifts (n,...)."""
    bundle = question.bundle

    def score(shift: Tensor) -> Tensor:
        tell()
        rows = len(shift)
        inputs = {name: value.expand(rows, *value.shape[1:]) for name, value in batch.inputs.items()}
        weight, origin, row = (each.expand(rows) for each in (batch.weight, batch.origin, batch.row))
        shifted = Batch(inputs, None, weight, origin, row, shift=shift)
        outputs: Tensor = bundle.model(shifted)[1]
        return bundle.task.scores(outputs, bundle.temperature)

    return score


def _chosen(question: Question, scores: Tensor) -> int:
    """The output whose score is explained."""
    if question.label is not None:
        return question.first + question.label
    if question.task.name == "regression":
        return question.first
    return question.first + int(scores[question.first : question.first + question.task.outputs].argmax())


def _integrated(score: Callable[[Tensor], Tensor], away: Tensor, chosen: int, steps: int) -> Tensor:
    """The weight of each token, (T,), by Gauss-Legendre quadrature."""
    from captum.attr import IntegratedGradients

    rows = min(steps, max(1, TOKENS // away.shape[1]))
    found: Tensor = IntegratedGradients(score).attribute(
        torch.zeros_like(away), baselines=away, target=chosen, n_steps=steps, internal_batch_size=rows
    )
    return found.detach()[0].sum(-1).cpu()


def _hidden(score: Callable[[Tensor], Tensor], away: Tensor, chosen: int) -> np.ndarray:
    """What the score loses without each part of the picture, (rows,columns)."""
    from captum.attr import FeatureAblation

    edges = [torch.arange(size, device=away.device) * PARTS // size for size in away.shape[2:]]
    parts = edges[0][:, None] * PARTS + edges[1][None]
    found: Tensor = FeatureAblation(score).attribute(
        torch.zeros_like(away), baselines=away, target=chosen, feature_mask=parts[None, None],
        perturbations_per_eval=PICTURES,
    )  # fmt: skip
    firsts = [torch.searchsorted(edge, torch.arange(PARTS, device=away.device)) for edge in edges]
    heat: np.ndarray = found[0, 0][firsts[0]][:, firsts[1]].float().cpu().numpy()
    return heat


def _worded(pieces: Pieces, weights: Tensor) -> dict[str, Any]:
    """The weights of words from those of tokens."""
    words: dict[tuple[int, int], float] = {}
    for span, weight in zip(pieces.spans, weights.tolist(), strict=True):
        if span is not None:
            words[span] = words.get(span, 0.0) + weight
    told = tuple((start, end, weight) for (start, end), weight in words.items())
    return {"text": pieces.text, "words": told, "whole": pieces.whole}
