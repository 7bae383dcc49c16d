"""From a spec to checked rows in parts: read, infer, refuse or drop, divide, check, count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from headstart.data import splits
from headstart.data.checks import check
from headstart.data.columns import Columns, infer
from headstart.data.parts import Data
from headstart.data.read import Table, read
from headstart.data.scan import scan
from headstart.data.sources import NOT_SAMPLED, UNKNOWN_CLASS, Share, Source, fingerprint
from headstart.data.words import counted
from headstart.errors import DataError, did_you_mean
from headstart.spec import DataSpec, Spec
from headstart.values import Finding, RowCount

_TEST_DRAW, _VALIDATION_DRAW, _SAMPLE_DRAW, _FOLD_DRAW = 1, 2, 3, 4
UNLABELLED = "unlabelled"


def load(spec: Spec) -> Data:
    """Read, check and divide the rows that a spec names.

    Raises DataError, in one sentence each, for files that cannot be read, columns that are missing or unclear, rows
    that cannot be used (with `on_bad_row = 'error'`), classes that training lacks, and labels that are all the same.
    """
    if spec.data.train is None:
        raise DataError("there is no training data: name a file or a folder, as in: headstart fit train.csv")
    return assemble(_tables(spec.data, spec.data.train), spec)


def assemble(tables: Mapping[str, Table], spec: Spec) -> Data:
    """The same for tables that are already there: 'train', and where given 'validation', 'test' and 'unlabelled'."""
    columns = infer(tables["train"], spec.data, spec.task)
    said = list(dict.fromkeys(sentence for table in tables.values() for sentence in table.said))
    said += columns.said
    how, by = _how(spec.data, tables, said)
    sources = {}
    for name, table in tables.items():
        labelled = name != UNLABELLED
        _require(table, [columns.input, *columns.labels] if labelled else [columns.input])
        needed = [by] if by is not None and name == "train" else []
        found = scan(table, columns, needed=needed, labelled=labelled)
        sources[name] = Source.of(table, found, spec.data.on_bad_row)
    shares = {name: Share(name, source, source.scan.good()) for name, source in sources.items()}
    unlabelled = shares.pop(UNLABELLED, None)
    _divide(shares, spec, columns.task, how, by, said)
    if spec.data.on_bad_row == "skip":
        _drop_unknown(shares, columns.task)
    others = [shares[name].rows() for name in ("validation", "test") if name in shares]
    findings = check(shares["train"].rows(), others, columns.task, columns.modality)
    errors = [finding.message for finding in findings if finding.level == "error"]
    if errors:
        raise DataError("; also: ".join(errors))
    if unlabelled is not None:
        findings += _seen_before(unlabelled, shares)
        shares[UNLABELLED] = unlabelled
    return _finish(sources, shares, columns, findings, said)


def _seen_before(unlabelled: Share, shares: Mapping[str, Share]) -> list[Finding]:
    """A warning where rows to be measured on are learned from without their labels."""
    keys = unlabelled.source.scan.keys[unlabelled.positions]
    found = []
    for name in ("validation", "test"):
        if name in shares:
            both = int(np.isin(keys, shares[name].source.scan.keys[shares[name].positions]).sum())
            if both:
                message = (
                    f"{counted(both, 'unlabelled row')} also stand among the {name} rows: figures on these are "
                    f"transductive, for the model learns from their inputs"
                )
                found.append(Finding("warning", "unlabelled-overlap", message))
    return found


def _tables(data: DataSpec, train: str) -> dict[str, Table]:
    def fetch(path: str) -> Table:
        return read(path, encoding=data.encoding, on_bad_row=data.on_bad_row)

    whole = fetch(train)
    found = {"train": _pick(whole, "train")}
    if whole.splits:
        found["train"] = replace(found["train"], said=(*whole.said, *found["train"].said))
    for name in ("validation", "test"):
        given = getattr(data, name)
        if given is not None:
            found[name] = _pick(fetch(given), name)
        elif whole.splits and name in whole.splits:
            found[name] = whole.splits[name]
    if data.unlabelled is not None:
        found[UNLABELLED] = _first(fetch(data.unlabelled))
    return found


def _first(table: Table) -> Table:
    """The training split of a folder that has several, or its first."""
    return table if table.splits is None else table.splits.get("train", next(iter(table.splits.values())))


def _pick(table: Table, split: str) -> Table:
    """One split of a folder that has several; a table without splits is itself."""
    if table.splits is None:
        return table
    if split not in table.splits:
        raise DataError(f"'{table.source}' has no {split} rows: its splits are {', '.join(table.splits)}")
    return table.splits[split]


def _require(table: Table, names: Sequence[str]) -> None:
    have = table.table.column_names
    for name in names:
        if name not in have:
            raise DataError(
                f"'{table.source}' has no column '{name}', which the training rows have; "
                f"it has {', '.join(have)}: {did_you_mean(name, have)}"
            )


def _how(data: DataSpec, tables: Mapping[str, Table], said: list[str]) -> tuple[str, str | None]:
    """How rows are split off, and the column that it takes. A named group or time column counts by itself."""
    how: str = data.split
    if "validation" in tables and ("test" in tables or not (data.test_fraction or data.fold)):
        return how, None
    if how in ("stratified", "random") and (data.group or data.time):
        if data.group and data.time:
            raise DataError("data.group and data.time are both set: set data.split to group or time")
        how = "group" if data.group else "time"
        said.append(f"rows are split by {how}, because data.{how} is set")
    return how, {"group": data.group, "time": data.time}.get(how)


def _divide(shares: dict[str, Share], spec: Spec, task: str, how: str, by: str | None, said: list[str]) -> None:
    """Split test and validation rows off the training rows where they are wanted and not given.

    Fewer labels are asked for (`per_class`, `fraction`) before validation rows are split off: those are labels too.
    """
    data, train = spec.data, shares["train"]
    total = len(train.positions)
    test_share = data.test_fraction if "test" not in shares else 0.0
    if test_share + (data.validation_fraction if "validation" not in shares else 0.0) >= 1:
        raise DataError("data.test_fraction and data.validation_fraction leave no rows for training: lower one of them")
    if data.fold is not None and "test" not in shares:
        shares["test"] = _fold(train, spec, task, how, by, said)
    elif test_share:
        rng = np.random.default_rng([spec.training.seed, _TEST_DRAW])
        test = _split_off("test", train, test_share, task, how, by, rng, said)
        if test is None:
            raise DataError(
                "no test rows can be split off, for each class has a single input: give a test file instead"
            )
        shares["test"] = test
    remaining = len(train.positions)
    _sample(train, spec, task, said)
    if "validation" in shares:
        return
    if how in ("stratified", "random") and not _enough(train, task, said):
        return
    rng = np.random.default_rng([spec.training.seed, _VALIDATION_DRAW])
    share = data.validation_fraction * total / remaining
    validation = _split_off("validation", train, share, task, how, by, rng, said)
    if validation is None:
        said.append("no validation rows are split off, for each class has a single input: choices use cross-validation")
    else:
        shares["validation"] = validation


def _enough(train: Share, task: str, said: list[str]) -> bool:
    """Whether the rows suffice to give some away for validation."""
    classes = train.classes(task)
    if classes is None:
        mean, what, needed = float(len(train.positions)), "in all", 2 * splits.ENOUGH_PER_CLASS
    else:
        counts = Counter(name for names in classes for name in names)
        mean, what, needed = sum(counts.values()) / max(1, len(counts)), "a class on average", splits.ENOUGH_PER_CLASS
    if mean < needed:
        said.append(
            f"no validation rows are split off, for there are {mean:.3g} training rows {what}, fewer than {needed}: "
            f"choices are made by cross-validation"
        )
    return mean >= needed


def _split_off(
    name: str, train: Share, share: float, task: str, how: str, by: str | None, rng: np.random.Generator,
    said: list[str],
) -> Share | None:  # fmt: skip
    source, at = train.source, train.positions
    classes = train.classes(task)
    if by is not None:
        column = source.table.table.column(by).to_pylist()
        values = [column[place] for place in at]
        if how == "group":
            held = splits.hold_out_groups(values, share, rng, classes)
        else:
            held = splits.hold_out_latest(splits.as_times(values, by, source.numbers[at]), share)
        manner = f"by {how} ('{by}')"
    elif how == "stratified" and classes is not None:
        _say_single(classes, said)
        held, manner = splits.hold_out(source.scan.keys[at], share, rng, classes), "by class"
    else:
        held, manner = splits.hold_out(source.scan.keys[at], share, rng), "at random"
    if not held.any():
        return None
    said.append(f"{counted(int(held.sum()), f'{name} row')} of {len(at)} are split off the training rows, {manner}")
    train.positions = at[~held]
    return Share(name, source, at[held], own=False)


def _fold(train: Share, spec: Spec, task: str, how: str, by: str | None, said: list[str]) -> Share:
    """The rows of one fold to measure on. Folds do not depend on the seed: every run of a comparison has the same."""
    source, at, data = train.source, train.positions, spec.data
    if data.folds is None or data.fold is None or data.fold > data.folds:
        raise DataError(f"expected data.fold from 1 to data.folds, received fold {data.fold} of {data.folds}")
    if how == "time":
        raise DataError("folds would learn from later rows than they are measured on: use data.test_fraction with time")
    units = source.scan.keys[at].tolist()
    if how == "group" and by is not None:
        column = source.table.table.column(by).to_pylist()
        units = [column[place] for place in at]
    rng = np.random.default_rng([_FOLD_DRAW, data.folds])
    held = splits.hold_out_fold(units, data.fold, data.folds, rng, train.classes(task))
    said.append(f"{counted(int(held.sum()), 'test row')} of {len(at)} are fold {data.fold} of {data.folds}")
    train.positions = at[~held]
    return Share("test", source, at[held], own=False)


def _say_single(classes: Sequence[tuple[str, ...]], said: list[str]) -> None:
    counts = Counter(name for names in classes for name in names)
    single = sorted(name for name, count in counts.items() if count == 1)
    if single:
        shown = ", ".join(f"'{name}'" for name in single[:8]) + (", ..." if len(single) > 8 else "")
        sentence = f"{counted(len(single), 'class')} with a single row stay in training: {shown}"
        if sentence not in said:
            said.append(sentence)


def _drop_unknown(shares: Mapping[str, Share], task: str) -> None:
    known = {name for names in shares["train"].classes(task) or () for name in names}
    for name in ("validation", "test"):
        classes = shares[name].classes(task) if name in shares else None
        if classes is not None:
            shares[name].keep(np.asarray([known.issuperset(names) for names in classes], bool), UNKNOWN_CLASS)
            if not len(shares[name].positions):
                raise DataError(f"no {name} row has a class that the training rows have: do the files belong together?")


def _sample(train: Share, spec: Spec, task: str, said: list[str]) -> None:
    data = spec.data
    if data.per_class is None and data.fraction is None:
        return
    mask = splits.subsample(
        len(train.positions),
        np.random.default_rng([spec.training.seed, _SAMPLE_DRAW]),
        classes=train.classes(task),
        per_class=data.per_class,
        fraction=data.fraction,
    )
    asked = f"data.per_class = {data.per_class}" if data.per_class is not None else f"data.fraction = {data.fraction}"
    said.append(f"{int(mask.sum())} of {counted(len(mask), 'training row')} are kept ({asked})")
    train.keep(mask, NOT_SAMPLED)


def _finish(
    sources: Mapping[str, Source], shares: Mapping[str, Share], columns: Columns, findings: list[Finding],
    said: list[str],
) -> Data:  # fmt: skip
    dropped: Counter[str] = Counter()
    for source in sources.values():
        dropped += source.bad()
    for share in shares.values():
        dropped += share.dropped
    skipped = {reason: count for reason, count in dropped.items() if reason != NOT_SAMPLED}
    if skipped:
        parts = ", ".join(f"{counted(count, 'row')} for '{reason}'" for reason, count in skipped.items())
        findings = [*findings, Finding("warning", "bad-rows", f"rows are left out: {parts}")]
    counts = {name: len(share.positions) for name, share in shares.items()}
    read_in_all = sum(source.read for source in sources.values())
    validated, tested, free = (counts.get(name, 0) for name in ("validation", "test", UNLABELLED))
    rows = RowCount(read_in_all, counts["train"], validated, tested, dict(dropped), free)
    parts_of = {name: share.part(columns) for name, share in shares.items()}
    digest = fingerprint(shares, columns, ("train", "validation", "test", UNLABELLED))
    train, validation, test = parts_of["train"], parts_of.get("validation"), parts_of.get("test")
    return Data(columns, train, validation, test, tuple(findings), rows, digest, tuple(said), parts_of.get(UNLABELLED))
