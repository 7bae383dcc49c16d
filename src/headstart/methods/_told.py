"""A teacher's outputs in a file: for teachers that are no bundle. Rows are found by their content, never by place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.errors import MethodError
from headstart.methods._teacher import Answers, label_order
from headstart.protocols import Backbone, Context, Task

SUFFIX = ".safetensors"


def write_outputs(
    path: str | Path, inputs: Sequence[Any], outputs: Any, labels: Sequence[str], task: str = "classification"
) -> Path:
    """Store what a teacher says, for `distil:teacher=FILE.safetensors`.

    inputs: the raw rows: texts; pictures as `pathlib.Path`, bytes or arrays. outputs: (rows,K), before the
    softmax or sigmoid; for a regression its values. labels: K names in the order of the outputs.
    Raises MethodError when the sizes do not agree.
    """
    from safetensors.torch import save_file

    table = torch.as_tensor(np.asarray(outputs), dtype=torch.float32)
    if table.shape != (len(inputs), len(labels)):
        raise MethodError(f"expected outputs of {len(inputs)} rows by {len(labels)} labels, got {tuple(table.shape)}")
    path = Path(path)
    if path.suffix != SUFFIX:
        raise MethodError(f"expected a file that ends in {SUFFIX}, received '{path}'")
    keys = torch.tensor([list(key(value)) for value in inputs], dtype=torch.uint8).reshape(len(inputs), -1)
    about = {"labels": json.dumps(list(labels)), "task": task}
    save_file({"outputs": table.contiguous(), "keys": keys}, path, about)
    return path


def key(value: Any) -> bytes:
    """sha256 of what a row holds: a text, or a picture's bytes."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
        value = Path(value) if isinstance(value, str) else value
    if isinstance(value, os.PathLike):
        content = Path(value).read_bytes()
    elif isinstance(value, str):
        content = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
    else:
        pixels = np.ascontiguousarray(np.asarray(value))
        content = f"{pixels.shape}{pixels.dtype}".encode() + pixels.tobytes()
    return hashlib.sha256(content).digest()


@dataclass
class _Described:
    """What a task and a file of outputs have in common."""

    name: str
    labels: tuple[str, ...]
    members: tuple[()] = ()


class Told:
    """A file of outputs in the place of a teacher: it answers about the rows that it holds."""

    def __init__(self, path: str, task: Task) -> None:
        """Raises MethodError for a file that is not one of these, or whose labels are not the run's."""
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                self.outputs: Tensor = file.get_tensor("outputs")
                keys: Tensor = file.get_tensor("keys")
            described = _Described(about["task"], tuple(json.loads(about["labels"])))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise MethodError(
                f"'{path}' is not a file of teacher outputs ({error}): write it with headstart.methods.distil."
                f"write_outputs, or give a bundle's folder"
            ) from None
        described_task: Any = described
        self.order = label_order(task, described_task)
        self.places = {bytes(row): place for place, row in enumerate(keys.numpy())}
        self.digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def reads_like(self, student: Backbone) -> bool:
        """Never: only whole rows are known."""
        return False

    def ask_all(self, rows: Any, student: Backbone, ctx: Context) -> Answers:
        """The outputs of every row. Raises MethodError naming the first row that the file does not hold."""
        if rows.raw is None:
            raise MethodError("'distil': the rows as they were read are not there, so that none is found in the file")
        picture = student.modality == "image"
        values = (Path(v) if picture and isinstance(v, str) else v for v in (rows.raw[i] for i in range(len(rows))))
        found = [self.places.get(key(value)) for value in values]
        missing = [row for row, place in enumerate(found) if place is None]
        if missing:
            raise MethodError(
                f"'distil': '{self.path}' holds no outputs for {len(missing)} of {len(found)} rows, the first being "
                f"row {missing[0]}: it was made from other rows; write it for these"
            )
        outputs = self.outputs[torch.tensor(found, dtype=torch.int64)][:, self.order]
        return Answers(outputs, torch.zeros(len(found), 0))

    def release(self) -> None:
        """Nothing is held."""
