"""What a client is told when a request is not answered: a status and one sentence, never a path or a stack trace."""

from __future__ import annotations

from collections.abc import Mapping


class Refused(Exception):
    """A request that is not answered. status: of HTTP; sentence: for the client; headers: sent along."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


class Busy(Refused):
    """The queue is full: come back in `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(
            429,
            f"too many rows are waiting; try again in {seconds} second{'s' if seconds > 1 else ''}",
            {"Retry-After": str(seconds)},
        )


class TooLarge(Refused):
    """A request beyond a limit."""

    def __init__(self, sentence: str) -> None:
        super().__init__(413, sentence)


def bad(sentence: str) -> Refused:
    """A request that cannot be understood."""
    return Refused(400, sentence)
