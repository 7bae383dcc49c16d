"""One line of JSON an event on standard error, without what clients sent unless that is asked for."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Log:
    """content: whether inputs and the messages of unexpected errors, which may quote them, are written too."""

    def __init__(self, *, content: bool = False, write: Callable[[str], None] = _print) -> None:
        self.content, self._write = content, write

    def say(self, event: str, **values: Any) -> None:
        """One event; values that are None are left out."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"time": stamp, "event": event, **{name: value for name, value in values.items() if value is not None}}
        self._write(json.dumps(record, ensure_ascii=False, default=str))

    def failure(self, error: BaseException, **values: Any) -> None:
        """An error that nobody expected: its kind and where it happened."""
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
        message = str(error) if self.content else None
        self.say("error", **values, kind=type(error).__name__, message=message, at=places)
