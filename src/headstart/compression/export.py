"""A bundle as one that an engine other than torch answers from, with what that cost measured on labelled rows."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headstart import bundle as bundles
from headstart.bundle import Bundle
from headstart.bundle.runtime import ENGINES
from headstart.compression.forms import Form, Forms
from headstart.compression.quality import GATE, find_rows
from headstart.compression.timing import Speed, fastest, in_turn
from headstart.errors import BundleError, DataError, ProofError, SpecError
from headstart.spec.notation import parse_gate

AUTO = "auto"
TORCH = "torch"


@dataclass(frozen=True)
class Exported:
    """What an export did. before and after: the main metric on `rows` rows of `data`, None without labelled rows.

    agreement: share of the rows with the same prediction. loss: by how much the metric got worse: points of a metric
    between 0 and 1, else a share of the metric before. bytes, rows_per_second and latency_ms (of one row, the median):
    before, after; the latter two on one machine, both in turn. kept: layers left in full precision, of `layers`.
    forms: of a choice, every form that was tried, with its figures or the reason why it is out.
    """

    folder: Path
    format: str
    quantize: str | None
    metric: str
    rows: int
    data: str | None
    before: float | None
    after: float | None
    loss: float | None
    gate: float | None
    agreement: float | None
    kept: int
    layers: int
    bytes: tuple[int, int]
    rows_per_second: tuple[float, float]
    latency_ms: tuple[float, float]
    forms: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def export(
    bundle: Bundle | str | Path,
    out: str | Path,
    *,
    format: str = "onnx",
    quantize: str | None = None,
    gate: str | float | None = None,
    rows: str | Path | None = None,
    task: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the bundle as one that another engine answers from; the probe and labelled rows say that it still can.

    format: `onnx` (ONNX Runtime), `openvino`, or `auto`: every engine that is installed is tried, in full precision and
    in 8 bits, and the form that is fastest on this machine is kept; torch's own where none is faster.

    quantize: `int8`, or None for the same numbers as before (proven on the probe). gate: the largest loss of the main
    metric, such as `0.5%` or 0.005; 1 % for int8 when left out. Where int8 loses more, the layers whose weights suffer
    most are left in full precision, up to three quarters of them. rows: a file of labelled rows to measure on; when
    left out, the validation rows that the bundle was made with, or its test rows, if their files are still there.
    task: of several, the one to export.

    Raises SpecError for options that cannot be used, DataError where there are no labelled rows to measure int8 on,
    BundleError for a network that cannot be exported, ProofError when the gate is not passed: nothing is written then.
    """
    limit = _check(format, quantize, gate)
    source = bundle if isinstance(bundle, Bundle) else bundles.load(bundle)
    source = source if task is None else source.only(task)
    if source.tasks:
        raise SpecError(f"a model of several tasks is exported one at a time: say --task {source.tasks[0]}")
    if (Path(out) / "bundle.json").exists() and not overwrite:
        raise BundleError(f"'{out}' already holds a bundle; choose another folder or pass --overwrite")
    forms = Forms(source, find_rows(source, rows))
    if forms.rows is None and quantize is not None:
        raise DataError(
            "the loss of quality in 8 bits has to be measured, and the files of the rows that this bundle was made "
            "with are not there: give labelled rows, as --rows FILE"
        )
    timed = source.probe_inputs if forms.rows is None else forms.rows.inputs
    tried: list[dict[str, Any]] = []
    if format == AUTO:
        made, speeds, tried = _choose(forms, GATE if limit is None else limit, timed)
    else:
        made = forms.full(format, limit) if quantize is None else forms.int8(format, GATE if limit is None else limit)
        speeds = in_turn({TORCH: source, format: made.bundle}, timed)
    return _write(forms, made, list(speeds.values()), limit, tried, Path(out), overwrite)


def _check(format: str, quantize: str | None, gate: str | float | None) -> float | None:
    """The gate as a number. Raises SpecError."""
    if format not in (*ENGINES, AUTO):
        raise SpecError(f"expected a format of {', '.join([*ENGINES, AUTO])}, received '{format}'")
    if quantize not in (None, "int8"):
        raise SpecError(f"expected quantize 'int8', or none for full precision, received '{quantize}'")
    if format == AUTO and quantize is not None:
        raise SpecError("format 'auto' tries 8 bits by itself: leave quantize out, or name the format")
    if gate is None:
        return None if quantize is None and format != AUTO else GATE
    return parse_gate(gate)


