"""Networks that turn one text into another, in Hugging Face format, and batches of texts through them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headstart.errors import MethodError

WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.spm")
BEAMS = 4
"""Hypotheses that are followed where nothing is drawn."""


@dataclass(frozen=True)
class Translator:
    """A folder in hub layout. digest: sha256 over the names and bytes of its files."""

    folder: Path
    digest: str


def path_like(ref: str) -> bool:
    """Whether a reference can only be a folder, not a hub id."""
    return ref.startswith((".", "/", "~", "\\")) or ref.count("/") > 1


def find(ref: str, option: str) -> Translator:
    """The files of a local folder or hub id.

    Raises MethodError when there is no such folder, the hub has none or cannot be reached, or it is no seq2seq model.
    """
    folder = Path(ref).expanduser()
    if not folder.is_dir():
        if path_like(ref):
            raise MethodError(f"{option}: there is no folder '{ref}'")
        folder = _fetched(ref, option)
    if not (folder / "config.json").is_file():
        raise MethodError(f"{option}: '{ref}' has no config.json; expected a folder in the layout of the hub")
    _check(folder, ref, option)
    total = hashlib.sha256()
    for path in sorted(path for pattern in WANTED for path in folder.glob(pattern)):
        with path.open("rb") as file:
            total.update(f"{path.name}|{hashlib.file_digest(file, 'sha256').hexdigest()}|".encode())
    return Translator(folder, total.hexdigest())


def translate(
    translator: Translator, texts: Sequence[str], *, temperature: float, batch_size: int, option: str
) -> list[str]:
    """Each text through the network, in batches of like length; an empty string where nothing comes out.

    temperature: 0 follows the best hypotheses, more draws tokens with torch's global generator.
    """
    network, tokenizer = _load(translator, option)
    limit = min(int(tokenizer.model_max_length), _positions(network.config))
    lengths = [len(ids) for ids in tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]]
    # Stable, longest first: the same texts make the same batches, and memory runs out at once or never.
    order = sorted(range(len(texts)), key=lambda i: -lengths[i])
    found = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        encoded = tokenizer(
            [texts[i] for i in chosen], truncation=True, max_length=limit, padding=True, return_tensors="pt"
        )
        given = {key: encoded[key].to(network.device) for key in ("input_ids", "attention_mask")}
        room = min(2 * given["input_ids"].shape[1] + 8, limit - 1)
        how: dict[str, Any] = {"num_beams": BEAMS, "do_sample": False}
        if temperature > 0:
            how = {"num_beams": 1, "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            answers = network.generate(**given, **how, max_new_tokens=room, max_length=None)
        for i, text in zip(chosen, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True):
            found[i] = " ".join(text.split())
    return found


def _fetched(ref: str, option: str) -> Path:
    from huggingface_hub import constants, snapshot_download

    for local in (True, False):
        if not local and constants.HF_HUB_OFFLINE:
            break
        try:
            return Path(snapshot_download(ref, allow_patterns=list(WANTED), local_files_only=local))
        except Exception:  # not in the cache, not on the hub, or no network, in one of a dozen classes
            continue
    raise MethodError(
        f"{option}: '{ref}' is not a folder, not on this machine, and cannot be fetched from the hub; "
        f"give a folder with a translation model, or the id of one that can be reached"
    )


def _check(folder: Path, ref: str, option: str) -> None:
    from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a foreign config
        raise MethodError(f"{option}: the config.json of '{ref}' cannot be read: {_line(error)}") from None
    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise MethodError(
            f"{option}: '{ref}' ({config.model_type}) does not turn texts into texts; "
            f"expected a seq2seq model such as Marian, T5 or BART"
        )
    if not any(folder.glob("*.safetensors")):
        raise MethodError(f"{option}: '{ref}' has no weights as safetensors, and pickles are not read: convert it")


def _load(translator: Translator, option: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(translator.folder, local_files_only=True)
        network: Any = AutoModelForSeq2SeqLM.from_pretrained(
            translator.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # missing files, damaged weights and missing libraries arrive as many kinds
        raise MethodError(f"{option}: '{translator.folder}' cannot be loaded: {_line(error)}") from None
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _positions(config: Any) -> int:
    """How many tokens a text may have; networks with relative positions have no limit of their own."""
    stated = getattr(config, "max_position_embeddings", None)
    return int(stated) if stated else 512


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
