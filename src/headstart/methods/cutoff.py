"""Tokens of a text hidden from the whole network: scattered ones, or a span of neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from headstart.errors import MethodError
from headstart.methods._checks import choice, number
from headstart.methods._draws import numpy_from
from headstart.methods._eda import vocabulary
from headstart.protocols import Context, Method
from headstart.values import Batch


@dataclass
class Cutoff(Method):
    """Trains on partial views of texts: some tokens are cut out of what the network sees.

    Equation: of a row's l ordinary tokens, n = min(l - 1, max(1, round(ratio * l))) get attention mask 0: n scattered
    ones drawn evenly (`kind=token`), or n neighbours from an even start (`kind=span`).

    Source: Shen et al. 2020 (A Simple but Tough-to-Beat Data Augmentation Approach for Natural Language Understanding
    and Generation), its token and span cutoff. A token that no other token attends to and that pooling leaves out is
    one whose embedding was erased. The paper trains on the whole text and on the view, with a divergence between their
    answers; here the view stands in for the text, at no cost. Its feature cutoff is not offered.

    Requires: texts (`modality.text`), of whole rows that have labels, not of tokens.

    Shapes: attention_mask (N,T) -> the same; ids, positions and labels stay as they are.

    Neighbours: `augment:drop` leaves a mask token in place of what it hides, `augment:delete` closes the gap; here the
    other tokens keep their positions. Special tokens are never cut. `span` is span dropout. List it behind `augment`.

    Example: `--method cutoff:kind=span,ratio=0.2`; `hs.methods.Cutoff(kind="span")`.

    Defaults: ratio = 0.1 is of the size that the paper tries; share = 0.5 keeps half of the rows whole, as `augment`
    does; both untuned here.

    kind: token or span. ratio: of a row's ordinary tokens. share: of rows that are cut.
    """

    kind: str = "token"
    ratio: float = 0.1
    share: float = 0.5

    def __post_init__(self) -> None:
        choice("cutoff:kind", self.kind, ("token", "span"))
        number("cutoff:ratio", self.ratio, 0, "a share of the tokens such as ratio=0.1", high=0.9, above=True)
        number("cutoff:share", self.share, 0, "a share of the rows such as share=0.5", high=1, above=True)

    def requires(self) -> dict[str, str]:
        """Texts."""
        return {"modality.text": "it cuts tokens out of texts"}

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; the tokenizer's special ids are remembered."""
        whole: Any = model
        self.special_ = vocabulary(whole.backbone, None, 0).special
        return model

    def remains(self) -> bool:
        """The model keeps no trace of the training."""
        return False

    def transform(self, batch: Batch, ctx: Context) -> Batch:
        """The batch with holes in its attention mask."""
        if not hasattr(self, "special_"):
            raise MethodError("'cutoff' needs to see the model first: call adapt(model, ctx) before transform")
        draws = numpy_from(ctx.generator)
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].clone()
        for row, (tokens, real) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
            free = [i for i, token in enumerate(tokens) if real[i] and token not in self.special_]
            count = min(len(free) - 1, max(1, round(self.ratio * len(free))))
            # The same draws for every row in any case, so that a row's fate does not depend on the rows before it.
            cut, own = draws.random() < self.share, np.random.default_rng(int(draws.integers(2**62)))
            if not cut or count < 1:
                continue
            if self.kind == "span":
                start = int(own.integers(len(free) - count + 1))
                gone = free[start : start + count]
            else:
                gone = [free[int(i)] for i in own.choice(len(free), size=count, replace=False)]
            mask[row, torch.tensor(gone, device=mask.device)] = 0
        return batch.replace(inputs={**batch.inputs, "attention_mask": mask})
