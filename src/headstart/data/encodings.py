"""Bytes to text: which encoding a file is in, and what to say when it is not the one that was asked for."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from headstart.errors import DataError, did_you_mean

COMMON = ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1", "ascii", "cp1250", "cp1251", "gb18030",
          "shift_jis", "big5", "euc-kr")  # fmt: skip
_SAMPLE = 1 << 16
_MAGIC = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; save the sheet as csv",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as csv",
    b"PAR1": "a parquet file; rename it to end in .parquet",
    b"ARROW1": "an Arrow file; rename it to end in .arrow",
    b"\x1f\x8b": "compressed with gzip; rename it to end in .gz",
    b"%PDF": "a PDF document; extract its rows to csv first",
    b"\x89PNG": "a picture; give a folder of pictures, or a table with their paths",
    b"\xff\xd8\xff": "a picture; give a folder of pictures, or a table with their paths",
    b"RIFF": "a sound; give a folder of sounds, or a table with their paths",
    b"fLaC": "a sound; give a folder of sounds, or a table with their paths",
    b"OggS": "a sound; give a folder of sounds, or a table with their paths",
}


def open_bytes(path: Path) -> IO[bytes] | gzip.GzipFile:
    """The file's bytes, unpacked where the name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a text file with their line ends; a byte order mark is left out.

    Raises DataError for an unknown encoding, bytes that are not in it (with the encoding to try), a null byte, or a
    damaged gzip file.
    """
    name = codec(encoding)
    _refuse_other_kinds(path)
    try:
        with open_bytes(path) as raw, io.TextIOWrapper(raw, encoding=name, newline="") as text:
            for number, line in enumerate(text, 1):
                if "\0" in line:
                    raise DataError(_null_byte(path, number, encoding))
                yield line
    except UnicodeDecodeError:
        raise DataError(_wrong_encoding(path, encoding)) from None
    except UnicodeError as error:  # utf-16 without a byte order mark, for one
        raise DataError(f"'{path}' is not {encoding}: {error}; {_advice(path)}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' is not a whole gzip file ({error}); copy or download it again") from None


def codec(encoding: str) -> str:
    """The codec's own name; utf-8 skips a byte order mark. Raises DataError for a name that Python does not know."""
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)
    except LookupError:
        raise DataError(f"no encoding is called '{encoding}': {did_you_mean(encoding.lower(), COMMON)}") from None
    return "utf-8-sig" if name == "utf-8" else name


def guess(sample: bytes) -> str:
    """The encoding that a sample of bytes suggests."""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if sample.count(0) > len(sample) // 5:
        return "utf-16-le" if sample[1::2].count(0) > sample[::2].count(0) else "utf-16-be"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        sample.decode("cp1252")
        return "cp1252"
    except UnicodeDecodeError:
        return "latin-1"


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as raw:
        start = raw.read(8)
    for magic, kind in _MAGIC.items():
        if start.startswith(magic) and not (magic == b"\x1f\x8b" and path.suffix.lower() == ".gz"):
            raise DataError(f"'{path}' was expected to be text, but it is {kind}")


def _wrong_encoding(path: Path, encoding: str) -> str:
    """A sentence that names the first line that cannot be decoded and the encoding that can."""
    decoder = codecs.getincrementaldecoder(codec(encoding))()
    number = 0
    with open_bytes(path) as raw:
        for number, line in enumerate(raw, 1):
            try:
                decoder.decode(line)
            except UnicodeDecodeError as error:
                byte = f"0x{error.object[error.start]:02x}"
                return f"line {number} of '{path}' is not {encoding} (byte {byte}); {_advice(path, line)}"
    return f"'{path}' ends in the middle of a character of {encoding} (line {number}); {_advice(path)}"


def _advice(path: Path, line: bytes = b"") -> str:
    with open_bytes(path) as raw:
        sample = raw.read(_SAMPLE)
    found = guess(sample)
    if line and not found.startswith("utf-16"):
        found = guess(line)
    shown = ""
    if line and found in ("cp1252", "latin-1"):
        shown = f" (the line then reads '{line.decode(found).strip()[:60]}')"
    return f"try --set data.encoding={found}{shown}"


def _null_byte(path: Path, number: int, encoding: str) -> str:
    with open_bytes(path) as raw:
        found = guess(raw.read(_SAMPLE))
    if found.startswith("utf-16"):
        return f"'{path}' is not {encoding}: every other byte is null; try --set data.encoding={found}"
    return f"line {number} of '{path}' holds a null byte, which no text has: the file is damaged, save or copy it again"


def is_empty(path: Path) -> bool:
    """Whether a file holds nothing but white space in its first kilobytes."""
    if os.path.getsize(path) == 0:
        return True
    try:
        with open_bytes(path) as raw:
            start = raw.read(_SAMPLE)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return False
    return not start.removeprefix(codecs.BOM_UTF8).strip()
