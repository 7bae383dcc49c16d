"""The one artefact: a folder that holds everything a model needs, proves itself when it loads, and can be moved.

    bundle.json             format, spec, task, backbone, lineage, fingerprint, hashes of the files below
    model.safetensors       weights, `backbone.*` and `head.*` (an exported bundle has `onnx/model.onnx` in their place;
                            a light one borrows the backbone's, see `light.lighten`)
    probe.safetensors       the answers (n,K) that the stored probe inputs must give
    probe/                  the probe inputs: texts.json, pictures as PNG, or sounds as WAV
    backbone/               the network's config and tokenizer
    report.json, report.html, README.md     the evidence (may be edited: not hashed)

`bundle.json` is written last: a folder without it is not a bundle, so a crash never leaves half of one that loads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart import backbones, catalog, inference, tasks
from headstart.bundle import borrowed, runtime
from headstart.encoded import Encoded
from headstart.errors import BundleError, ProofError, did_you_mean
from headstart.hooks import Hooks
from headstart.model import Model
from headstart.protocols import Method, Modality, Task
from headstart.steps import answering
from headstart.steps.precision import Precision
from headstart.values import Decoded

if TYPE_CHECKING:
    from headstart.evaluation import Report

FORMAT = 1
TOLERANCE = 1e-3
"""Largest difference of a probe's outputs, relative to their largest value: above float noise between machines."""

PROBE_ROWS = 8

PRECISIONS = ("auto", "fp32", "bf16")
"""What rows may be answered in."""

Build = Callable[[Path, dict[str, Any], Task], tuple[Any, Mapping[str, Method]]]
"""Makes a bundle's model from its folder, its record and its task."""

EVIDENCE = ("report.json", "report.html", "README.md")


