"""From the pieces that a tokenizer makes back to the words that people wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headstart.protocols import Backbone


@dataclass(frozen=True)
class Pieces:
    """How one text was read. text: as the tokenizer saw it, maybe in lower case, without the backbone's prompt.

    spans: of each token its word in `text`, as (start, end) in characters; None for special tokens and the prompt's.
    whole: whether all of the text was read.
    """

    text: str
    spans: tuple[tuple[int, int] | None, ...]
    whole: bool


def read(text: str, backbone: Backbone) -> Pieces:
    """Where each token of a text comes from, by the backbone's own tokenizer and limits."""
    settings = backbone.preprocessing
    prompt = str(settings["prompt"])
    shown = text.lower() if settings["lower"] else text
    tokenizer: Any = backbone.tokenizer
    found = tokenizer(
        prompt + shown, truncation=True, max_length=int(settings["max_length"]), padding=False,
        return_offsets_mapping=True,
    )  # fmt: skip
    places = _joined(found["offset_mapping"], found.word_ids(), prompt + shown)
    own = [None if place is None or place[1] <= len(prompt) else place for place in places]
    spans = tuple(None if at is None else (max(0, at[0] - len(prompt)), at[1] - len(prompt)) for at in own)
    return Pieces(shown, spans, not any(more.overflowing for more in found.encodings))


def _joined(offsets: Sequence[tuple[int, int]], words: Sequence[int | None], text: str) -> list[tuple[int, int] | None]:
    """The span of each token's word: tokens of one word that no white space parts have one span."""
    found: list[tuple[int, int] | None] = []
    first = 0
    for place, ((start, end), word) in enumerate(zip(offsets, words, strict=True)):
        cut = text[start:end]
        start, end = start + len(cut) - len(cut.lstrip()), end - len(cut) + len(cut.rstrip())
        if word is None or start >= end:
            found.append(None)
            continue
        before = found[-1] if found else None
        if before is None or words[place - 1] != word or text[before[1] : start].strip() != text[before[1] : start]:
            first = place
            found.append((start, end))
            continue
        span = (before[0], max(before[1], end))
        found[first:] = [span] * (place - first + 1)
    return found
