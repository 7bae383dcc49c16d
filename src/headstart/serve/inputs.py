"""What clients send, made into rows that a bundle takes. Nothing that a request names is ever opened.

The modalities of Headstart read a string as the path of a picture or sound. Here the only strings that pass are texts
for text models; pictures and sounds must arrive as bytes.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headstart.serve.limits import Limits
from headstart.serve.refusals import Refused, TooLarge, bad

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats of pictures that are read; Pillow's rarer readers are not offered to strangers."""

NOUN = {"text": "a text", "image": "a picture", "audio": "a sound"}


def parse(body: bytes) -> Any:
    """JSON. Raises Refused for what is not, and for the numbers NaN and Infinity, which JSON does not have."""

    def no(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(body, parse_constant=no)
    except RecursionError:
        raise bad("the JSON is nested too deeply") from None
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise bad(f"the body is not valid JSON{where}") from None


def parse_lines(body: bytes) -> list[Any]:
    """One JSON value a line; empty lines are passed over. Raises Refused naming the line."""
    found = []
    for number, line in enumerate(body.splitlines(), 1):
        if line.strip():
            try:
                found.append(parse(line))
            except Refused:
                raise bad(f"line {number} is not valid JSON") from None
    return found


def check(modality: str, values: Sequence[Any], limits: Limits) -> list[str | bytes]:
    """Rows that the model may see: texts, or the bytes of pictures or sounds.

    Raises Refused naming the row for a value of another kind, one that is empty or one beyond a limit.
    """
    if not values:
        raise bad(f"expected at least one row, received none; send {NOUN.get(modality, 'a row')}")
    if len(values) > limits.rows:
        raise TooLarge(f"{len(values)} rows in one request, more than the {limits.rows} allowed; send them in parts")
    readers: dict[str, Callable[[Any, int, Limits], str | bytes]] = {"text": _text, "image": _picture, "audio": _sound}
    one = readers.get(modality)
    if one is None:
        raise Refused(501, f"models that read {modality} cannot be asked over HTTP yet")
    return [one(value, row, limits) for row, value in enumerate(values)]


def unwrap(modality: str, column: str, values: Sequence[Any]) -> list[Any]:
    """Rows as clients write them: a text or {column: text}; of pictures and sounds {"b64": ...}, also in a column.

    Raises Refused naming the row for anything else.
    """
    return [_unwrapped(modality, column, value, row) for row, value in enumerate(values)]


def _unwrapped(modality: str, column: str, value: Any, row: int) -> Any:
    if isinstance(value, Mapping) and not (modality != "text" and "b64" in value):
        for name in (column, modality):
            if name in value:
                value = value[name]
                break
        else:
            raise bad(f"row {row}: expected an object with '{column}', received {_names(value)}")
    if modality == "text":
        return value
    if isinstance(value, Mapping) and isinstance(value.get("b64"), str):
        return from_base64(value["b64"], row)
    raise bad(
        f'row {row}: expected {NOUN.get(modality, "a row")} as {{"b64": "..."}}, its bytes in base64; '
        f"paths and addresses are not opened"
    )


def _names(value: Mapping[str, Any]) -> str:
    # JSON can spell halves of characters, an answer cannot.
    names = [str(name)[:40].encode("utf-8", "replace").decode() for name in list(value)[:5]]
    return f"one with {', '.join(names)}" if names else "an empty one"


def from_base64(text: str | bytes, row: int) -> bytes:
    """Bytes from base64. Raises Refused naming the row."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise bad(f"row {row}: expected base64; paths and addresses are not opened") from None


def _text(value: Any, row: int, limits: Limits) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise bad(f"row {row}: the text is not valid UTF-8") from None
    if not isinstance(value, str):
        raise bad(f"row {row}: expected a text, received {_kind(value)}")
    if len(value) > limits.characters:
        raise TooLarge(f"row {row}: {len(value)} characters, more than the {limits.characters} allowed")
    if not value.strip():
        raise bad(f"row {row}: the text is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise bad(f"row {row}: the text is not valid Unicode") from None
    return value


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else "a list")


def _bytes(value: Any, row: int, what: str) -> bytes:
    if not isinstance(value, bytes):
        raise bad(f"row {row}: expected the bytes of {what}, received {_kind(value)}; paths are not opened")
    if not value:
        raise bad(f"row {row}: {what} without any bytes")
    return value


def _picture(value: Any, row: int, limits: Limits) -> bytes:
    """Its header is read to know its size before its pixels are; damage inside is found when it is decoded."""
    from PIL import Image

    data = _bytes(value, row, "a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=PICTURES) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        raise TooLarge(f"row {row}: a picture of more than the {limits.pixels} pixels allowed") from None
    except Exception:  # Pillow's readers raise whatever the bytes lead them to
        raise bad(f"row {row}: not a picture that can be read; expected {', '.join(PICTURES)}") from None
    if width * height > limits.pixels:
        raise TooLarge(f"row {row}: {width} x {height} pixels, more than the {limits.pixels} allowed")
    return data


def _sound(value: Any, row: int, limits: Limits) -> bytes:
    """Its header is read to know its length before its samples are."""
    import soundfile

    data = _bytes(value, row, "a sound")
    try:
        found = soundfile.info(io.BytesIO(data))
        seconds, channels = found.frames / found.samplerate, found.channels
    except Exception:  # the C library answers damage with several kinds of error
        raise bad(f"row {row}: not a sound that can be read") from None
    if seconds > limits.seconds:
        raise TooLarge(f"row {row}: {seconds:.0f} seconds of sound, more than the {limits.seconds:g} allowed")
    if channels > 8:
        raise TooLarge(f"row {row}: {channels} channels of sound, more than the 8 allowed")
    return data
