"""All that is said about one split: metrics with intervals, per class, slices, calibration, the worst mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.evaluation.intervals import intervals

if TYPE_CHECKING:
    from headstart.protocols import Task

WORST = 24
"""Mistakes that a report lists."""

SHOWN_TEXT = 600
"""Characters of a text that a report keeps."""

SMALL = 30
"""Rows below which a slice is marked as too small to conclude from."""

LARGEST_SLICES = 30
"""Values of a column that are measured one by one; the rest are measured together."""

NUMERIC_VALUES = 12
"""Distinct numbers above which a numeric column is cut into four ranges with equally many rows."""

LARGEST_SOUND = 200_000
"""Bytes of a sound's file up to which a report can play it."""

SOUND_TYPES = {"wav": "wav", "flac": "flac", "ogg": "ogg", "oga": "ogg", "opus": "ogg", "mp3": "mpeg"}
"""Endings of sound files that browsers play, and their media types."""

THUMBNAIL = 112
"""Longest side of a thumbnail, in pixels."""


def measure_split(
    task: Task,
    scores: np.ndarray,
    targets: np.ndarray,
    *,
    inputs: Any = None,
    row_ids: Sequence[Any] | None = None,
    slices: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure scores (rows,K) against encoded targets, as plain JSON.

    inputs: the rows' texts, pictures (path, bytes, PIL picture or array) or sounds (path, bytes); only the worst ones
    are read. row_ids: what each row is called in its file. slices: column name -> its value on every row.

    Keys: `rows`, `metrics` (name -> value, low, high), the task's own (`per_class`, `confusion`, `calibration`,
    `scatter`), `slices` and `mistakes`. Raises ValueError when lengths differ or there are no rows.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    rows = len(targets)
    lengths = {"scores": len(scores), **{f"slice '{name}'": len(column) for name, column in (slices or {}).items()}}
    if row_ids is not None:
        lengths["row_ids"] = len(row_ids)
    if rows == 0 or any(length != rows for length in lengths.values()):
        raise ValueError(f"expected one or more targets and as many of everything else, received {rows} and {lengths}")
    measured = intervals(task, scores, targets, seed=seed)
    return {
        "rows": rows,
        "metrics": {name: interval.to_json() for name, interval in measured.items()},
        **task.details(scores, targets),
        "slices": {
            name: _slice_column(task, scores, targets, column, measured[task.metric].value, seed)
            for name, column in (slices or {}).items()
        },
        "mistakes": _mistakes(task, scores, targets, inputs, row_ids),
    }


def _slice_column(
    task: Task, scores: np.ndarray, targets: np.ndarray, column: Sequence[Any], overall: float, seed: int
) -> list[dict[str, Any]]:
    """One record a value, largest first: rows, the task's metric with its interval, and whether it stands out.

    `small`: too few rows to conclude from. `worse`: the interval lies wholly on the worse side of the overall value.
    """
    found = []
    for value, chosen in _values(column):
        measured = intervals(task, scores[chosen], targets[chosen], names=(task.metric,), seed=seed).get(task.metric)
        record: dict[str, Any] = {"value": value, "rows": len(chosen), "small": len(chosen) < SMALL}
        record["metric"] = task.metric
        record |= {"score": None, "low": None, "high": None, "worse": False}
        if measured is not None:
            record |= {"score": measured.value, "low": measured.low, "high": measured.high}
            near = measured.high if task.greater_is_better else measured.low
            record["worse"] = near is not None and task.better(overall, near)
        found.append(record)
    return found


def _values(column: Sequence[Any]) -> list[tuple[str, np.ndarray]]:
    """Each value of a column as text with its rows, most rows first; many numbers become ranges, rare values one."""
    plain = [value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value for value in column]
    numbers = [v for v in plain if isinstance(v, int | float) and not isinstance(v, bool) and not _missing(v)]
    numeric = len(numbers) == sum(not _missing(v) for v in plain)
    ranges = _ranges(plain, numbers) if numeric and len(set(numbers)) > NUMERIC_VALUES else []
    names = ranges or [_name(value) for value in plain]
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    by_size = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    if names is ranges:
        by_size = [(name, rows[name]) for name in dict.fromkeys(ranges[row] for row in _ascending(plain))]
    kept, rest = by_size[:LARGEST_SLICES], by_size[LARGEST_SLICES:]
    if rest:
        kept.append((f"({len(rest)} other values)", sorted(row for _, chosen in rest for row in chosen)))
    return [(name, np.array(chosen)) for name, chosen in kept]


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _name(value: Any) -> str:
    return "(missing)" if _missing(value) else str(value)[:80]


