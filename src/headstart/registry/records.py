"""A version of a model as the registry describes it, and the tags that keep this description."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headstart.bundle import Bundle
from headstart.errors import RegistryError
from headstart.spec import Spec

OWN = "headstart."
"""Tags that start so are written by Headstart; everything else is the user's."""

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Version:
    """One version of a model. when: of its registration, in UTC. tags: the user's own.

    metric, value, low, high: the main metric with its 95 % interval as the bundle's report has it, on `split`; None
    where there is no report. bundle, parent: lineage ids. base, base_digest: the pretrained weights. fingerprint: of
    the data. spec: sha256 of the spec. bytes: of the whole bundle. sha256: of its `bundle.json`, which holds the hashes
    of all other files. place: where the bundle lies in the registry. notes: what happened to it there, by name.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    when: datetime
    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    split: str
    bundle: str
    parent: str
    base: str
    base_digest: str
    fingerprint: str
    spec: str
    bytes: int
    sha256: str
    place: str
    tags: Mapping[str, str]
    notes: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        plain = {key: value for key, value in vars(self).items() if key != "when"}
        return {**plain, "aliases": list(self.aliases), "when": self.when.isoformat(timespec="seconds")}


_NUMBERS = ("value", "low", "high")
_WORDS = (
    "task",
    "metric",
    "split",
    "bundle",
    "parent",
    "base",
    "base_digest",
    "fingerprint",
    "spec",
    "sha256",
    "place",
)


def describe(bundle: Bundle, folder: Path, place: str, size: int) -> dict[str, str]:
    """The tags of a version that is to be registered: its lineage and its main figure.

    folder: the bundle as it was written. size: bytes of the whole bundle.
    """
    record = bundle.record
    base = record.get("base", {})
    told: dict[str, Any] = {
        "task": bundle.task.name,
        "bundle": record["lineage"]["id"],
        "parent": record["lineage"]["parent"] or "",
        "base": base.get("ref", ""),
        "base_digest": base.get("digest", ""),
        "fingerprint": record.get("fingerprint", ""),
        "spec": Spec.make(record["spec"]).digest,
        "sha256": digest(folder),
        "bytes": size,
        "place": place,
        **_figure(bundle),
    }
    return {f"{OWN}{key}": str(value) for key, value in told.items() if value is not None}


def _figure(bundle: Bundle) -> dict[str, Any]:
    """The main metric: what an export measured, else the report's on test rows, else on validation rows."""
    exported = bundle.record.get("runtime", {}).get("measured", {})
    if exported.get("after") is not None:
        return {"metric": exported["metric"], "value": exported["after"], "split": "export"}
    report = bundle.report.to_json() if bundle.report is not None else {}
    metric = report.get("metric") or bundle.task.metric
    for split in ("test", "validation"):
        found = report.get("metrics", {}).get(split, {}).get(metric)
        if found:
            return {"metric": metric, "split": split, **{key: found.get(key) for key in _NUMBERS}}
    return {"metric": metric, "split": ""}


def digest(folder: Path) -> str:
    """sha256 of a bundle's record, and so of the bundle."""
    return hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()


def read(entry: Any, aliases: Sequence[str]) -> Version | None:
    """A version from MLflow's; None for one that Headstart did not register."""
    own = {key.removeprefix(OWN): value for key, value in entry.tags.items() if key.startswith(OWN)}
    if "sha256" not in own or "place" not in own:
        return None
    numbers = {key: float(own[key]) if key in own else None for key in _NUMBERS}
    known = {*_NUMBERS, *_WORDS, "bytes"}
    return Version(
        name=entry.name,
        version=int(entry.version),
        aliases=tuple(sorted(aliases)),
        when=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        bytes=int(own.get("bytes", 0)),
        tags={key: value for key, value in entry.tags.items() if not key.startswith(OWN)},
        notes={key: value for key, value in own.items() if key not in known},
        **numbers,  # type: ignore[arg-type]
        **{key: own.get(key, "") for key in _WORDS},
    )


def check_name(name: str) -> str:
    """A model's name, which also stands in addresses and names a folder. Raises RegistryError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise RegistryError(
            f"'{name}' cannot be the name of a model: expected at most 64 letters, digits, . _ and -, such as tickets"
        )
    return name


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The user's tags. Raises RegistryError for a key that MLflow does not take or that is Headstart's."""
    for key in tags:
        if key.startswith(OWN):
            raise RegistryError(f"tags that start with '{OWN}' are written by Headstart, received '{key}'")
        if not re.fullmatch(r"[\w\-. /:]{1,250}", key):
            raise RegistryError(f"expected a tag's key of letters, digits, _ - . / and :, received '{key}'")
    return dict(tags)