@dataclass
class Bundle:
    """A finished model with its evidence.

    record: what `bundle.json` holds beside the hashes. probe_inputs: texts, or bytes of PNG or WAV. files: more files;
    those of a bundle that was loaded are read when they are asked for.
    """

    model: Model
    task: Task
    modality: Modality
    record: dict[str, Any]
    probe_inputs: list[Any]
    probe_outputs: np.ndarray
    methods: Mapping[str, Method] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    report: Report | None = None
    folder: Path | None = None
    answering: Precision | None = None
    """What many rows are answered in on this machine, once it was measured."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, or names of the regression targets."""
        return self.task.labels

    @property
    def temperature(self) -> Any:
        """What outputs are divided by before probabilities are made; of several tasks one number each, by name."""
        found = self.record.get("temperature", 1.0)
        return found if isinstance(found, Mapping) else float(found)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its tasks; none where it has just one."""
        return tuple(member.name for member in self.task.members)

    def only(self, task: str) -> Bundle:
        """One of several tasks as a model of its own, with the same backbone; it can be used and saved like any other.

        Raises BundleError for a task that is not there.
        """
        member = next((member for member in self.task.members if member.name == task), None)
        head: Any = getattr(self.model, "head", None)
        if member is None or not isinstance(head, torch.nn.Linear):
            have = did_you_mean(task, self.tasks) if self.tasks else "this model has a single task, and it has no name"
            raise BundleError(f"there is no task '{task}' in this model: {have}")
        own = torch.nn.Linear(head.in_features, member.task.outputs).to(head.weight.device)
        with torch.no_grad():
            own.weight.copy_(head.weight[member.columns])
            own.bias.copy_(head.bias[member.columns])
        asked = self.record["spec"]
        training = {**asked["training"], "sampling": "size", "metric": None}
        spec = {**asked, **asked["tasks"][task], "tasks": {}, "training": training}
        heat = self.temperature
        record = {
            **self.record,
            "spec": spec,
            "task": member.task.to_json(),
            "columns": self.record["tasks"][task]["columns"],
            "tasks": {},
            "temperature": heat[task] if isinstance(heat, Mapping) else heat,
            "lineage": lineage(self.record["lineage"]["id"], task),
        }
        model = Model(self.model.backbone, own).eval()
        answers = self.probe_outputs[:, member.columns]
        return Bundle(model, member.task, self.modality, record, self.probe_inputs, answers, self.methods, self.files)

    def outputs(self, inputs: Sequence[Any], *, precision: str = "fp32") -> np.ndarray:
        """Raw outputs, (rows,K) float32, of raw inputs (texts; paths, bytes or arrays of pictures and sounds).

        precision: fp32; bf16; auto for what is faster here, where there are rows enough to find out: bf16 only
        where it answers nearly the same, with the predictions of fp32 (`steps.answering`). Raises BundleError for
        another one.
        """
        if precision not in PRECISIONS:
            raise BundleError(f"there is no precision '{precision}': {did_you_mean(precision, PRECISIONS)}")
        if precision == "bf16" and "runtime" in self.record:
            raise BundleError("an exported bundle answers in the precision that it was exported in; leave bf16 out")
        if len(inputs) == 0:
            return np.zeros((0, self.task.outputs), dtype=np.float32)
        rows = Encoded.of(self.modality, self.model.backbone, inputs)
        if precision == "auto" and "runtime" not in self.record:
            self.answering = self.answering or answering.choose(self.model, rows)
            return answering.outputs(self.model, rows, self.task, self.answering or Precision())
        return inference.outputs(self.model, rows, precision=precision)

    def scores(self, inputs: Sequence[Any], *, tta: int = 1, seed: int = 0, precision: str = "fp32") -> np.ndarray:
        """Calibrated probabilities or values, (rows,K); with `tta` above 1 the mean over so many views of each row.

        The first view is the row itself, the others are drawn from `seed` by the bundle's own `augment`, or by
        `views.DEFAULTS`. precision: as for `outputs`; views are answered in fp32.
        """
        if tta == 1 or len(inputs) == 0:
            outputs = self.outputs(inputs, precision=precision)
            return self.task.scores(torch.from_numpy(outputs), self.temperature).numpy()
        from headstart.views import averaged

        specs = [*(self.record["spec"].get("methods") or []), *self._stage_methods()]
        return averaged(self.model, self.task, self.modality, inputs, specs, self.temperature, tta, seed)

    def _stage_methods(self) -> list[Mapping[str, Any]]:
        return [method for stage in self.record["spec"].get("stages", []) for method in stage["methods"]]

    def decode(self, inputs: Sequence[Any], *, tta: int = 1, seed: int = 0, precision: str = "fp32") -> Decoded:
        """Predictions with their score columns."""
        return self.task.decode(self.scores(inputs, tta=tta, seed=seed, precision=precision))

    def predict(
        self, inputs: Sequence[Any], *, task: str | None = None, tta: int = 1, seed: int = 0, precision: str = "auto"
    ) -> list[Any]:
        """One answer a row: a label, a list of labels, a number or a list of numbers.

        Of several tasks a dictionary of answers by task, or with `task` the answers of that one. tta: how many views of
        each row are answered and averaged (test-time augmentation); 1 is the row alone. precision: as for `outputs`.
        """
        if isinstance(inputs, str | bytes):
            raise BundleError("predict expects a list of rows, received one string: write predict([text])")
        model = self if task is None else self.only(task)
        return model.decode(list(inputs), tta=tta, seed=seed, precision=precision).prediction

    def prove(self) -> float:
        """Run the stored probe again; the largest difference found. Raises ProofError when it is too large."""
        found = self.outputs(self.probe_inputs)
        if found.shape != self.probe_outputs.shape:
            raise ProofError(f"the probe's outputs have shape {found.shape}, expected {self.probe_outputs.shape}")
        if not found.size:
            return 0.0
        difference = float(np.abs(found - self.probe_outputs).max())
        allowed = TOLERANCE * max(1.0, float(np.abs(self.probe_outputs).max()))
        if not difference <= allowed:
            raise ProofError(
                f"this model no longer answers as it did when it was saved: its outputs on the stored probe differ by "
                f"{difference:.3g} (allowed {allowed:.3g})"
            )
        return difference

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the bundle and prove the written copy. Raises BundleError when `folder` already holds one."""
        folder = Path(folder)
        if (folder / "bundle.json").exists():
            if not overwrite:
                raise BundleError(f"'{folder}' already holds a bundle; choose another folder or pass --overwrite")
            (folder / "bundle.json").unlink()
        if folder.exists() and not folder.is_dir():
            raise BundleError(f"'{folder}' is a file; a bundle needs a folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._write(folder)
        hashes = {name: _hash(folder / name) for name in _listed(folder, self._names(folder))}
        text = json.dumps({**self.record, "format": FORMAT, "files": hashes}, indent=2, ensure_ascii=False)
        fresh = folder / f".bundle.json.{os.getpid()}"
        fresh.write_text(text + "\n", encoding="utf-8")
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(folder / "bundle.json")
        self.folder = folder
        try:
            load(folder, report=False)
        except ProofError:
            (folder / "bundle.json").unlink()
            raise
        return folder

    def _names(self, folder: Path) -> list[str]:
        weights = [] if "runtime" in self.record else ["model.safetensors"]
        return [*weights, "probe.safetensors", "probe", "backbone", *self.files]

    def _write(self, folder: Path) -> None:
        from safetensors.torch import save_file

        for name in ("probe", "backbone"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
        (folder / "model.safetensors").unlink(missing_ok=True)
        if "runtime" not in self.record:
            # A clone gives every tensor its own contiguous memory, as safetensors asks (tied weights, channels_last).
            weights = {
                name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, value in self.model.state_dict().items()
                if not self.record.get("borrows") or borrowed.is_own(name)
            }
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        save_file({"outputs": torch.from_numpy(np.ascontiguousarray(self.probe_outputs))}, folder / "probe.safetensors")
        self.model.backbone.save_files(folder / "backbone")
        suffix = self.modality.probe_suffix
        if suffix:
            for number, content in enumerate(self.probe_inputs):
                (folder / "probe" / f"{number}{suffix}").write_bytes(content)
        else:
            (folder / "probe" / "texts.json").write_text(json.dumps(self.probe_inputs, ensure_ascii=False), "utf-8")
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # Replaced, not written into: an engine may have the old file in use.
            fresh = folder / f"{name}.{os.getpid()}"
            fresh.write_bytes(content)
            fresh.replace(folder / name)
        if self.report is not None:
            self.report.write(folder)


def lineage(parent: str | None, name: str) -> dict[str, Any]:
    """Who this bundle is and what it came from."""
    return {"id": uuid.uuid4().hex, "name": name, "parent": parent}


def make_probe(inputs: Sequence[Any], modality: Modality) -> list[Any]:
    """Up to `PROBE_ROWS` raw inputs in the form that a bundle stores (`Modality.probe`)."""
    chosen = [inputs[int(i)] for i in np.linspace(0, len(inputs) - 1, min(PROBE_ROWS, len(inputs))).astype(int)]
    return [modality.probe(value) for value in chosen]


def load(folder: str | Path, *, report: bool = True, build: Build | None = None) -> Bundle:
    """Read, check and prove a bundle. build: makes the model otherwise than `network` does.

    Raises BundleError for a folder that is not a bundle or whose files were cut short or altered, ProofError when the
    model does not answer as it did.
    """
    folder = Path(folder)
    record = read_record(folder)
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"the bundle '{folder}' lacks '{name}': copy the whole folder")
        size = path.stat().st_size
        if size != expected["size"]:
            raise BundleError(
                f"'{name}' in '{folder}' has {size} bytes, expected {expected['size']}: it was cut short or altered"
            )
        if _hash(path)["sha256"] != expected["sha256"]:
            raise BundleError(f"'{name}' in '{folder}' was altered after the bundle was saved (its sha256 differs)")
    try:
        bundle = _assemble(folder, record, build or network)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"'{folder / 'bundle.json'}' was altered: {error!r}") from None
    bundle.prove()
    if report and (folder / "report.json").is_file():
        from headstart.evaluation import Report

        bundle.report = Report.read(folder)
    return bundle


