"""Words for counts."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """'1 row', '2 rows', '2 classes', '2 copies'."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{count} {noun[:-1]}ies"
    return f"{count} {noun}{'es' if noun.endswith(('s', 'x', 'ch')) else 's'}"
