"""How much one request, and all that wait, may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from headstart.errors import SpecError

_COST: Mapping[str, int] = {"text": 16_384, "audio": 4_000_000}
_UNBOUNDED = 1 << 40


@dataclass(frozen=True)
class Limits:
    """What is refused before anything is spent on it.

    body_bytes and rows: of a request. characters: of one text. pixels: of one picture. seconds: of one sound.
    queue_rows: rows that wait, per model; more are answered with 429. timeout: seconds until a request is given up.
    batch_rows: rows that the network sees at once. delay_ms: how long rows may wait for company when it is idle.
    """

    body_bytes: int = 32 * 2**20
    rows: int = 256
    characters: int = 50_000
    pixels: int = 25_000_000
    seconds: float = 120.0
    queue_rows: int = 512
    timeout: float = 30.0
    batch_rows: int = 32
    delay_ms: float = 3.0

    def __post_init__(self) -> None:
        """Raises SpecError for a limit that lets nothing through."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0 and not (field.name == "delay_ms" and value == 0):
                raise SpecError(f"expected {field.name} above 0, received {value}")
        if self.queue_rows < self.rows:
            raise SpecError(
                f"queue_rows ({self.queue_rows}) is below rows ({self.rows}): a request of that size could never wait; "
                f"raise queue_rows or lower rows"
            )

    @staticmethod
    def batch_cost(modality: str) -> int:
        """What a batch may cost at most, padding included: tokens of text, samples of sound; pictures count by rows."""
        return _COST.get(modality, _UNBOUNDED)
