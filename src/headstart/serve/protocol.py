"""The Open Inference Protocol, version 2: tensors in and out, as JSON or in the binary extension.

Specification: KServe, "Open Inference Protocol (V2)", inference and metadata; Triton's extensions "binary tensor data"
and "model repository". A model has one input of type BYTES, named by its modality, and for each of its tasks the
outputs `prediction` (BYTES, or FP32 for numbers) and `scores` (FP32, one column a label).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from headstart.protocols import Task
from headstart.serve.inputs import from_base64, parse
from headstart.serve.refusals import bad

EXTENSIONS = ("binary_tensor_data", "model_repository")
BINARY = "inference-header-content-length"
"""The header that says how long the JSON is which stands before the binary tensors."""

Tensor = tuple[str, str, list[int], list[Any] | np.ndarray]
"""name, datatype, shape, and its values row after row: strings for BYTES, (rows,K) float32 for FP32."""


@dataclass(frozen=True)
class Asked:
    """An inference request. rows: strings, or bytes. outputs: names wanted, in their order, with whether in binary."""

    id: str | None
    rows: list[str | bytes]
    outputs: Mapping[str, bool] | None
    binary: bool


def read(body: bytes, header_length: str | None, modality: str) -> Asked:
    """An inference request for a model of this modality. Raises Refused with what is wrong with it."""
    if header_length is None:
        record, rest = parse(body), b""
    else:
        if not header_length.isascii() or not header_length.isdigit() or int(header_length) > len(body):
            raise bad(f"expected the length of the JSON in {BINARY}, at most {len(body)}")
        record, rest = parse(body[: int(header_length)]), body[int(header_length) :]
    if not isinstance(record, Mapping):
        raise bad("expected a JSON object with 'inputs'")
    inputs = record.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], Mapping):
        raise bad(f"expected 'inputs' to be a list of one tensor named '{modality}'")
    identity = record.get("id")
    if identity is not None and not (isinstance(identity, str) and len(identity) <= 256 and _unicode(identity)):
        raise bad("expected 'id' to be a string of at most 256 characters")
    rows = _rows(inputs[0], rest, modality)
    binary = _flag(_mapping(record, "parameters"), "binary_data_output")
    return Asked(identity, rows, _outputs(record, binary), binary)


def _unicode(text: str) -> bool:
    """Whether a text can be sent back: JSON can spell halves of characters, UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise bad(f"expected '{key}' to be an object")
    return found


def _flag(parameters: Mapping[str, Any], key: str) -> bool:
    found = parameters.get(key, False)
    if not isinstance(found, bool):
        raise bad(f"expected the parameter '{key}' to be true or false")
    return found


def _outputs(record: Mapping[str, Any], binary: bool) -> dict[str, bool] | None:
    wanted = record.get("outputs")
    if not wanted:
        return None
    if not isinstance(wanted, list):
        raise bad("expected 'outputs' to be a list of objects with a 'name'")
    found = {}
    for entry in wanted:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise bad("expected 'outputs' to be a list of objects with a 'name'")
        parameters = _mapping(entry, "parameters")
        found[entry["name"]] = _flag(parameters, "binary_data") if "binary_data" in parameters else binary
    return found


def _rows(tensor: Mapping[str, Any], rest: bytes, modality: str) -> list[str | bytes]:
    if tensor.get("name") != modality:
        raise bad(f"expected an input named '{modality}'")
    if tensor.get("datatype") != "BYTES":
        raise bad(f"the input '{modality}' has the datatype BYTES and no other")
    shape = tensor.get("shape")
    sizes = shape if isinstance(shape, list) else []
    # bool is a kind of int in Python, and true is no size.
    if not all(type(size) is int and size >= 0 for size in sizes) or not (
        len(sizes) == 1 or (len(sizes) == 2 and sizes[1] == 1)
    ):
        raise bad("expected the shape [rows] or [rows, 1]")
    size = _mapping(tensor, "parameters").get("binary_data_size")
    rows = _inline(tensor, modality) if size is None else _binary(rest, size)
    if len(rows) != sizes[0]:
        raise bad(f"the shape says {sizes[0]} rows and the data holds {len(rows)}")
    return rows


