"""Files of rows about three intents, for tests that need several of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from sample_texts import TICKETS

EXTRA = ("please", "today", "help", "still", "the", "week", "two", "three", "one", "blue")


def write_rows(path: Path, words: tuple[str, ...], rename: Callable[[str], str] = lambda label: label) -> Path:
    """4 texts of each of 3 intents for every word, with a channel: chat for login, else email."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "intent", "channel"])
        for word in words:
            for intent, texts in TICKETS.items():
                for text in texts:
                    writer.writerow([f"{text} {word}", rename(intent), "chat" if intent == "login" else "email"])
    return path
