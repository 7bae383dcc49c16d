"""Editing rows of token ids: which positions stay, which ids they get. Nothing here knows a tokenizer's class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Row = list[tuple[int, int]]
"""A row as (position it came from, token id), special tokens included."""

Draws = np.random.Generator


@dataclass
class Synonyms:
    """The nearest neighbours of a token in the embedding table, by cosine.

    table: (tokens,V), as it was before training. banned: ids that are never offered. pieces: which ids continue a word,
    (tokens,) bool; a neighbour is of the same kind as the token.
    """

    table: Tensor
    banned: Sequence[int]
    pieces: Tensor
    neighbours: int
    found: dict[int, list[int]] = field(default_factory=dict)

    def of(self, token: int, draws: Draws) -> int:
        """One of the nearest, drawn evenly."""
        if token not in self.found:
            with torch.no_grad():
                closeness = F.cosine_similarity(self.table, self.table[token][None].to(self.table), dim=1).float()
                closeness[self.pieces.to(closeness.device) != bool(self.pieces[token])] = -2
                closeness[[*self.banned, token]] = -2
                best = closeness.topk(min(self.neighbours, len(closeness)))
                near = [int(i) for i, value in zip(best.indices, best.values, strict=True) if value > -2]
                self.found[token] = near or [token]
        options = self.found[token]
        return options[int(draws.integers(len(options)))]


@dataclass(frozen=True)
class Vocabulary:
    """What editing needs to know.

    special: ids that stay where they are. pad: fills rows up. hide: stands for a dropped token (None: it is removed).
    limit: longest row allowed, None for the longest of the batch. left: rows are padded in front.
    """

    special: frozenset[int]
    pad: int
    hide: int | None
    limit: int | None
    left: bool
    synonyms: Synonyms | None


def edit(
    inputs: dict[str, Tensor], words: Vocabulary, rates: dict[str, float], share: float, draws: Draws | Sequence[Draws]
) -> dict[str, Tensor]:
    """Edited rows. Each row is edited with probability `share`, by one operation drawn evenly from `rates`.

    draws: for all rows, or one for each.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    limit = max(ids.shape[1], words.limit or 0)
    names = list(rates)
    rows: list[Row] = []
    each = [draws] * len(ids) if isinstance(draws, np.random.Generator) else draws
    for tokens, real, draw in zip(ids.tolist(), mask.tolist(), each, strict=True):
        row = [(place, token) for place, token in enumerate(tokens) if real[place]]
        # The draws are made for every row, so that one row's fate does not depend on the rows before it.
        chosen, edited = names[int(draw.integers(len(names)))], bool(draw.random() < share)
        own = np.random.default_rng(int(draw.integers(2**62)))
        rows.append(OPERATIONS[chosen](row, words, rates[chosen], limit, own) if edited else row)
    return _collate(inputs, rows, words)


def _collate(inputs: dict[str, Tensor], rows: Sequence[Row], words: Vocabulary) -> dict[str, Tensor]:
    """The rows padded to the longest of them; every other (N,T) input follows its positions."""
    ids = inputs["input_ids"]
    longest = max(1, *(len(row) for row in rows))
    source = torch.zeros(len(rows), longest, dtype=torch.int64)
    fresh = torch.full((len(rows), longest), words.pad, dtype=torch.int64)
    real = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        span = slice(longest - len(row), longest) if words.left else slice(0, len(row))
        source[number, span] = torch.tensor([place for place, _ in row], dtype=torch.int64)
        fresh[number, span] = torch.tensor([token for _, token in row], dtype=torch.int64)
        real[number, span] = True
    source, real = source.to(ids.device), real.to(ids.device)
    found = {}
    for name, value in inputs.items():
        if name == "input_ids":
            found[name] = fresh.to(ids)
        elif value.shape == ids.shape:
            found[name] = value.gather(1, source) * real.to(value.dtype)
        else:
            found[name] = value
    return found


def _free(row: Row, words: Vocabulary) -> list[int]:
    """Indices of a row's ordinary tokens."""
    return [index for index, (_, token) in enumerate(row) if token not in words.special]


def _count(rate: float, free: Sequence[int]) -> int:
    """EDA's n = rate * length, at least one."""
    return max(1, round(rate * len(free)))


