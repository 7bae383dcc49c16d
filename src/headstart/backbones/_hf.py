"""Builds Hugging Face networks from a folder in hub layout: config, weights, and the settings of their inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones import _files, _hf_audio, _hf_image, _hf_text, _layers, _sentence
from headstart.backbones._structure import NetworkBackbone, digest, largest_list, listed, model_license
from headstart.errors import BackboneError
from headstart.spec import BackboneSpec

READS = {"input_ids": "text", "pixel_values": "image"}


def load_folder(
    folder: Path, spec: BackboneSpec, modality: str, source: Mapping[str, Any], seed: int, ref: str
) -> NetworkBackbone:
    """The network of a folder in hub layout.

    Raises BackboneError when files are missing, pickled or damaged, when the network reads another modality or is not
    an encoder, and when tensors that it needs are not in the weights.
    """
    if not folder.is_dir():
        raise BackboneError(f"there is no folder '{folder}' (from '{ref}')")
    setup = _sentence.read(folder, spec.allow_pickle)
    if not (setup.network / "config.json").is_file():
        raise BackboneError(
            f"'{setup.network}' has no config.json: expected a folder in the layout of the Hugging Face hub"
        )
    config = read_config(setup.network, spec.trust_remote_code)
    _check(config, ref)
    pooler = modality == "image" and spec.pooling is None and _keeps_pooler(config, spec.trust_remote_code)
    backbone: NetworkBackbone
    with torch.random.fork_rng(devices=[]), _files.silence():
        torch.manual_seed(seed)
        missing: set[str] = set()
        if spec.pretrained:
            _files.refuse_pickles(setup.network, spec.allow_pickle, ref)
            network, missing = _load(setup.network, config, spec, pooler, ref)
        else:
            network = make(config, pooler, spec.trust_remote_code)
        if _hf_audio.encodes(config):
            missing = {name.removeprefix("encoder.") for name in missing if name.startswith("encoder.")}
            network = _hf_audio.encoder(network)
        _check_reads(network, modality, ref)
        kept = None
        if spec.layers is not None:
            kept = _layers.cut_hf(network, spec.layers, lambda c: make(c, pooler, spec.trust_remote_code), ref)
        if modality == "text":
            backbone = _hf_text.from_folder(network, setup, spec, ref)
        elif modality == "audio":
            backbone = _hf_audio.from_folder(network, setup.network, spec, ref)
        else:
            backbone = _hf_image.from_folder(network, setup.network, spec, pooler, ref)
    backbone.wire(largest_list(network))
    _refuse_missing(backbone, missing)
    facts = {**source, "architecture": type(network).__name__, "pretrained": spec.pretrained}
    facts |= {} if kept is None else {"layers": kept}
    backbone.source = {"license": model_license(folder), **facts}
    backbone.remote_code = spec.trust_remote_code
    backbone.digest = digest(backbone)
    return backbone


def rebuild(record: Mapping[str, Any], folder: Path, trust_remote_code: bool) -> NetworkBackbone:
    """The network of a record and of the files that `save_files` wrote, with weights yet to be loaded."""
    if record.get("remote_code") and not trust_remote_code:
        raise BackboneError(
            f"'{record['ref']}' runs code that came with its weights; "
            f"if you trust it, rebuild with trust_remote_code=True"
        )
    if not (folder / "config.json").is_file():
        raise BackboneError(f"'{folder}' has no config.json, which the network of '{record['ref']}' is built from")
    config = read_config(folder, trust_remote_code)
    with torch.random.fork_rng(devices=[]), _files.silence():
        torch.manual_seed(0)
        network = make(config, bool(record.get("pooler")), trust_remote_code)
        family: Any = {"text": _hf_text, "image": _hf_image, "audio": _hf_audio}[record["modality"]]
        backbone: NetworkBackbone = family.from_record(network, record, folder)
    backbone.wire(largest_list(network))
    return backbone


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    """The transformers config of a folder. Raises BackboneError for an unknown kind of model or one with own code."""
    from transformers import AutoConfig

    record = _sentence.read_json(folder / "config.json")
    if not isinstance(record, dict):
        raise BackboneError(f"expected '{folder / 'config.json'}' to hold an object, received {type(record).__name__}")
    if "auto_map" in record and not trust_remote_code:
        from transformers import CONFIG_MAPPING

        if record.get("model_type") not in CONFIG_MAPPING:
            raise BackboneError(
                f"the model in '{folder}' runs code that comes with its weights: choose another, or, "
                f"if you have read and trust that code, set backbone.trust_remote_code = true"
            )
    try:
        with _files.silence():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds for a foreign config
        raise BackboneError(
            f"the config.json in '{folder}' is not one that transformers knows: {_line(error)}"
        ) from None
    config.dtype = torch.float32
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def make(config: Any, pooler: bool, trust_remote_code: bool) -> nn.Module:
    """The network of a config with random weights, without a pooler where it may be left out."""
    from transformers import AutoModel

    options = _pooler_option(config, pooler)
    auto: Any = AutoModel
    network: nn.Module = auto.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code, **options)
    return _hf_audio.encoder(network) if _hf_audio.encodes(config) else network


def _load(folder: Path, config: Any, spec: BackboneSpec, pooler: bool, ref: str) -> tuple[nn.Module, set[str]]:
    """The network with its weights, and the names of the tensors that the weights lack."""
    from transformers import AutoModel

    try:
        network, info = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=None if spec.allow_pickle else True,
            trust_remote_code=spec.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **_pooler_option(config, pooler),
        )
    except Exception as error:  # damaged files and shapes that differ arrive as many kinds
        raise BackboneError(f"the weights of '{ref}' cannot be loaded: {_line(error)}") from None
    differing = {str(item[0] if isinstance(item, tuple) else item) for item in info["mismatched_keys"]}
    return network, {str(name) for name in info["missing_keys"]} | differing


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text[:300]}..." if len(text) > 300 else text or type(error).__name__


def _class(config: Any) -> type[nn.Module] | None:
    from transformers import MODEL_MAPPING

    found = MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def _pooler_option(config: Any, pooler: bool) -> dict[str, bool]:
    cls = _class(config)
    takes = cls is not None and "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    return {"add_pooling_layer": pooler} if takes else {}


def _keeps_pooler(config: Any, trust_remote_code: bool) -> bool:
    """Whether a vision network's own pooler is part of what was trained: it is, unless it is a dense layer on top.

    A dense pooler belongs to a pre-training head and most published weights lack it; an averaging one (Swin, BEiT) is
    how the network is meant to be read.
    """
    if not _pooler_option(config, True):
        return True
    with torch.device("meta"), _files.silence():
        pooler = getattr(make(config, True, trust_remote_code), "pooler", None)
    return pooler is not None and not any(isinstance(module, nn.Linear) for module in pooler.modules())


def _check(config: Any, ref: str) -> None:
    if getattr(config, "is_encoder_decoder", False) and not _hf_audio.hears(config):
        raise BackboneError(
            f"'{ref}' is an encoder-decoder ({config.model_type}); expected an encoder such as BERT or ViT"
        )
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        raise BackboneError(
            f"'{ref}' joins several networks ({config.model_type}); expected an encoder of one modality"
        )


def _check_reads(network: nn.Module, modality: str, ref: str) -> None:
    heard = _hf_audio.hears(getattr(network, "config", None))
    reads = "audio" if heard else READS.get(str(getattr(network, "main_input_name", "")), "something else")
    if reads != modality:
        raise BackboneError(f"'{ref}' ({type(network).__name__}) reads {reads}, and the rows are {modality}")


def _refuse_missing(backbone: NetworkBackbone, missing: set[str]) -> None:
    """Tensors that matter must come from the weights; those that do not are set to zero."""
    needed = sorted(name for name in missing if f"network.{name}" not in backbone.retired)
    if needed:
        raise BackboneError(
            f"the weights of '{backbone.ref}' lack {len(needed)} tensors that the network needs: {listed(needed)}. "
            f"They are not the weights of a {type(backbone.network).__name__}"
        )
    buffers: dict[str, Tensor] = dict(backbone.network.named_buffers())
    for name in missing:
        buffers[name].zero_()
