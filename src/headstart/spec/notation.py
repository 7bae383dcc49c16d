"""How single values are written on the command line and in files, and read again."""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any

from headstart.errors import SpecError


def parse_value(text: str) -> Any:
    """A TOML value (`3`, `0.1`, `true`, `[1, 2]`, `"a b"`), else the text itself."""
    text = text.strip()
    if text.lower() in ("none", "null"):
        return None
    try:
        value = tomllib.loads(f"v = {text}")["v"]
        # TOML also reads dates, and a line break would end the value.
        return value if isinstance(value, bool | int | float | str | list | dict) and "\n" not in text else text
    except tomllib.TOMLDecodeError:
        lowered = text.lower()
        if lowered in ("true", "false"):
            return lowered == "true"
        try:
            return float(text)
        except ValueError:
            return text


def parse_duration(text: str) -> float:
    """Seconds from '90', '90s', '10m', '1.5h'. Raises SpecError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h)?\s*", text)
    if not match:
        raise SpecError(f"expected a duration such as 90s, 10m or 1.5h, received '{text}'")
    return float(match[1]) * {None: 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_size(text: str) -> int:
    """Bytes from '500MB', '2GB', '1.5 GiB'. Raises SpecError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(i?)b\s*", text.lower())
    if not match:
        raise SpecError(f"expected a size such as 500MB or 2GB, received '{text}'")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** ("kmgt".index(match[2]) + 1))


def parse_gate(gate: str | float) -> float:
    """A loss such as 0.5% or 0.005 as a number. Raises SpecError for anything but one from 0 to below 1."""
    text = str(gate).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise SpecError(f"expected a gate from 0 to 1 or a percentage, such as 0.5% or 0.005, received '{gate}'")
    return value


def split_commas(text: str) -> list[str]:
    """Split at commas outside brackets and quotes. A quote opens at the start of a value only: `it's` has none."""
    parts, start, depth, quote, before = [], 0, 0, "", ","
    for place, mark in enumerate(text):
        if quote:
            if mark == quote and not (before == "\\" and quote == '"'):
                quote = ""
        elif mark in "\"'" and before in ",=[{":
            quote = mark
        elif mark in "[{]}":
            depth += 1 if mark in "[{" else -1
        elif mark == "," and depth <= 0:
            parts.append(text[start:place])
            start = place + 1
        # A backslash that is itself escaped escapes nothing.
        before = "" if before == mark == "\\" else before if mark == " " and not quote else mark
    return [*parts, text[start:]]


def written(value: Any) -> str:
    """The text from which `parse_value` makes an equal value."""
    if isinstance(value, str):
        # TOML wants every control character escaped; JSON leaves this one.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{written(key)} = {written(item)}' for key, item in value.items())}}}"
    return json.dumps(value)
