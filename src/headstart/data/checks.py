"""Checks on rows that can be used, before anything is spent on them. All work on hashes, in O(n) memory and time.

Codes of the findings: encoding, label-spelling, one-class, class-missing-in-split, duplicates, leakage,
conflicting-labels, imbalance, tiny, sizes. Row numbers count from 1 below the header; a finding lists at most
`MOST_ROWS` of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.data.labels import classes_of
from headstart.data.words import counted
from headstart.values import Finding

IMBALANCE_RATIO = 10
MOST_ROWS = 1000
TINY_ROWS = 50
FEW_TEST_ROWS = 100
WORDS = {"text": "text", "image": "picture", "audio": "sound"}
"""What a row of a modality is called."""


@dataclass(frozen=True)
class Rows:
    """The usable rows of one part, as the checks see them: all (n,), labels decoded, numbers from 1."""

    name: str
    numbers: np.ndarray
    keys: np.ndarray
    sizes: np.ndarray
    labels: list[Any]
    garbled: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def finding(self, level: str, code: str, message: str, mask: np.ndarray) -> Finding:
        """A finding about the rows where mask (n,) is true."""
        return Finding(level, code, message, tuple(int(row) for row in self.numbers[mask][:MOST_ROWS]))


def check(train: Rows, others: Sequence[Rows], task: str, modality: str) -> list[Finding]:
    """Everything that is worth knowing about the parts together, errors first."""
    parts = [train, *others]
    found = [*one_class(train, task), *missing_classes(train, others, task)]
    found += spelling(parts, task)
    found += [finding for part in parts for finding in encoding(part)]
    found += [finding for part in parts for finding in duplicates(part, modality)]
    for place, part in enumerate(others):
        found += leakage(parts[: place + 1], part, modality)
    found += conflicts(train, modality)
    found += imbalance(train, task)
    found += tiny(parts, task)
    found += [sizes(part, modality) for part in parts if len(part)]
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda finding: order[finding.level])


def _counts(rows: Rows, task: str) -> Counter[str]:
    return Counter(name for label in rows.labels for name in classes_of(label, task))


def one_class(train: Rows, task: str) -> list[Finding]:
    """All labels equal: there is nothing to tell apart."""
    if len({_hashable(label) for label in train.labels}) > 1:
        return []
    label = train.labels[0] if train.labels else None
    what = f"the same label ('{label}')" if task == "classification" else f"the same labels ({label})"
    if task == "regression":
        what = f"the same target ({label})"
    rows = counted(len(train), "training row")
    return [Finding("error", "one-class", f"all of {rows} have {what}: add rows with another")]


def _hashable(label: Any) -> Any:
    return tuple(label) if isinstance(label, list) else label


def missing_classes(train: Rows, others: Sequence[Rows], task: str) -> list[Finding]:
    """Classes that a held-out part has and training lacks (an error), or the other way round in the test part."""
    if task not in ("classification", "multilabel"):
        return []
    known = _counts(train, task)
    found = []
    for part in others:
        counts = _counts(part, task)
        unknown = sorted(set(counts) - set(known))
        if unknown:
            rows = np.array([not known.keys() >= set(classes_of(label, task)) for label in part.labels])
            found.append(part.finding("error", "class-missing-in-split", _unknown(part, unknown, counts, known), rows))
        absent = sorted(set(known) - set(counts))
        if absent and part.name == "test":
            message = f"no test row has {counted(len(absent), 'class')} of the training rows: {_named(absent)}"
            found.append(Finding("warning", "class-missing-in-split", message))
    return found


def _unknown(part: Rows, unknown: list[str], counts: Mapping[str, int], known: Mapping[str, int]) -> str:
    rows = sum(counts[name] for name in unknown)
    close = {" ".join(name.casefold().split()): name for name in known}
    hint = next((f"; is '{name}' meant to be '{close[plain]}'?" for name in unknown
                 if (plain := " ".join(name.casefold().split())) in close), "")  # fmt: skip
    return (
        f"in {counted(rows, f'{part.name} row')} there is a label that no training row has: "
        f"{_named(unknown)}{hint}; add training rows with it, or leave those rows out with --on-bad-row skip"
    )


def _named(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def spelling(parts: Sequence[Rows], task: str) -> list[Finding]:
    """Labels that differ only by case or white space."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(_counts(part, task))
    groups: dict[str, list[str]] = {}
    for name in sorted(counts):
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    if not alike:
        return []
    shown = [" and ".join(f"'{name}' ({counted(counts[name], 'row')})" for name in names) for names in alike[:5]]
    message = f"labels that differ only by case or space count as different: {'; '.join(shown)}; write them in one way"
    return [Finding("warning", "label-spelling", message)]


