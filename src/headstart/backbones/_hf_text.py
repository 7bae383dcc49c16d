"""Text networks of the transformers library behind the backbone's face."""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones import _packing
from headstart.backbones._files import silence
from headstart.backbones._pooling import Pool, make_layer
from headstart.backbones._sentence import Setup
from headstart.backbones._structure import NetworkBackbone, unlabelled
from headstart.errors import BackboneError
from headstart.spec import BackboneSpec
from headstart.values import Batch, Features


class TextBackbone(NetworkBackbone):
    """An encoder of token ids: word embeddings, blocks, pooling, and what the model puts above it.

    tokenizer: the fast tokenizer of the model; the text modality and token-level methods use it.
    preprocessing: `max_length` (tokens, special ones included), `lower` (whether text is lower-cased before the
    tokenizer sees it), `prompt` (put before every text), `pad_id`, and `tokenizer`, the sha256 of its definition.

    `batch.shift` (N,T,V) is added to the output of the word embeddings, below positions and normalisation.
    """

    modality = "text"

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        ref: str,
        modes: Sequence[str],
        layers: Sequence[Mapping[str, Any]],
        preprocessing: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.ref = ref
        self.source: Mapping[str, Any] = {}
        self.digest = ""
        self.remote_code = False
        self.preprocessing = dict(preprocessing)
        self.layers_above = [dict(layer) for layer in layers]
        self.pool = Pool(modes, int(network.config.hidden_size))  # type: ignore[union-attr, arg-type]
        self.above = nn.Sequential(*(make_layer(layer) for layer in layers))
        self._typed = "token_type_ids" in inspect.signature(network.forward).parameters

    def words(self) -> nn.Module:
        """The module that maps token ids (N,T) to vectors (N,T,V)."""
        found: nn.Module = self.network.get_input_embeddings()  # type: ignore[operator]
        return found

    def features(self, batch: Batch) -> Features:
        """pooled (N,D), tokens (N,T,V) of the last block and their mask (N,T)."""
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        if self._typed and "token_type_ids" in batch.inputs:
            inputs["token_type_ids"] = batch.inputs["token_type_ids"]
        tokens: Tensor
        if batch.shift is None and _packing.can(self.network):
            tokens = _packing.run(self.network, inputs, _first_position(self.network))
        else:
            with self._shifted(batch.shift):
                tokens = self.network(**inputs).last_hidden_state
        mask = inputs["attention_mask"]
        return Features(pooled=self.above(self.pool(tokens, mask)), tokens=tokens, mask=mask)

    def packed(self) -> AbstractContextManager[None] | str:
        """Inside, rows are computed without padding, unless a method looks into the network or shifts its input."""
        return _packing.why_not(self.network) or _packing.within(self.network)

    def zero_shift(self, batch: Batch) -> Tensor:
        """Zeros (N,T,V), on the device and in the type of the word embeddings."""
        weight: Tensor = next(self.words().parameters())
        return weight.new_zeros((*batch.inputs["input_ids"].shape, weight.shape[-1]))

    @contextmanager
    def _shifted(self, shift: Tensor | None) -> Iterator[None]:
        if shift is None:
            yield
            return
        # Another thread may run the same network meanwhile, as a server does: its rows are not shifted.
        own = threading.get_ident()

        def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output + shift.to(output.dtype) if threading.get_ident() == own else output

        handle = self.words().register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def example(self) -> Batch:
        """One row of four equal tokens."""
        token = 0 if self.preprocessing["pad_id"] != 0 else 1
        ids = torch.full((1, 4), token, dtype=torch.int64)
        return unlabelled({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def describe(self) -> dict[str, Any]:
        """Plain JSON for `backbones.rebuild`."""
        return {
            "family": "hf",
            "ref": self.ref,
            "source": dict(self.source),
            "digest": self.digest,
            "modality": self.modality,
            "width": self.width,
            "preprocessing": dict(self.preprocessing),
            "pooling": list(self.pool.modes),
            "above": self.layers_above,
            "remote_code": self.remote_code,
        }

    def save_files(self, folder: Path) -> None:
        """Write config.json and the tokenizer's files."""
        folder.mkdir(parents=True, exist_ok=True)
        with silence():
            self.network.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
            self.tokenizer.save_pretrained(folder)


def from_folder(network: nn.Module, setup: Setup, spec: BackboneSpec, ref: str) -> TextBackbone:
    """The backbone of a loaded network, read as its folder says: pooling, layers above, limits on the text."""
    for name, what in (("image_size", "pictures"), ("max_seconds", "sounds")):
        if getattr(spec, name) is not None:
            raise BackboneError(f"{name} is for {what}, and '{ref}' reads text: leave it out")
    tokenizer = _tokenizer(setup.network, ref, network)
    modes = (spec.pooling,) if spec.pooling else setup.modes or ("mean",)
    config: Any = network.config
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (config.pad_token_id or 0)
    preprocessing = {
        "max_length": _max_length(network, tokenizer, setup.max_length, spec.max_length, ref),
        "lower": setup.lower,
        "prompt": setup.prompt,
        "pad_id": int(pad),
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    }
    backbone = TextBackbone(network, tokenizer, ref, modes, setup.layers, preprocessing)
    if spec.pretrained:
        for layer, weights in zip(backbone.above, setup.weights, strict=True):
            if weights is not None:
                _fill(layer, weights, ref)
    return backbone


def from_record(network: nn.Module, record: Mapping[str, Any], folder: Path) -> TextBackbone:
    """The backbone of a record made by `describe`."""
    tokenizer = _tokenizer(folder, str(record["ref"]), network)
    backbone = TextBackbone(
        network, tokenizer, str(record["ref"]), record["pooling"], record["above"], record["preprocessing"]
    )
    backbone.remote_code = bool(record["remote_code"])
    return backbone


def _fill(layer: nn.Module, weights: Mapping[str, Tensor], ref: str) -> None:
    try:
        layer.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    except RuntimeError as error:
        raise BackboneError(
            f"a Dense layer of '{ref}' does not fit its weights: {' '.join(str(error).split())}"
        ) from None


def _tokenizer(folder: Path, ref: str, network: nn.Module) -> Any:
    from transformers import AutoTokenizer

    try:
        with silence():
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
    except Exception as error:  # missing files and missing converters arrive as many kinds
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"'{ref}' has no tokenizer that can be read in '{folder}': {reason}") from None
    if not tokenizer.is_fast:
        raise BackboneError(f"'{ref}' has only a slow tokenizer; expected one with a tokenizer.json")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    rows = int(next(network.get_input_embeddings().parameters()).shape[0])  # type: ignore[operator]
    if len(tokenizer) > rows:
        raise BackboneError(
            f"the tokenizer of '{ref}' makes {len(tokenizer)} ids and its network has {rows} embeddings"
        )
    return tokenizer


def _max_length(network: nn.Module, tokenizer: Any, stated: int | None, wanted: int | None, ref: str) -> int:
    """What the user wants, else what the model says, never more than there are positions for."""
    room = _positions(network)
    if wanted is not None:
        if room is not None and wanted > room:
            raise BackboneError(
                f"max_length {wanted} is more than the {room} positions of '{ref}': expected at most {room}"
            )
        return wanted
    limits = [limit for limit in (stated, int(tokenizer.model_max_length), room) if limit and limit < 1_000_000]
    return min(limits, default=512)


def _positions(network: nn.Module) -> int | None:
    """How many tokens there are positions for."""
    stated: int | None = getattr(network.config, "max_position_embeddings", None)
    if not stated or stated < 0:
        return None
    return int(stated) - _first_position(network)


def _first_position(network: nn.Module) -> int:
    """The position of a row's first token. Tables with a padding row count from the row after it (RoBERTa)."""
    words = network.get_input_embeddings()  # type: ignore[operator]
    stated: int | None = getattr(network.config, "max_position_embeddings", None)
    for module in network.modules():
        if not isinstance(module, nn.Embedding) or module is words or module.num_embeddings != stated:
            continue
        if module.padding_idx is not None:
            return module.padding_idx + 1
    return 0
