"""Networks of the timm library behind the backbone's face."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones import _layers
from headstart.backbones._files import read_weights, refuse_pickles, silence
from headstart.backbones._picture import PictureBackbone, picture_settings
from headstart.backbones._pooling import Pool
from headstart.backbones._structure import digest, largest_list, members
from headstart.errors import BackboneError, MissingExtra, did_you_mean
from headstart.spec import BackboneSpec
from headstart.values import Batch, Features


class TimmBackbone(PictureBackbone):
    """A convolutional network (map) or vision transformer (tokens) of timm, without its classifier.

    mode: 'model' for the pooling that the network was trained with, or 'cls', 'mean' (over the patches), 'attention'.
    architecture and options: what `timm.create_model` needs to make the same network.
    """

    def __init__(
        self,
        network: nn.Module,
        ref: str,
        mode: str,
        architecture: str,
        options: Mapping[str, Any],
        preprocessing: Mapping[str, Any],
    ) -> None:
        super().__init__(network, ref, preprocessing)
        self.mode = mode
        self.architecture = architecture
        self.options = dict(options)
        self._lead = int(getattr(network, "num_prefix_tokens", 0) or 0)
        self._channels_last = "NHWC" in str(getattr(network, "output_fmt", ""))
        self.pool = None if mode == "model" else Pool((mode,), int(network.num_features))  # type: ignore[arg-type]
        if mode == "cls" and not self._lead:
            raise BackboneError(f"'{ref}' has no class token: expected pooling 'mean' or 'attention'")

    def features(self, batch: Batch) -> Features:
        """pooled (N,D) with tokens (N,T,D) and their mask, or with a map (N,C,H,W)."""
        hidden: Tensor = self.network.forward_features(self.normalised(batch))  # type: ignore[operator]
        if hidden.ndim == 4:
            grid = hidden.permute(0, 3, 1, 2) if self._channels_last else hidden
            return Features(self._pooled(hidden, grid.flatten(2).transpose(1, 2), 0), map=grid)
        mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        return Features(self._pooled(hidden, hidden, self._lead), hidden, mask)

    def _pooled(self, hidden: Tensor, tokens: Tensor, lead: int) -> Tensor:
        """The network's own pooling, or ours over tokens (N,T,D) of which the first `lead` are no patches."""
        pooled: Tensor
        if self.pool is None:
            pooled = self.network.forward_head(hidden, pre_logits=True).flatten(1)  # type: ignore[operator]
            return pooled
        mask = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
        if self.mode == "mean":
            mask[:, :lead] = 0
        pooled = self.pool(tokens, mask)
        return pooled

    def describe(self) -> dict[str, Any]:
        """Plain JSON for `backbones.rebuild`."""
        mine = {"family": "timm", "pooling": self.mode, "architecture": self.architecture, "options": self.options}
        return {**super().describe(), **mine}

    def save_files(self, folder: Path) -> None:
        """Nothing: the record of `describe` is enough."""


def require_timm(ref: str) -> Any:
    """The timm module. Raises MissingExtra when it is not installed."""
    try:
        import timm
    except ImportError:
        raise MissingExtra("timm", "images", f"the backbone '{ref}'") from None
    return timm


def known_architecture(name: str, ref: str) -> str:
    """The name, if timm has it. Raises BackboneError with the nearest one otherwise."""
    timm = require_timm(ref)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise BackboneError(f"timm has no network called '{architecture}': {_near(architecture, timm.list_models())}")
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        known = [item.partition(".")[2] for item in timm.list_pretrained(f"{architecture}.*")]
        raise BackboneError(f"timm has no weights '{tag}' for '{architecture}': {did_you_mean(tag, known)}")
    return name


def _near(name: str, known: list[str]) -> str:
    phrase = did_you_mean(name, known)
    return phrase if phrase.startswith("did") else "`timm.list_models()` lists those it has"


def build(
    name: str,
    weights: Mapping[str, Tensor] | None,
    spec: BackboneSpec,
    source: Mapping[str, Any],
    seed: int,
    ref: str,
    options: Mapping[str, Any] | None = None,
) -> TimmBackbone:
    """The timm network `name` with these weights (by timm's names, classifier included or not), or random ones.

    name: an architecture with or without a tag. options: more arguments for `timm.create_model`.
    Raises BackboneError when the weights are not exactly those of the network, or it cannot have that picture size.
    """
    if spec.max_length is not None:
        raise BackboneError(f"max_length is for text, and '{ref}' reads pictures: leave it out")
    options = dict(options or {})
    with torch.random.fork_rng(devices=[]), silence():
        torch.manual_seed(seed)
        network = _create(name, weights, spec.image_size, options, ref)
        kept = None
        if spec.layers is not None:
            kept = _layers.cut_timm(network, spec.layers, ref)
            options["depth"] = len(kept)
        settings = _settings(network, spec, ref)
        mode = spec.pooling or "model"
        backbone = TimmBackbone(network, ref, mode, name, options, settings)
    backbone.wire(block_paths(network))
    backbone.source = {
        "license": getattr(network, "pretrained_cfg", {}).get("license"),
        **{key: value for key, value in source.items() if value is not None},
        "architecture": name,
        "pretrained": weights is not None,
        **({} if kept is None else {"layers": kept}),
    }
    backbone.digest = digest(backbone)
    return backbone


