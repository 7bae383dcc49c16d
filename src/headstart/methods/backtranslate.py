"""Paraphrases of the training texts, by way of another language."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.errors import MethodError
from headstart.methods._checks import number, whole
from headstart.methods._draws import seeded
from headstart.methods._seq2seq import Translator, find, path_like, translate
from headstart.protocols import Context, Method


@dataclass
class Backtranslate(Method):
    """Adds paraphrases of the training texts, made by translating each there and back.

    Equation: {(x_i, y_i)} <- {(x_i, y_i)} + {(back(there(x_i)), y_i)}, `copies` of them a row. With temperature 0 each
    way follows the best of 4 hypotheses; above 0 every token is drawn from softmax(z / temperature).

    Source: Sennrich et al. 2016 (Improving Neural Machine Translation Models with Monolingual Data) translate back for
    translation; Xie et al. 2020 (Unsupervised Data Augmentation) translate there and back for classification, with
    drawn tokens.

    Requires: texts (`modality.text`), and two seq2seq models in Hugging Face format with safetensors. Those whose
    tokenizer needs sentencepiece (Marian) need that library too. Models of many languages that must be told which one
    to write are not supported.

    Shapes: r rows become up to r (1 + copies); a paraphrase that is empty, equals its text or repeats another is left
    out.

    Neighbours: `augment` edits tokens anew in each step; this is done once, before training, and written to a cache
    under a key made of both models, the texts and the options. Rows for validation and test are never paraphrased. A
    fresh head's probe is solved on the texts alone. An epoch takes up to 1 + copies times as long.

    Example: `--method backtranslate:there=models/en-de,back=models/de-en`;
    `hs.methods.Backtranslate("models/en-de", "models/de-en")`.

    Defaults: temperature = 0.9 draws nearly from the model itself, as Xie et al. do rather than search for the best;
    copies = 1 and batch = 32 are choices of this project, untuned.

    there: a folder, or an id of the hub. back: the same, for the way back. copies: paraphrases a row; more than one
    needs a temperature. temperature: 0 or above. batch: texts translated at a time. cache: folder of finished
    paraphrases; none is `headstart/backtranslate` in the user's cache.
    """

    there: str = ""
    back: str = ""
    copies: int = 1
    temperature: float = 0.9
    batch: int = 32
    cache: str | None = None

    def __post_init__(self) -> None:
        for name in ("there", "back"):
            ref = getattr(self, name)
            if not isinstance(ref, str) or not ref:
                raise MethodError(
                    f"expected backtranslate:{name} to be a folder or hub id of a translation model, received {ref!r}"
                )
            if path_like(ref) and not Path(ref).expanduser().is_dir():
                raise MethodError(f"backtranslate:{name}: there is no folder '{ref}'")
        whole("backtranslate:copies", self.copies, 1, "such as copies=1")
        number("backtranslate:temperature", self.temperature, 0, "such as temperature=0.9; 0 draws nothing")
        whole("backtranslate:batch", self.batch, 1, "such as batch=32")
        if self.copies > 1 and not self.temperature:
            raise MethodError("backtranslate:copies above 1 needs a temperature: without one all copies are the same")

    def requires(self) -> dict[str, str]:
        """Texts."""
        return {"modality.text": "it translates texts"}

    def passes(self) -> float:
        """An epoch has so many times the rows."""
        return 1.0 + self.copies

    def rows(self, inputs: Sequence[Any], ctx: Context) -> list[tuple[int, str]]:
        """The paraphrases that differ from their text, from the cache or made now."""
        texts = [str(text) for text in inputs]
        models = find(self.there, "backtranslate:there"), find(self.back, "backtranslate:back")
        seed = ctx.generator.initial_seed() if self.temperature else None
        path = self._home() / f"{self._key(models, texts, seed)}.json"
        made = _read(path, self.copies, len(texts))
        if made is None:
            made = self._make(models, texts, ctx)
            _write(path, made)
        seen = [{" ".join(text.split()), ""} for text in texts]
        found = []
        for copy in made:
            for row, text in enumerate(copy):
                if text not in seen[row]:
                    seen[row].add(text)
                    found.append((row, text))
        return found

    def _make(self, models: tuple[Translator, Translator], texts: list[str], ctx: Context) -> list[list[str]]:
        """`copies` lists of one paraphrase a text."""
        made = []
        for _ in range(self.copies):
            now = texts
            for translator, option in zip(models, ("backtranslate:there", "backtranslate:back"), strict=True):
                with seeded(ctx.generator):
                    now = translate(translator, now, temperature=self.temperature, batch_size=self.batch, option=option)
            made.append(now)
        return made

    def _home(self) -> Path:
        if self.cache is not None:
            return Path(self.cache).expanduser()
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "headstart" / "backtranslate"

    def _key(self, models: tuple[Translator, Translator], texts: list[str], seed: int | None) -> str:
        settings = [self.copies, self.temperature, self.batch, seed]
        record = [*(model.digest for model in models), settings, texts]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _read(path: Path, copies: int, rows: int) -> list[list[str]] | None:
    """What the cache holds; None where it holds nothing whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole_one = isinstance(found, list) and len(found) == copies and all(len(copy) == rows for copy in found)
    return found if whole_one else None


def _write(path: Path, made: list[list[str]]) -> None:
    """The file appears when it is whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise MethodError(
            f"the paraphrases cannot be kept in '{path.parent}': {error}; give backtranslate:cache a folder"
        ) from None