def encoding(part: Rows) -> list[Finding]:
    """Texts that were decoded wrongly at some time."""
    if not part.garbled.any():
        return []
    message = (
        f"{counted(int(part.garbled.sum()), f'{part.name} text')} with signs of another encoding, like 'Ã©' for 'é': "
        f"check --set data.encoding, or how the file was made"
    )
    return [part.finding("warning", "encoding", message, part.garbled)]


def duplicates(part: Rows, modality: str) -> list[Finding]:
    """Rows whose input came before in the same part."""
    again = _again(part.keys)
    if not again.any():
        return []
    what = "text (but for case and space)" if modality == "text" else WORDS[modality]
    message = f"in {int(again.sum())} of {len(part)} {part.name} rows the {what} repeats that of an earlier row"
    return [part.finding("warning", "duplicates", message, again)]


def _again(keys: np.ndarray) -> np.ndarray:
    mask = np.ones(len(keys), bool)
    mask[np.unique(keys, return_index=True)[1]] = False
    return mask


def leakage(earlier: Sequence[Rows], part: Rows, modality: str) -> list[Finding]:
    """Rows of a held-out part whose input also stands in an earlier part."""
    leaked = np.zeros(len(part), bool)
    places = []
    for other in earlier:
        new = np.isin(part.keys, other.keys) & ~leaked
        if new.any():
            places.append(f"{int(new.sum())} in the {other.name} rows")
            leaked |= new
    if not places:
        return []
    what = f"{WORDS[modality]}s"
    message = (
        f"{int(leaked.sum())} of {len(part)} {part.name} {what} also stand in earlier parts ({', '.join(places)}): "
        f"scores on them flatter the model"
    )
    return [part.finding("warning", "leakage", message, leaked)]


def conflicts(train: Rows, modality: str) -> list[Finding]:
    """Equal inputs with different labels."""
    order = np.argsort(train.keys, kind="stable")
    ends = np.flatnonzero(np.diff(train.keys[order])) + 1
    mask = np.zeros(len(train), bool)
    groups = 0
    for group in np.split(order, ends) if len(ends) + 1 < len(order) else ():
        if len(group) > 1 and len({_hashable(train.labels[row]) for row in group}) > 1:
            mask[group] = True
            groups += 1
    if not groups:
        return []
    what = WORDS[modality]
    message = (
        f"{counted(groups, what)} {'stands' if groups == 1 else 'stand'} in the training rows with different labels "
        f"({counted(int(mask.sum()), 'row')}): keep the right label of each"
    )
    return [train.finding("warning", "conflicting-labels", message, mask)]


def imbalance(train: Rows, task: str) -> list[Finding]:
    """One class much larger than another."""
    counts = _counts(train, task)
    if len(counts) < 2:
        return []
    (most, high), *_, (least, low) = counts.most_common()
    if high <= IMBALANCE_RATIO * low:
        return []
    message = (
        f"the class '{most}' has {high} training rows and '{least}' has {low}: look at macro-F1 beside accuracy, "
        f"and try --set task.class_weights=balanced"
    )
    return [Finding("warning", "imbalance", message)]


def tiny(parts: Sequence[Rows], task: str) -> list[Finding]:
    """Few rows to learn from, or to measure on."""
    found = []
    for part in parts:
        if part.name == "train" and len(part) < TINY_ROWS:
            message = f"there are only {counted(len(part), 'training row')}: expect large differences between seeds"
            found.append(Finding("warning", "tiny", message))
        if part.name == "test" and 0 < len(part) < FEW_TEST_ROWS:
            message = f"there are only {counted(len(part), 'test row')}: intervals around the scores will be wide"
            found.append(Finding("warning", "tiny", message))
    return found


def sizes(part: Rows, modality: str) -> Finding:
    """How large the inputs are."""
    middle, high = int(np.median(part.sizes)), int(part.sizes.max())
    if modality == "text":
        message = f"{part.name} texts have {middle} characters at the median and {high} at most"
    elif modality == "audio":
        low, total = int(part.sizes.min()), int(part.sizes.sum())
        message = (
            f"{part.name} sounds last {middle / 1000:.1f} s at the median, from {low / 1000:.1f} to "
            f"{high / 1000:.1f} s, {total / 60_000:.1f} minutes in all"
        )
    else:
        low, middle, high = (round(pixels**0.5) for pixels in (int(part.sizes.min()), middle, high))
        message = (
            f"{part.name} pictures have as many pixels as a square of {middle} x {middle} at the median, "
            f"from {low} x {low} to {high} x {high}"
        )
    return Finding("note", "sizes", message)
