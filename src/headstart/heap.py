"""What the command line's process asks of its libraries: what memory to keep, when to look for more, how to wait."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

HELD = {-1: 256 * 2**20, -3: 32 * 2**20}
"""Options of glibc's `mallopt` (malloc.h) in bytes: what is kept free at the end of the heap (M_TRIM_THRESHOLD), and
the size of a block from which it stands outside of the heap (M_MMAP_THRESHOLD, here at the most that it takes)."""

ROUNDS = (50_000, 20, 20)
"""For `gc.set_threshold`: new objects until Python looks for cycles among them, and rounds until it looks at older
ones. Libraries make a million objects that stay, and with Python's own 700 and 10 looking at them again and again was
seen to take 1.3 of 25 seconds."""

KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
"""The variable by which oneDNN is told how many kernels to keep, and how many for rows of text: of 1,024, as it comes,
batches of many lengths fill the most, at a quarter of a megabyte each. A step over texts of one length takes about
fifteen, and making them anew was not seen to take time; a network of convolutions takes hundreds, and it was."""

HANDLES = ("LRU_CACHE_CAPACITY", "64")
"""The same for torch's own list in front of that, which holds on to kernels that oneDNN lets go. What is on one list
alone is found at once, so the shorter one costs nothing. It is read when torch is imported."""

SPINS = ("GOMP_SPINCOUNT", "1000")
"""The variable by which GNU's OpenMP, with which torch comes on Linux, is told how often a thread that waits for others
looks before it sleeps: 300,000 times as it comes, and this often where threads are more than cores. It cannot know of
other programs: where one of them took one of two cores, steps on two threads were seen to take 23 to 36 times as long
as on one, and so 1.2 to 1.3 times; where none did, 3 to 10 % longer than as it comes."""

SAID = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Beginnings of variables by which the environment says what allocates and how."""

_settled = False


def wait_briefly() -> None:
    """Let threads sleep soon while they wait for others, unless the environment says how. Before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*SPINS)


def settle() -> None:
    """How this process is to deal with memory from now on. To be called before torch is imported."""
    global _settled
    _settled = True
    os.environ.setdefault(*HANDLES)
    gc.set_threshold(*ROUNDS)
    hold()


def hold() -> bool:
    """Let this process keep what it frees; whether it does. Not where the environment has said, nor without glibc.

    Passes on a processor free megabytes at every step, and whatever was given back to the system comes anew page by
    page: frozen passes over short texts were seen to take 8 % longer, attention over long ones more than twice as long.
    """
    if sys.platform != "linux" or any(name.startswith(SAID) for name in os.environ):
        return False
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    return adjust is not None and all([adjust(option, size) for option, size in HELD.items()])


def few_kernels() -> None:
    """Let this process keep few kernels for products, if it settled, none was made yet and nobody said how many."""
    if _settled:
        os.environ.setdefault(*KERNELS)


def give_back() -> None:
    """Return memory that is free to the system, which glibc keeps otherwise; elsewhere nothing is done."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
