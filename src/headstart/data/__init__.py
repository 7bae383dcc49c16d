"""Rows: reading them from any common format, checking them, dividing them, batching them.

`load(spec)` gives checked parts for a run; `load_unlabelled` and `load_labelled` give rows for a finished model;
the `_from_memory` cousins take lists, arrays and data frames. Tables stay on disk, memory-mapped.
"""

from headstart.data.batches import by_budget, by_length, by_pairs, by_task
from headstart.data.columns import Columns, infer
from headstart.data.fresh import input_keys, load_labelled, load_unlabelled
from headstart.data.memory import from_memory, labelled_from_memory, unlabelled_from_memory
from headstart.data.parts import Data, Inputs, Part
from headstart.data.read import Table, read
from headstart.data.rows import load
from headstart.data.several import apart, load_rows
from headstart.data.write import FORMATS, check_output, write_table

__all__ = [
    "FORMATS",
    "Columns",
    "Data",
    "Inputs",
    "Part",
    "Table",
    "apart",
    "by_budget",
    "by_length",
    "by_pairs",
    "by_task",
    "check_output",
    "from_memory",
    "infer",
    "input_keys",
    "labelled_from_memory",
    "load",
    "load_labelled",
    "load_rows",
    "load_unlabelled",
    "read",
    "unlabelled_from_memory",
    "write_table",
]
