"""Which columns hold the input and the labels, and what kind of task that makes: inferred, and said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.facts import Facts, commonest_separator, facts, numbers_in, sample, separator_in, text_of
from headstart.data.folders import MEDIA
from headstart.data.read import Table
from headstart.errors import DataError, SpecError, did_you_mean
from headstart.spec import DataSpec, TaskSpec

TEXT_NAMES = (
    ("text", "sentence", "texts", "sentences"),
    ("content", "message", "review", "question", "utterance", "query", "tweet", "comment", "document", "body", "post",
     "email", "sms", "review_text", "review_body", "message_text"),
    ("title", "headline", "description", "subject", "summary", "prompt", "input", "phrase", "name"),
)  # fmt: skip
IMAGE_NAMES = (("image", "images", "picture", "photo", "img"), ("image_path", "path", "file", "filename", "file_name"))
AUDIO_NAMES = (("audio", "sound", "wav", "clip", "recording", "speech"), ("audio_path", *IMAGE_NAMES[1][1:]))
LABEL_NAMES = (
    ("label", "labels", "target", "targets", "class", "intent", "category"),
    ("sentiment", "emotion", "topic", "tag", "tags", "y", "genre", "categories", "intents", "polarity"),
    ("score", "rating", "stars", "value", "price", "grade"),
)
_PREFIXES = ("label_", "labels_", "target_", "class_")
_IDS = ("id", "idx", "index", "uuid", "guid", "row", "unnamed: 0", "", "__index_level_0__")
FEW_NUMBERS = 20
"""Whole numbers with at most this many different values are taken for classes."""


@dataclass(frozen=True)
class Columns:
    """What the columns mean.

    modality: 'text', 'image' or 'audio'. input: the input's column. labels: the label columns (one, or several).
    task: 'classification', 'multilabel' or 'regression'. said: one sentence for each thing that was inferred.
    separator: the mark between several labels of one cell.
    """

    modality: str
    input: str
    labels: tuple[str, ...]
    task: str
    said: tuple[str, ...] = ()
    separator: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as a bundle keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Columns:
        """The inverse of `to_json`."""
        return cls(**{**record, "labels": tuple(record["labels"]), "said": tuple(record.get("said", ()))})


def infer(table: Table, data: DataSpec, task: TaskSpec) -> Columns:
    """Decide input, labels and task: what the user named, else conventional names, else what the cells look like.

    Raises DataError naming the candidates and the flag to use where the choice is not clear, and for names that the
    file does not have; SpecError for an unknown task.
    """
    names = table.table.column_names
    asked = (data.label,) if isinstance(data.label, str) else tuple(data.label or ())
    named = {kind: name for kind in ("text", "image", "audio") if (name := getattr(data, kind))}
    for flag, name in (*named.items(), *(("label", label) for label in asked), ("data.group", data.group),
                       ("data.time", data.time)):  # fmt: skip
        if name is not None and name not in names:
            raise DataError(f"'{table.source}' has no column '{name}' (for {flag}): {did_you_mean(name, names)}")
    if len(named) > 1:
        both = " and ".join(
            f"{'a' if kind == 'text' else 'an'} {kind} column ('{name}')" for kind, name in named.items()
        )
        raise DataError(f"both {both} are named: name one")
    if len(set(asked)) != len(asked) or set(named.values()) & set(asked):
        raise DataError(f"the label columns ({', '.join(asked)}) must differ from each other and from the input column")
    seen = {name: facts(table.table, name) for name in names}
    said: list[str] = []
    taken = {*asked, data.group, data.time}
    modality, source = _input(table, data, {name: seen[name] for name in names if name not in taken}, said)
    free = {name: seen[name] for name in names if name not in (source, data.group, data.time)}
    labels = asked or _labels(table, free, said, modality)
    kind, separator = _task(table, labels, seen, data, task, said)
    return Columns(modality, source, labels, kind, tuple(said), separator)


def _conventional(names: list[str], tiers: tuple[tuple[str, ...], ...]) -> list[str]:
    """The columns with a name of the first tier that has any."""
    for tier in tiers:
        found = [name for name in names if name.strip().lower() in tier]
        if found:
            return found
    return []


def _input(table: Table, data: DataSpec, seen: Mapping[str, Facts], said: list[str]) -> tuple[str, str]:
    for kind in ("text", "image", "audio"):
        if getattr(data, kind):
            return kind, getattr(data, kind)
    files: list[tuple[str, str]] = []
    for kind, usual in (("image", IMAGE_NAMES), ("audio", AUDIO_NAMES)):
        found = [name for name, fact in seen.items() if fact.kind == kind]
        files += [(kind, name) for name in _conventional(found, usual) or found]
    wordy = [name for name, fact in seen.items() if fact.kind in ("text", "other", "number")]
    texts = _conventional(wordy, TEXT_NAMES[:2])
    if len(files) + len(texts) > 1:
        flags = [f"--{kind} {name}" for kind, name in files] + [f"--text {name}" for name in texts]
        raise DataError(f"several columns of '{table.source}' may be the input: say which with {_or(flags)}")
    if files:
        said.append(f"the input is the {files[0][0]} column '{files[0][1]}'")
        return files[0]
    if texts:
        said.append(f"the input is the text column '{texts[0]}', by its name")
        return "text", texts[0]
    return "text", _longest(table, seen, said)


def _longest(table: Table, seen: Mapping[str, Facts], said: list[str]) -> str:
    """The text column by what stands in it."""
    _refuse_headless(table)
    labels = _conventional(list(seen), LABEL_NAMES)
    words = [fact for name, fact in seen.items() if fact.kind == "text" and name not in labels and not _is_id(name)]
    named = _conventional([fact.name for fact in words], TEXT_NAMES)
    if len(named) == 1:
        said.append(f"the input is the text column '{named[0]}', by its name")
        return named[0]
    words.sort(key=lambda fact: -fact.mean_length)
    if not words:
        have = ", ".join(table.table.column_names)
        raise DataError(
            f"'{table.source}' has no column of texts, pictures or sounds (columns: {have}): "
            f"name it with --text COLUMN, --image COLUMN or --audio COLUMN"
        )
    if len(words) > 1 and (words[0].mean_length < 2 * words[1].mean_length or words[0].mean_length < 10):
        flags = _or([f"--text {fact.name}" for fact in words[:4]])
        raise DataError(f"several columns of '{table.source}' may be the text: say which with {flags}")
    said.append(f"the input is the text column '{words[0].name}', the one with the longest texts")
    return words[0].name


def _labels(table: Table, free: Mapping[str, Facts], said: list[str], modality: str) -> tuple[str, ...]:
    named = _conventional(list(free), LABEL_NAMES)
    if len(named) == 1:
        said.append(f"the label is column '{named[0]}', by its name")
        return (named[0],)
    if named:
        raise DataError(f"several columns of '{table.source}' may be the label: say which with {_or_labels(named)}")
    for prefix in _PREFIXES:
        counted = [name for name, fact in free.items() if fact.kind in ("number", "bool")]
        group = [name for name in counted if name.lower().startswith(prefix)]
        if len(group) > 1:
            said.append(f"the labels are the {len(group)} columns whose names start with '{prefix}'")
            return tuple(group)
    rest = [fact for name, fact in free.items() if not _is_id(name) and fact.kind not in ("image", "audio")]
    classes = [fact.name for fact in rest if fact.kind == "list" or (fact.repeats and fact.distinct > 1)]
    numbers = [fact.name for fact in rest if fact.numeric]
    found = classes or numbers
    if not found:
        _refuse_headless(table)
        for media in MEDIA:
            if table.format == media.format and modality == media.modality:
                example = f"CLASS/{media.word}{media.suffixes[0]}"
                raise DataError(f"'{table.source}' has {media.word}s but no class folders: expected {example}")
        raise DataError(
            f"'{table.source}' has no column that looks like a label (columns: {', '.join(table.table.column_names)}): "
            f"name it with --label COLUMN"
        )
    if len(found) > 1:
        raise DataError(f"several columns of '{table.source}' may be the label: say which with {_or_labels(found[:6])}")
    _refuse_headless(table)
    why = "the one with few different values" if classes else "the one that holds numbers"
    said.append(f"the label is column '{found[0]}', {why}")
    return (found[0],)


def _refuse_headless(table: Table) -> None:
    """A first line that is itself a row gives a column the name of one of its values."""
    if table.format not in ("csv", "tsv"):
        return
    for name in table.table.column_names:
        if name and pc.any(pc.equal(table.table.column(name), name)).as_py():
            raise DataError(
                f"the first line of '{table.source}' looks like a row, not like column names "
                f"('{name}' also stands below it): add a header line such as text,label"
            )


def _task(
    table: Table, labels: tuple[str, ...], seen: Mapping[str, Facts], data: DataSpec, task: TaskSpec, said: list[str]
) -> tuple[str, str | None]:
    if task.name is not None:
        known = _known_tasks()
        if task.name not in known:
            raise SpecError(f"no task is called '{task.name}': {did_you_mean(task.name, known)}")
        separator = data.separator
        if task.name == "multilabel" and separator is None and len(labels) == 1 and seen[labels[0]].kind == "text":
            cells = [text_of(cell) for cell in sample(table.table, labels[0]) if cell is not None]
            separator = separator_in(cells) or commonest_separator(cells)
            said.append(f"labels are separated by '{separator}'" if separator else "each cell holds one label")
        return task.name, separator
    if len(labels) > 1:
        return _several(table, labels, said), None
    name = labels[0]
    if seen[name].kind == "list":
        kind = "regression" if seen[name].lists_numbers else "multilabel"
        said.append(f"the task is {kind}: '{name}' holds lists of {'numbers' if kind == 'regression' else 'labels'}")
        return kind, None
    if data.separator is not None:
        said.append(f"the task is multilabel: the labels of a cell are separated by '{data.separator}'")
        return "multilabel", data.separator
    return _single(table, name, seen[name], said)


def _known_tasks() -> set[str]:
    from headstart.catalog import entries

    return {"classification", "multilabel", "regression", *entries("tasks")}


def _several(table: Table, labels: tuple[str, ...], said: list[str]) -> str:
    values = {name: {text_of(v).strip().lower() for v in _distinct(table, name)} - {""} for name in labels}
    if all(found <= {"0", "1", "true", "false"} for found in values.values()):
        said.append(f"the task is multilabel: {len(labels)} label columns of 0 and 1")
        return "multilabel"
    words = [name for name, found in values.items() if not numbers_in(found)[0]]
    if words:
        raise DataError(
            f"{len(labels)} label columns were given, and '{words[0]}' holds words: "
            f"several label columns must all hold 0 and 1 (many labels) or numbers (regression)"
        )
    said.append(f"the task is regression with {len(labels)} targets: the label columns hold numbers")
    return "regression"


def _single(table: Table, name: str, fact: Facts, said: list[str]) -> tuple[str, str | None]:
    values = {text_of(value) for value in _distinct(table, name)} - {""}
    count, rows = len(values), table.table.num_rows
    numeric, whole = numbers_in(values) if fact.kind == "number" else (False, False)
    if numeric and not whole:
        said.append(f"the task is regression: '{name}' holds fractions (--task classification for classes)")
        return "regression", None
    if numeric:
        ids = {int(float(value)) for value in values}
        contiguous = min(ids) in (0, 1) and max(ids) - min(ids) + 1 == len(ids) and rows >= 5 * count
        if count <= FEW_NUMBERS or contiguous:
            said.append(
                f"the task is classification: '{name}' holds {count} different whole numbers "
                f"(use --task regression for numbers)"
            )
            return "classification", None
        said.append(f"the task is regression: '{name}' holds {count} numbers (--task classification for classes)")
        return "regression", None
    separator = separator_in([text_of(cell) for cell in sample(table.table, name) if cell is not None])
    if separator:
        said.append(
            f"the task is multilabel: cells of '{name}' hold labels separated by '{separator}' "
            f"(--task classification takes each cell as one label)"
        )
        return "multilabel", separator
    if count >= rows >= FEW_NUMBERS:
        raise DataError(
            f"every row of '{table.source}' has another label in '{name}' ({count} in {rows} rows), "
            f"so there is nothing to learn from: name the right column with --label COLUMN"
        )
    said.append(f"the task is classification: '{name}' holds {count} different values")
    return "classification", None


def _distinct(table: Table, name: str) -> list[Any]:
    column = table.table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return [value for value in pc.unique(column).to_pylist() if value is not None]


def _is_id(name: str) -> bool:
    lowered = name.strip().lower()
    return lowered in _IDS or lowered.endswith(("_id", "_uuid"))


def _or(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def _or_labels(names: list[str]) -> str:
    return _or([f"--label {name}" for name in names])
