"""`python -m headstart.examples`: write example data, or look at a file of predictions.

python -m headstart.examples digits OUT [--per-class N]   UCI digits as folders of pictures
python -m headstart.examples show PREDICTIONS.csv         the predictions as a few lines of text
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from headstart.errors import DataError, HeadstartError
from headstart.examples import write_digits

_WIDTH = 72


def show(file: str | Path, rows: int = 12) -> list[str]:
    """One line a row of a `predict` output: prediction, its probability, the start of the text.

    Raises DataError when the file cannot be read or has no `prediction` column.
    """
    try:
        with open(file, newline="", encoding="utf-8") as handle:
            table = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the predictions '{file}': {error}") from None
    if not table or "prediction" not in table[0]:
        raise DataError(f"expected a table with a column 'prediction' in '{file}': give what `headstart predict` wrote")
    wide = max(len(row["prediction"]) for row in table[:rows])
    return [_line(row, wide) for row in table[:rows]]


def _line(row: dict[str, str], wide: int) -> str:
    answer = row["prediction"]
    share = row.get(f"probability_{answer}", "")
    sure = f"{float(share):4.0%}" if share else ""
    text = next(iter(row.values()))
    text = text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
    return f"{answer:<{wide}}  {sure}  {text}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m headstart.examples", description="Example data of headstart.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    digits = verbs.add_parser("digits", help="write the UCI digits as folders of pictures")
    digits.add_argument("out", type=Path)
    digits.add_argument("--per-class", type=int, default=None, help="training pictures of each digit (default: all)")
    shown = verbs.add_parser("show", help="print the first rows of a predictions file")
    shown.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.verb == "digits":
            print(f"wrote {write_digits(given.out, given.per_class)}/train and {given.out}/test")
        else:
            print("\n".join(show(given.file)))
    except HeadstartError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