def load_folder(folder: Path, spec: BackboneSpec, source: Mapping[str, Any], seed: int, ref: str) -> TimmBackbone:
    """The network of a folder as timm writes it: config.json with `architecture`, and weights."""
    from headstart.backbones._sentence import read_json

    config = read_json(folder / "config.json")
    architecture = str(config["architecture"])
    require_timm(ref)
    known_architecture(architecture, ref)
    cfg = config.get("pretrained_cfg", {})
    overlay = {
        key: cfg[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size") if key in cfg
    }
    weights = None
    if spec.pretrained:
        refuse_pickles(folder, spec.allow_pickle, ref)
        preferred = folder / "model.safetensors"
        found = [preferred] if preferred.is_file() else sorted(folder.glob("*.safetensors"))
        found = found or sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".pth", ".pt"))
        weights = read_weights(found[0], spec.allow_pickle)
    options = {"pretrained_cfg_overlay": overlay, **(config.get("model_args") or {})}
    options.pop("num_classes", None)
    return build(architecture, weights, spec, source, seed, ref, options)


def rebuild(record: Mapping[str, Any]) -> TimmBackbone:
    """The network of a record made by `describe`, with weights yet to be loaded."""
    ref = str(record["ref"])
    known_architecture(str(record["architecture"]).partition(".")[0], ref)
    options = dict(record["options"])
    with torch.random.fork_rng(devices=[]), silence():
        torch.manual_seed(0)
        network = _create(str(record["architecture"]), None, None, options, ref)
        backbone = TimmBackbone(
            network, ref, str(record["pooling"]), str(record["architecture"]), options, record["preprocessing"]
        )
    backbone.wire(block_paths(network))
    return backbone


def block_paths(network: nn.Module) -> list[str]:
    """Paths of the network's blocks: the coarse groups that timm itself declares.

    Where it declares none that are modules, the largest list of layers, and without one all children with weights.
    """
    matcher: Any = network.group_matcher(coarse=True) if hasattr(network, "group_matcher") else {}  # type: ignore[operator]
    patterns: Any = matcher.get("blocks", []) if isinstance(matcher, Mapping) else []
    if isinstance(patterns, str):
        patterns = [(patterns, None)]
    expressions = [re.compile(item if isinstance(item, str) else item[0]) for item in patterns]
    modules = dict(network.named_modules())
    paths: list[str] = []
    for name, _ in network.named_parameters():
        for expression in expressions:
            match = expression.match(name)
            if match and any(group and group.isdigit() for group in match.groups()):
                path = name[: match.end()].rstrip(".")
                if path in modules and path not in paths:
                    paths.append(path)
                break
    outermost = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    if outermost:
        lists = (
            members(modules[path], path) if isinstance(modules[path], nn.ModuleList) else [path] for path in outermost
        )
        return [path for listed in lists for path in listed]
    try:
        return largest_list(network, (nn.ModuleList, nn.Sequential))
    except BackboneError:
        return [name for name, child in network.named_children() if any(True for _ in child.parameters())]


def _create(
    name: str, weights: Mapping[str, Tensor] | None, size: int | None, options: dict[str, Any], ref: str
) -> nn.Module:
    """The network without classifier. `options` gains `img_size` where the network is built for one size."""
    timm = require_timm(ref)
    base = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if size is not None and base is not None and base.fixed_input_size:
        options["img_size"] = size
    arguments = dict(options)
    overlay = {**arguments.pop("pretrained_cfg_overlay", {})}
    if weights is not None:
        classes = _classes(weights, None if base is None else base.classifier)
        arguments["num_classes"] = classes
        overlay.update(state_dict=dict(weights), source="", num_classes=classes, label_offset=0, custom_load=False)
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=weights is not None, pretrained_cfg_overlay=overlay, **arguments
        )
        network.reset_classifier(0)  # type: ignore[operator]
    except Exception as error:  # a refused option, size or state dict arrives as any of several kinds
        reason = " ".join(str(error).split())
        raise BackboneError(f"timm cannot make '{name}' for '{ref}': {reason[:400]}") from None
    network.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
    return network


def _classes(weights: Mapping[str, Tensor], classifier: Any) -> int:
    """How many classes the classifier among the weights has; 0 when there is none."""
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    for name in names:
        for leaf in ("weight", "bias"):
            if f"{name}.{leaf}" in weights:
                return int(weights[f"{name}.{leaf}"].shape[0])
    return 0


def _settings(network: nn.Module, spec: BackboneSpec, ref: str) -> dict[str, Any]:
    import timm.data

    data: Any = timm.data
    found = data.resolve_model_data_config(network)
    _, height, width = found["input_size"]
    if height != width:
        raise BackboneError(f"'{ref}' reads pictures of {height} by {width}; expected a network of square pictures")
    way = found["interpolation"] if found["interpolation"] != "random" else "bilinear"
    mode = found.get("crop_mode") or "center"
    return picture_settings(
        spec.image_size or int(height), float(found["crop_pct"]), mode, way, found["mean"], found["std"]
    )