def _drop(row: Row, words: Vocabulary, rate: float, limit: int, draws: Draws) -> Row:
    """Each ordinary token is hidden with probability `rate`."""
    if words.hide is None:
        return _delete(row, words, rate, limit, draws)
    gone = {index for index in _free(row, words) if draws.random() < rate}
    return [(place, words.hide if index in gone else token) for index, (place, token) in enumerate(row)]


def _delete(row: Row, words: Vocabulary, rate: float, limit: int, draws: Draws) -> Row:
    """Each ordinary token is removed with probability `rate`; one always stays."""
    free = _free(row, words)
    gone = {index for index in free if draws.random() < rate}
    if free and len(gone) == len(free):
        gone.discard(free[int(draws.integers(len(free)))])
    return [entry for index, entry in enumerate(row) if index not in gone]


def _swap(row: Row, words: Vocabulary, rate: float, limit: int, draws: Draws) -> Row:
    """n times, two ordinary tokens change places."""
    free, tokens = _free(row, words), [token for _, token in row]
    if len(free) > 1:
        for _ in range(_count(rate, free)):
            a, b = draws.choice(free, size=2, replace=False)
            tokens[a], tokens[b] = tokens[b], tokens[a]
    return [(place, token) for (place, _), token in zip(row, tokens, strict=True)]


def _synonym(row: Row, words: Vocabulary, rate: float, limit: int, draws: Draws) -> Row:
    """n ordinary tokens become one of their nearest neighbours."""
    free, tokens = _free(row, words), [token for _, token in row]
    if free and words.synonyms is not None:
        for index in draws.choice(free, size=min(len(free), _count(rate, free)), replace=False):
            tokens[index] = words.synonyms.of(tokens[index], draws)
    return [(place, token) for (place, _), token in zip(row, tokens, strict=True)]


def _insert(row: Row, words: Vocabulary, rate: float, limit: int, draws: Draws) -> Row:
    """n times, a neighbour of an ordinary token is put before or behind an ordinary token, while there is room."""
    free, longer = _free(row, words), list(row)
    if not free or words.synonyms is None:
        return longer
    for _ in range(min(_count(rate, free), max(0, limit - len(row)))):
        token = words.synonyms.of(row[free[int(draws.integers(len(free)))]][1], draws)
        spots = _free(longer, words)
        spot = spots[int(draws.integers(len(spots)))]
        longer.insert(spot + int(draws.integers(2)), (longer[spot][0], token))
    return longer


OPERATIONS: dict[str, Callable[[Row, Vocabulary, float, int, Draws], Row]] = {
    "drop": _drop,
    "delete": _delete,
    "swap": _swap,
    "insert": _insert,
    "synonym": _synonym,
}


def vocabulary(backbone: Any, table: Tensor | None, neighbours: int) -> Vocabulary:
    """What editing needs, from the backbone's tokenizer. table: the embedding table, where neighbours are wanted."""
    tokenizer = backbone.tokenizer
    special = frozenset(int(token) for token in tokenizer.all_special_ids)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else backbone.preprocessing.get("pad_id", 0)
    hide = next((t for t in (tokenizer.mask_token_id, tokenizer.unk_token_id) if t is not None), None)
    longest = backbone.preprocessing.get("max_length")
    synonyms = None
    if table is not None:
        synonyms = Synonyms(table, _unused(tokenizer, special, len(table)), _pieces(tokenizer, len(table)), neighbours)
    left = getattr(tokenizer, "padding_side", "right") == "left"
    return Vocabulary(special, int(pad), hide, int(longest) if longest else None, left, synonyms)


def _unused(tokenizer: Any, special: frozenset[int], size: int) -> list[int]:
    """Special ids, ids beyond the vocabulary, and BERT's reserved ones, none of which is a word."""
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    reserved = {i for i, name in enumerate(names) if name is None or str(name).startswith("[unused")}
    return sorted({*special, *reserved, *range(len(names), size)} & set(range(size)))


def _pieces(tokenizer: Any, size: int) -> Tensor:
    """(tokens,) bool: ids that continue a word ('##s' in WordPiece, no leading mark in SentencePiece and byte BPE)."""
    names = [str(n) for n in tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))]
    if any(name.startswith("##") for name in names):
        continues = [name.startswith("##") for name in names]
    else:
        marked = any(name[:1] in ("\u2581", "\u0120") for name in names)
        continues = [marked and name[:1] not in ("\u2581", "\u0120") for name in names]
    return torch.tensor(continues + [False] * (size - len(names)))