def _choose(forms: Forms, limit: float, timed: Any) -> tuple[Form, dict[str, Speed], list[dict[str, Any]]]:
    """The fastest form within the gate; the speeds of torch and of it; what was tried."""
    size = weights_size(forms.source)
    found = {TORCH: Form(forms.source, TORCH, None, None, 0, 0, size)}
    out: list[dict[str, Any]] = []

    def attempt(name: str, make: Callable[[], Form]) -> None:
        try:
            found[name] = make()
        except (ProofError, BundleError) as error:
            out.append({"form": name, "refused": str(error)})

    for engine in ENGINES:
        if importlib.util.find_spec("onnxruntime" if engine == "onnx" else engine) is None:
            out.append({"form": engine, "refused": f"not installed: pip install 'headstart[{engine}]'"})
            continue
        attempt(engine, lambda engine=engine: forms.full(engine, limit))  # type: ignore[misc]
        if forms.rows is not None:
            attempt(f"{engine} int8", lambda engine=engine: forms.int8(engine, limit))  # type: ignore[misc]
    speeds = in_turn({name: form.bundle for name, form in found.items()}, timed)
    best = fastest(speeds)
    tried = [
        {
            "form": name, "kept": name == best, "bytes": form.size, **dataclasses.asdict(speeds[name]),
            **({} if form.quality is None else dataclasses.asdict(form.quality)),
        }
        for name, form in found.items()
    ]  # fmt: skip
    if best == TORCH:
        source = forms.source
        record = {**source.record, "lineage": bundles.lineage(source.record["lineage"]["id"], "export")}
        found[best] = dataclasses.replace(found[best], bundle=dataclasses.replace(source, record=record, folder=None))
    return found[best], {TORCH: speeds[TORCH], best: speeds[best]}, [*tried, *out]


def _write(
    forms: Forms,
    made: Form,
    speeds: list[Speed],
    limit: float | None,
    tried: list[dict[str, Any]],
    out: Path,
    overwrite: bool,
) -> Exported:
    """Save the form, with `export.json`."""
    rows, quality = forms.rows, made.quality
    before, after, loss, agreement = (None,) * 4 if quality is None else dataclasses.astuple(quality)
    outcome = Exported(
        out, made.engine, made.quantize, forms.source.task.metric, 0 if quality is None or rows is None else len(rows),
        None if quality is None or rows is None else rows.source, before, after, loss, limit, agreement, made.kept,
        made.layers, (weights_size(forms.source), made.size),
        (speeds[0].rows_per_second, speeds[-1].rows_per_second), (speeds[0].latency_ms, speeds[-1].latency_ms), tried,
    )  # fmt: skip
    told = {key: value for key, value in outcome.to_json().items() if key != "folder"}
    if "runtime" in made.bundle.record:
        made.bundle.record["runtime"]["measured"] = told
    made.bundle.files = {**made.bundle.files, "export.json": (json.dumps(told, indent=2) + "\n").encode()}
    made.bundle.save(out, overwrite=overwrite)
    return outcome


def weights_size(model: Bundle) -> int:
    """Bytes of a bundle's weights: of its graph where it is an export."""
    if "runtime" in model.record:
        return len(model.files[model.record["runtime"]["file"]])
    return sum(value.numel() * value.element_size() for value in model.model.parameters())


def lines(found: Exported) -> list[str]:
    """The outcome for a terminal."""
    said = []
    for form in found.forms:
        if "refused" in form:
            said.append(f"  {form['form']}: out, {form['refused']}")
            continue
        loss = "" if form.get("loss") is None else f", {100 * form['loss']:+.2f} % lost"
        said.append(
            f"  {form['form']}: {form['latency_ms']:.1f} ms a row, {form['rows_per_second']:,.0f} rows/s, "
            f"{form['bytes'] / 1e6:.1f} MB{loss}{' (kept)' if form['kept'] else ''}"
        )
    if found.before is not None and found.after is not None and found.agreement is not None:
        said.append(
            f"{found.metric} {found.before:.4f} before, {found.after:.4f} after, on {found.rows} rows of "
            f"'{found.data}'; {100 * found.agreement:.1f} % of the predictions are the same"
        )
    elif found.format == TORCH:
        said.append("no other form is faster on this machine, so torch's own was kept")
    else:
        said.append("the answers to the stored probe are the same; no labelled rows to measure on were found")
    if found.kept:
        said.append(f"{found.kept} of {found.layers} layers stay in full precision, for the gate's sake")
    old, new = (size / 1e6 for size in found.bytes)
    before, after = found.rows_per_second
    one, other = found.latency_ms
    said.append(
        f"{old:.1f} MB before, {new:.1f} after; {before:,.0f} rows/s before, {after:,.0f} after, and one row in "
        f"{one:.1f} ms before, {other:.1f} after, on this machine"
    )
    return [*said, f"done: the bundle is in '{found.folder}'"]