def read_record(folder: Path) -> dict[str, Any]:
    """`bundle.json`, checked for format. Raises BundleError with what is there instead."""
    path = folder / "bundle.json"
    if not folder.is_dir():
        raise BundleError(f"there is no bundle at '{folder}'")
    if not path.is_file():
        hint = "a run that has not finished: go on with --resume" if (folder / "run.json").exists() else "not a bundle"
        raise BundleError(f"'{folder}' holds no bundle.json; it is {hint}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["format"]
        if not isinstance(record["files"], dict):
            raise TypeError("files")
    except (ValueError, KeyError, TypeError):
        raise BundleError(f"'{path}' is cut short or is not a bundle's record") from None
    if version != FORMAT:
        raise BundleError(f"'{path}' has format {version}, this version of Headstart reads format {FORMAT}")
    return dict(record)


def network(folder: Path, record: dict[str, Any], task: Task) -> tuple[Any, Mapping[str, Method]]:
    """The model of a bundle with its weights, and the methods whose surgery it keeps. Raises BundleError."""
    from safetensors.torch import load_file

    backbone = backbones.rebuild(record["backbone"], folder / "backbone")
    if "runtime" in record:
        engine = str(record["runtime"]["name"])
        return runtime.GraphModel(backbone, folder / record["runtime"]["file"], engine), {}
    methods = {m["name"]: catalog.find("methods", m["name"])(**m["options"]) for m in record["surgery"]}
    modality: Modality = catalog.find("modalities", record["modality"])()
    model = Hooks(methods, task, modality, seed=0).adapt(Model(backbone, torch.nn.Linear(backbone.width, task.outputs)))
    weights = load_file(folder / "model.safetensors")
    if record.get("borrows"):
        base = borrowed.base(record)
        names = [name for name in model.state_dict() if not borrowed.is_own(name)]
        weights.update({name: base[borrowed.plain(name)] for name in names})
    missing, extra = model.load_state_dict(weights, strict=False)
    if missing or extra:
        raise BundleError(f"'{folder}' has weights that do not fit: missing {missing[:3]}, unexpected {extra[:3]}")
    if modality.name == "image":  # convolutions run about twice as fast on a processor
        model = model.to(memory_format=torch.channels_last)
    return model, methods


def _assemble(folder: Path, record: dict[str, Any], build: Build) -> Bundle:
    from safetensors.torch import load_file

    task = tasks.from_json(record["task"])
    modality: Modality = catalog.find("modalities", record["modality"])()
    model, methods = build(folder, record, task)
    model.eval()
    expected = load_file(folder / "probe.safetensors")["outputs"].numpy()
    own = ("model.safetensors", "probe.safetensors", "probe", "backbone")
    files = _Stored(folder, {n: facts for n, facts in record["files"].items() if n.split("/")[0] not in own})
    inputs: list[Any]
    if modality.probe_suffix:
        inputs = [
            (folder / "probe" / f"{number}{modality.probe_suffix}").read_bytes() for number in range(len(expected))
        ]
    else:
        inputs = json.loads((folder / "probe" / "texts.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in record.items() if key not in ("files", "format")}
    return Bundle(model, task, modality, kept, inputs, expected, methods, files, folder=folder)


class _Stored(Mapping[str, bytes]):
    """Files of a saved bundle by name, read when they are asked for: a graph is not kept beside its engine's copy."""

    def __init__(self, folder: Path, facts: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self.facts = folder, facts

    def __getitem__(self, name: str) -> bytes:
        expected = self.facts[name]["sha256"]
        path = self.folder / name
        if not path.is_file():
            raise BundleError(f"'{path}' is gone since the bundle was loaded: load it from where it is now")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise BundleError(f"'{path}' was altered since the bundle was loaded")
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)


def _listed(folder: Path, names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        path = folder / name
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        found += [p.relative_to(folder).as_posix() for p in inside]
    return found


def _hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}
