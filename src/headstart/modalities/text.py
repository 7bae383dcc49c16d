"""Text: tokenised once into flat memory-mapped arrays, padded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headstart.errors import DataError
from headstart.modalities._scratch import Flat
from headstart.protocols import Backbone, Modality, Prepared

CHUNK = 1024
"""Rows that are tokenised at a time: enough for the tokenizer's threads, little enough for memory."""

BUDGET = 1024
"""Tokens of a batch at inference on a CPU, padding included. 1,024 to 8,192 were equally fast; fewer leave less memory
behind."""

GPU_MULTIPLE = 8
"""On a GPU a length is rounded up to this, which its matrix units want, and which makes for fewer shapes."""


class TextModality(Modality):
    """Strings, encoded by the tokenizer of the backbone (`backbone.tokenizer`) and cut at its `max_length`."""

    name: ClassVar[str] = "text"
    continuous: ClassVar[bool] = False

    def prepare(self, values: Sequence[Any], backbone: Backbone) -> PreparedText:
        """Tokenise all rows. Raises DataError naming the row of a value that is not text."""
        if backbone.modality != self.name:
            raise DataError(f"the rows are text, and the backbone '{backbone.ref}' reads {backbone.modality}")
        return PreparedText(values, backbone)

    def summary(self, values: Sequence[Any]) -> dict[str, np.ndarray]:
        """`characters` and `words` (separated by white space) of each row, (rows,) int64."""
        texts = [_text(value, row) for row, value in enumerate(values)]
        return {
            "characters": np.array([len(text) for text in texts], dtype=np.int64),
            "words": np.array([len(text.split()) for text in texts], dtype=np.int64),
        }


class PreparedText(Prepared):
    """Token ids of all rows, one after another, with the place where each row starts.

    lengths: (rows,) int32, tokens of each row, special ones included.
    truncated: how many rows were longer than the backbone's `max_length`.
    """

    budget = BUDGET

    def __init__(self, values: Sequence[Any], backbone: Backbone) -> None:
        """Tokenise `values`; see `TextModality.prepare`."""
        settings = backbone.preprocessing
        tokenizer: Any = backbone.tokenizer
        self.max_length = int(settings["max_length"])
        self._pad = int(settings["pad_id"])
        self._pad_type = int(getattr(tokenizer, "pad_token_type_id", 0) or 0)
        self.padding = {"input_ids": self._pad, "token_type_ids": self._pad_type}
        parameter = next(backbone.parameters(), None)
        self.multiple = GPU_MULTIPLE if parameter is not None and parameter.device.type == "cuda" else 1
        lower, prompt = bool(settings["lower"]), str(settings["prompt"])
        self._ids_file, self._types_file = Flat(np.int32), Flat(np.int32)
        self.lengths = np.zeros(len(values), dtype=np.int32)
        self.truncated = 0
        typed = False
        for start in range(0, len(values), CHUNK):
            stop = min(start + CHUNK, len(values))
            texts = [_text(values[row], row) for row in range(start, stop)]
            texts = [prompt + (text.lower() if lower else text) for text in texts]
            encoded = _encode(tokenizer, texts, start, self.max_length)
            ids = encoded["input_ids"]
            self.lengths[start:stop] = [len(row) for row in ids]
            self.truncated += int(sum(bool(more.overflowing) for more in encoded.encodings))
            flat = np.concatenate([np.asarray(row, dtype=np.int32) for row in ids])
            self._ids_file.append(flat)
            types = encoded.get("token_type_ids")
            kinds = (
                np.zeros_like(flat) if types is None else np.concatenate([np.asarray(row, np.int32) for row in types])
            )
            typed = typed or bool(kinds.any())
            self._types_file.append(kinds)
        self._ids = self._ids_file.finish()
        types_array = self._types_file.finish()
        self._types: npt.NDArray[Any] | None = types_array if typed else None
        self._starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def __len__(self) -> int:
        """Rows."""
        return len(self.lengths)

    def take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (N,T) int64, padded on the right to `room`, `max_length` at most.

        `token_type_ids` (N,T) are there where the tokenizer gives some token a type other than 0.
        """
        index = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[index]
        width = max(1, min(self.room(index), self.max_length))
        mask = np.arange(width) < lengths[:, None]
        places = (self._starts[index][:, None] + np.arange(width))[mask]
        ids = np.full(mask.shape, self._pad, dtype=np.int64)
        ids[mask] = self._ids[places]
        taken = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        if self._types is not None:
            types = np.full(mask.shape, self._pad_type, dtype=np.int64)
            types[mask] = self._types[places]
            taken["token_type_ids"] = torch.from_numpy(types)
        return taken


def _text(value: Any, row: int) -> str:
    if isinstance(value, str):
        return value
    shown = repr(value)
    raise DataError(
        f"row {row}: expected text, received {type(value).__name__} {shown[:40]}{'...' if len(shown) > 40 else ''}; "
        f"drop the row or turn the column into text"
    )


def _encode(tokenizer: Any, texts: list[str], start: int, max_length: int) -> Any:
    """Ids (and types) of a chunk. A text that is not valid Unicode is named by its row."""
    try:
        return tokenizer(texts, truncation=True, max_length=max_length, padding=False, return_attention_mask=False)
    except (TypeError, UnicodeError, ValueError) as error:
        for place, text in enumerate(texts):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as wrong:
                raise DataError(f"row {start + place}: the text is not valid Unicode: {wrong}") from None
        raise DataError(f"rows {start} to {start + len(texts) - 1} cannot be tokenised: {error}") from None