def _ascending(column: Sequence[Any]) -> list[int]:
    """Rows by value, missing ones last."""
    return sorted(range(len(column)), key=lambda row: math.inf if _missing(column[row]) else column[row])


def _ranges(column: Sequence[Any], numbers: Sequence[float]) -> list[str]:
    edges = np.unique(np.quantile(np.array(numbers, dtype=np.float64), [0, 0.25, 0.5, 0.75, 1]))
    last = max(0, len(edges) - 2)

    def name(value: Any) -> str:
        if _missing(value):
            return "(missing)"
        place = min(int(np.searchsorted(edges, value, side="right")) - 1, last)
        return f"{edges[place]:g} to {edges[place + 1]:g}"

    return [name(value) for value in column]


def _mistakes(
    task: Task, scores: np.ndarray, targets: np.ndarray, inputs: Any, row_ids: Sequence[Any] | None
) -> list[dict[str, Any]]:
    """The worst answers, worst first: `row`, the input, `truth`, `prediction` and how wrong."""
    kind, wrongness = task.wrongness(scores, targets)
    order = np.argsort(-wrongness, kind="stable")[:WORST]
    worst = order[wrongness[order] > 0]
    if not len(worst):
        return []
    truth = task.truth(targets[worst])
    given = task.decode(scores[worst]).prediction
    found = []
    for place, row in enumerate(worst.tolist()):
        name = row if row_ids is None else row_ids[row]
        record: dict[str, Any] = {"row": name.item() if hasattr(name, "item") else name}
        record |= shown(inputs[row]) if inputs is not None else {}
        record |= {"truth": truth[place], "prediction": given[place], kind: float(wrongness[row])}
        found.append(record)
    return found


def shown(value: Any) -> dict[str, Any]:
    """How a report shows an input.

    `text`; for a picture `thumbnail` (a data URI) and its path, `image`; for a sound its path, `audio`, and `player`
    (a data URI) where it is short.
    """
    kind = _sound_type(value)
    if kind is not None:
        return _shown_sound(value, kind)
    if isinstance(value, str) and not _is_picture(value):
        return {"text": value if len(value) <= SHOWN_TEXT else value[: SHOWN_TEXT - 1] + "…"}
    record: dict[str, Any] = {"image": str(value)} if isinstance(value, str | Path) else {}
    return record | {"thumbnail": thumbnail(value)}


def _sound_type(value: Any) -> str | None:
    """The media type of a sound that browsers play, by its bytes or its path; None for anything else."""
    if isinstance(value, bytes):
        heads = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mpeg"}
        return next((kind for head, kind in heads.items() if value.startswith(head)), None)
    if not isinstance(value, str | Path) or len(str(value)) > 1024 or "\n" in str(value):
        return None
    kind = SOUND_TYPES.get(str(value).lower().rpartition(".")[2])
    return kind if kind and Path(value).is_file() else None


def _shown_sound(value: Any, kind: str) -> dict[str, Any]:
    import base64

    record: dict[str, Any] = {} if isinstance(value, bytes) else {"audio": str(value)}
    size = len(value) if isinstance(value, bytes) else Path(value).stat().st_size
    if size <= LARGEST_SOUND:
        data = value if isinstance(value, bytes) else Path(value).read_bytes()
        record["player"] = f"data:audio/{kind};base64,{base64.b64encode(data).decode()}"
    return record


def _is_picture(text: str) -> bool:
    """Whether a text is the path of a picture file that exists."""
    suffix = text[-5:].lower().rpartition(".")[2]
    if suffix not in ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff") or "\n" in text or len(text) > 1024:
        return False
    return Path(text).is_file()


def thumbnail(value: Any) -> str | None:
    """A small PNG or JPEG as a data URI; None for a picture that cannot be read."""
    import base64
    import io

    from PIL import Image, ImageOps

    try:
        if isinstance(value, Image.Image):
            picture = value
        elif isinstance(value, np.ndarray):
            picture = Image.fromarray(value)
        else:
            picture = Image.open(io.BytesIO(value) if isinstance(value, bytes | bytearray) else value)
        picture = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, TypeError, Image.DecompressionBombError):
        return None
    if max(picture.size) < THUMBNAIL // 2:
        # Tiny pictures are enlarged by whole steps, so that their pixels stay visible.
        scale = THUMBNAIL // max(picture.size)
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    smallest = b""
    for form, options in (("JPEG", {"quality": 82}), ("PNG", {"optimize": True})):
        stream = io.BytesIO()
        picture.save(stream, form, **options)
        if not smallest or len(stream.getvalue()) < len(smallest):
            smallest, kind = stream.getvalue(), form.lower()
    return f"data:image/{kind};base64,{base64.b64encode(smallest).decode()}"