def _inline(tensor: Mapping[str, Any], modality: str) -> list[str | bytes]:
    """Values in the JSON: texts as they are, pictures and sounds in base64."""
    data = tensor.get("data")
    if not isinstance(data, list):
        raise bad("expected 'data' to be a list")
    flat = [cell for value in data for cell in (value if isinstance(value, list) else [value])]
    for row, value in enumerate(flat):
        if not isinstance(value, str):
            raise bad(f"row {row}: expected a string")
    return flat if modality == "text" else [from_base64(value, row) for row, value in enumerate(flat)]


def _binary(rest: bytes, size: Any) -> list[str | bytes]:
    """Values behind the JSON: each its length in four bytes, little-endian, and itself."""
    if type(size) is not int or size != len(rest):
        raise bad(f"expected binary_data_size to be the {len(rest)} bytes that follow the JSON")
    rows: list[str | bytes] = []
    at = 0
    while at < len(rest):
        if at + 4 > len(rest):
            raise bad("the binary data is cut short")
        (length,) = struct.unpack_from("<I", rest, at)
        at += 4
        if at + length > len(rest):
            raise bad("the binary data is cut short")
        rows.append(rest[at : at + length])
        at += length
    return rows


def suffix(task: str) -> str:
    """What the names of a task's outputs end in; nothing where there is just one task."""
    return f"_{task}" if task else ""


def metadata(name: str, version: str, modality: str, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """A model's metadata: its input, its outputs, and in `parameters` the labels of its tasks."""
    outputs = []
    for task_name, task in tasks.items():
        numbers = task.name == "regression"
        width = [task.outputs] if numbers and task.outputs > 1 else []
        kind = "FP32" if numbers else "BYTES"
        outputs.append({"name": f"prediction{suffix(task_name)}", "datatype": kind, "shape": [-1, *width]})
        outputs.append({"name": f"scores{suffix(task_name)}", "datatype": "FP32", "shape": [-1, task.outputs]})
    described = {task_name or "": {"task": task.name, "labels": list(task.labels)} for task_name, task in tasks.items()}
    return {
        "name": name,
        "versions": [version],
        "platform": "headstart",
        "inputs": [{"name": modality, "datatype": "BYTES", "shape": [-1]}],
        "outputs": outputs,
        "parameters": described[""] if list(described) == [""] else {"tasks": described},
    }


def tensors(task_name: str, task: Task, scores: np.ndarray) -> list[Tensor]:
    """The outputs of one task from its scores (rows,K)."""
    rows = len(scores)
    values = np.ascontiguousarray(scores, dtype="<f4")
    named = suffix(task_name)
    if task.name == "regression":
        shape = [rows] if task.outputs == 1 else [rows, task.outputs]
        first: Tensor = (f"prediction{named}", "FP32", shape, values)
    else:
        answers = task.decode(scores).prediction
        texts = ["|".join(answer) if isinstance(answer, list) else str(answer) for answer in answers]
        first = (f"prediction{named}", "BYTES", [rows], texts)
    return [first, (f"scores{named}", "FP32", [rows, task.outputs], values)]


def write(name: str, version: str, asked: Asked, identity: str, made: Sequence[Tensor]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference response. Raises Refused for an output that the model does not have."""
    known = {tensor[0]: tensor for tensor in made}
    wanted = asked.outputs if asked.outputs is not None else dict.fromkeys(known, asked.binary)
    outputs: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    for output, binary in wanted.items():
        if output not in known:
            raise bad(f"there is no output of that name; the model has {', '.join(known)}")
        _, datatype, shape, values = known[output]
        entry: dict[str, Any] = {"name": output, "datatype": datatype, "shape": shape}
        if binary:
            pieces.append(_packed(values))
            entry["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            entry["data"] = values.ravel().tolist() if isinstance(values, np.ndarray) else values
        outputs.append(entry)
    record = {"model_name": name, "model_version": version, "id": asked.id or identity, "outputs": outputs}
    head = orjson.dumps(record)
    if not pieces:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", BINARY: str(len(head))}
    return b"".join([head, *pieces]), headers


def _packed(values: list[Any] | np.ndarray) -> bytes:
    if isinstance(values, np.ndarray):
        return values.tobytes()
    return b"".join(struct.pack("<I", len(raw)) + raw for raw in (str(value).encode() for value in values))
