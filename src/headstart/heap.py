"""What a process does with memory that it has freed: keeps some of it, for passes of networks ask for it again."""

from __future__ import annotations

import ctypes
import os
import sys

HELD = {-1: 256 * 2**20, -3: 32 * 2**20}
"""Options of glibc's `mallopt` (malloc.h) in bytes: what is kept free at the end of the heap (M_TRIM_THRESHOLD), and
the size of a block from which it stands outside of the heap (M_MMAP_THRESHOLD, here at the most that it takes)."""

SAID = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Beginnings of variables by which the environment says what allocates and how."""


def hold() -> bool:
    """Let this process keep what it frees; whether it does. Not where the environment has said, nor without glibc.

    Passes on a processor free megabytes at every step, and whatever was given back to the system comes anew page by
    page: frozen passes over short texts were seen to take 8 % longer, attention over long ones more than twice as long.
    """
    if sys.platform != "linux" or any(name.startswith(SAID) for name in os.environ):
        return False
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    return adjust is not None and all([adjust(option, size) for option, size in HELD.items()])
