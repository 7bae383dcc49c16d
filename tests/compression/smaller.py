"""Texts that the tests of smaller models share."""

from __future__ import annotations

TEXTS = ["where is my parcel", "cancel it", "my refund has not come back yet, please help me now", "parcel", "order"]
KINDS = {"track": "where is my parcel", "cancel": "cancel my order", "refund": "i want a refund"}
WORDS = ("now", "please", "again", "today", "help")
