"""What a finished run leaves behind: its bundle, with the report that says how good it is and what it cost."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart import bundle as bundles
from headstart import robustness
from headstart.bundle import Bundle
from headstart.data import Data
from headstart.encoded import Encoded
from headstart.members import Member
from headstart.planning import Plan
from headstart.protocols import Task
from headstart.spec import Spec
from headstart.stages import StageResult, Stages

if TYPE_CHECKING:
    from headstart.evaluation import Report

LIBRARIES = ("headstart", "torch", "transformers", "timm", "peft", "numpy", "accelerate", "scikit-learn")


@dataclass(frozen=True)
class Chosen:
    """The stages' results, which of them is the result of the run, and a frozen probe's answers on the test rows."""

    results: list[StageResult]
    position: int
    probe: np.ndarray | None = None


@dataclass
class Evidence:
    """Gathers figures on the chosen stage's model and packs them with it."""

    spec: Spec
    data: Data
    task: Task
    stages: Stages
    plan: Plan
    chosen: Chosen
    started: float
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of several tasks each one's share of the report, by name."""
    answers: np.ndarray | None = None
    """Raw outputs on the test rows, (rows,K), once `bundle` measured them."""

    def bundle(self, test: Encoded | None) -> Bundle:
        """The finished bundle: calibrated, measured, with its report."""
        made = self.plain_bundle(self.spec, self.data, self.task, self.stages, self.chosen.results)
        validation = self.stages.validation
        held_out = None
        if validation is not None and validation.targets is not None:
            held_out = self.stages.outputs("validation", validation)
            made.record["temperature"] = self._temperature(held_out, validation)
        else:
            kept = self.chosen.results[self.chosen.position].details
            made.record["temperature"] = kept.get("temperature", 1.0)
        metrics: dict[str, Any] = {}
        details: dict[str, Any] = {}
        transfer: list[dict[str, Any]] = []
        if validation is not None and held_out is not None:
            self._measure("validation", held_out, validation, made.temperature, metrics, details)
        if test is not None:
            self.answers = self.stages.outputs("test", test)
            self._measure("test", self.answers, test, made.temperature, metrics, details)
            transfer = self._transfer(self.answers, test, made.temperature)
        measured = {
            "metrics": metrics,
            "splits": details,
            "transfer": transfer,
            "robustness": self._robustness(made, test),
        }
        made.report = self._report(made, measured)
        return made

    def _transfer(self, outputs: np.ndarray, test: Encoded, temperature: Any) -> list[dict[str, Any]]:
        """What adapting the backbone gained over its frozen probe, on the test rows, where the run made both."""
        from headstart.evaluation.intervals import difference

        if self.chosen.probe is None or test.targets is None:
            return []
        ours = self.task.scores(torch.from_numpy(outputs), temperature).numpy()
        probe = self.task.scores(torch.from_numpy(self.chosen.probe)).numpy()
        seed = self.spec.training.seed
        gain = difference(self.task, ours, probe, test.targets.numpy(), seed=seed)
        return [{"against": "probe", "budget": "100%", "metric": self.task.metric, **gain}]

    def _robustness(self, made: Bundle, test: Encoded | None) -> dict[str, Any]:
        """What attacked and spoiled rows do to it, where the spec asks for that: of the test rows if there are any."""
        asked = self.spec.evaluation
        name, rows = ("test", test) if test is not None else ("validation", self.stages.validation)
        part = self.data.test if name == "test" else self.data.validation
        if not asked.robust or part is None or rows is None or rows.targets is None or not len(rows):
            return {}
        measured = robustness.measure(
            made.model, self.task, made.modality, rows, inputs=part.inputs(), radii=asked.radii,
            most=asked.robust_rows, steps=asked.robust_steps, temperature=made.temperature,
            seed=self.spec.training.seed,
        )  # fmt: skip
        return {"split": name, **measured}

    def _temperature(self, outputs: np.ndarray, rows: Encoded) -> Any:
        from headstart.evaluation.calibration import temperature_of

        return 1.0 if rows.targets is None else temperature_of(self.task, outputs, rows.targets.numpy())

    def _measure(
        self,
        name: str,
        outputs: np.ndarray,
        rows: Encoded,
        temperature: Any,
        metrics: dict[str, Any],
        details: dict[str, Any],
    ) -> None:
        from headstart.evaluation import measure_split

        part = self.data.test if name == "test" else self.data.validation
        if part is None or rows.targets is None:
            return
        scores = self.task.scores(torch.from_numpy(outputs), temperature).numpy()
        if self.task.members:
            metrics[name] = self._measure_each(name, scores, rows.targets.numpy(), temperature)
            details[name] = {"rows": len(rows)}
            return
        measured = measure_split(
            self.task,
            scores,
            rows.targets.numpy(),
            inputs=part.inputs(),
            row_ids=part.source_rows.tolist(),
            seed=self.spec.training.seed,
        )
        metrics[name] = measured.pop("metrics")
        details[name] = measured

    def _measure_each(self, name: str, scores: np.ndarray, targets: np.ndarray, temperature: Any) -> dict[str, Any]:
        """Every task on its own rows of a split, into `parts`; returns `mean` and all metrics with the tasks' names."""
        from headstart.evaluation import measure_split
        from headstart.evaluation.intervals import intervals

        seed = self.spec.training.seed
        found = {k: v.to_json() for k, v in intervals(self.task, scores, targets, names=("mean",), seed=seed).items()}
        for member in self.task.members:
            own, rows = self.data.tasks[member.name], member.rows(targets)
            part = own.test if name == "test" else own.validation
            share = self.parts.setdefault(member.name, self._share(member, temperature))
            if part is None or not rows.any():
                continue
            measured = measure_split(
                member.task,
                scores[rows][:, member.columns],
                member.own(targets[rows]),
                inputs=part.inputs(),
                row_ids=part.source_rows.tolist(),
                seed=seed,
            )
            share["metrics"][name] = measured.pop("metrics")
            share["splits"][name] = measured
            found |= {f"{member.name}.{metric}": value for metric, value in share["metrics"][name].items()}
        return found

    def _share(self, member: Member, temperature: Any) -> dict[str, Any]:
        """What the report says of one task, before it is measured."""
        own = self.data.tasks[member.name]
        return {
            "task": member.task.name,
            "labels": list(member.task.labels),
            "metric": member.task.metric,
            "metrics": {},
            "splits": {},
            "rows": own.rows.to_json(),
            "temperature": temperature[member.name] if isinstance(temperature, Mapping) else temperature,
            "columns": own.columns.to_json(),
        }

    def _report(self, made: Bundle, measured: Mapping[str, Any]) -> Report:
        from headstart.evaluation import Report

        results = self.chosen.results
        seconds = time.monotonic() - self.started
        trained = sum(result.rows_trained for result in results)
        estimates = [stage.seconds for stage in self.plan.stages]
        return Report(
            {
                "task": self.task.name,
                "modality": self.stages.modality.name,
                "labels": list(self.task.labels),
                "metric": self.task.metric,
                **measured,
                "tasks": self.parts,
                "rows": self.data.rows.to_json(),
                "parameters": {
                    "trainable": results[self.chosen.position].trainable,
                    "total": sum(p.numel() for p in made.model.parameters()),
                },
                "cost": {
                    "seconds": seconds,
                    "peak_memory_bytes": peak_memory(),
                    "rows_trained": trained,
                    "rows_per_second": trained / max(1e-9, sum(result.seconds for result in results)),
                },
                "plan": {
                    **self.plan.to_json(),
                    "estimated_seconds": None if None in estimates else sum(filter(None, estimates)),
                    "actual_seconds": sum(result.seconds for result in results),
                    "estimated_memory_bytes": self.plan.memory_bytes,
                },
                "stages": [
                    {**result.to_json(), "kept": position == self.chosen.position}
                    for position, result in enumerate(results)
                ],
                "label_errors": self._label_errors(),
                "findings": [
                    {"level": f.level, "code": f.code, "message": f.message, "rows": list(f.rows)}
                    for f in self.data.findings
                ],
                "calibration": {"temperature": made.temperature},
                "backbone": {
                    "ref": made.model.backbone.ref,
                    "source": dict(made.model.backbone.source),
                    "digest": made.model.backbone.digest,
                },
                "data": {
                    "fingerprint": self.data.fingerprint,
                    "columns": self.data.columns.to_json(),
                    "said": list(self.data.said),
                },
                "environment": environment(self.stages.device),
                "spec": self.spec.to_json(),
                "notes": [note for result in results for note in result.notes],
            }
        )

    def _label_errors(self) -> list[dict[str, Any]]:
        """The suspects as the report lists them, the first with their inputs."""
        from headstart.evaluation.measure import WORST, shown

        inputs, rows = self.data.train.inputs(), self.data.train.source_rows
        found = []
        for place, suspect in enumerate(self.stages.suspects):
            record = suspect.to_json()
            position = record.pop("position")
            seen = shown(inputs[position]) if place < WORST else {}
            found.append({"row": int(rows[position]), **seen, **record})
        return found

    @staticmethod
    def plain_bundle(spec: Spec, loaded: Data, task: Task, stages: Stages, results: Sequence[StageResult]) -> Bundle:
        """The model as it stands with what is needed to load and prove it, without a report."""
        part = loaded.validation or loaded.test or loaded.train
        probe_inputs = bundles.make_probe(part.inputs(), stages.modality)
        backbone = stages.model.backbone
        record = {
            "spec": spec.to_json(),
            "task": task.to_json(),
            "modality": stages.modality.name,
            "backbone": backbone.describe(),
            "preprocessing": dict(backbone.preprocessing),
            "base": {"ref": backbone.ref, "source": dict(backbone.source), "digest": backbone.digest},
            "surgery": [m.model_dump() for m in stages.remaining],
            "stages": [result.to_json() for result in results],
            "columns": loaded.columns.to_json(),
            "fingerprint": loaded.fingerprint,
            "lineage": bundles.lineage(stages.parent, results[-1].name),
            "temperature": 1.0,
            "tasks": {name: {"columns": own.columns.to_json()} for name, own in loaded.tasks.items()},
        }
        stages.model.eval()
        made = Bundle(
            stages.model, task, stages.modality, record, probe_inputs, np.zeros((0, 0)), stages.methods, stages.files
        )
        made.probe_outputs = made.outputs(probe_inputs)
        return made


def forget_peak_memory() -> None:
    """Start `peak_memory` anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """The process's largest resident size, in bytes: since `forget_peak_memory` on Linux, ever elsewhere."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def environment(device: torch.device) -> dict[str, Any]:
    """Where a run happened: versions, processor, device."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "packages": versions,
    }
