"""Plug-ins are found by file name and by entry point, without being imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import headstart.catalog as catalog
from headstart.errors import MissingExtra, SpecError
from headstart.protocols import Method, Modality, Task

FACES = {"modalities": Modality, "tasks": Task, "methods": Method}
ENTRIES = [entry for kind in catalog.KINDS for entry in catalog.entries(kind).values()]


@pytest.mark.parametrize("kind", catalog.KINDS)
def test_every_public_file_is_an_entry_and_nothing_else_is(kind: str) -> None:
    folder = Path(catalog.__file__).parent / kind
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert files == {entry.name for entry in catalog.entries(kind).values() if entry.source == "headstart"}
    assert files, f"there are {kind}"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}/{entry.name}")
def test_entry_leads_to_a_class_of_its_kind_and_back(entry: catalog.Entry) -> None:
    try:
        cls = entry.load()
    except MissingExtra as error:
        pytest.skip(str(error))
    assert issubclass(cls, FACES[entry.kind])
    assert catalog.name_of(entry.kind, cls) == entry.name
    assert catalog.find(entry.kind, entry.name) is cls
    assert entry.summary.endswith(".") and "\n" not in entry.summary
    assert entry.to_json() == {"name": entry.name, "summary": entry.summary, "source": "headstart"}


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        ("methods", "lroa", "no method is called 'lroa': did you mean 'lora'?"),
        ("tasks", "clasification", "no task is called 'clasification': did you mean 'classification'?"),
        ("modalities", "smell", "no modality is called 'smell': known: audio, image, text"),
    ],
)
def test_unknown_name_gets_the_nearest(kind: str, name: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        catalog.find(kind, name)
    assert str(caught.value) == sentence


def test_a_class_without_an_entry_cannot_be_named() -> None:
    class Homeless(Method):
        """Nowhere."""

    with pytest.raises(SpecError, match=r"Homeless is not in the catalogue.*'headstart.methods'"):
        catalog.name_of("methods", Homeless)


def test_methods_are_attributes_by_class_name() -> None:
    methods = importlib.import_module("headstart.methods")
    for entry in catalog.entries("methods").values():
        name = entry.target.partition(":")[2]
        assert name in dir(methods)
    assert methods.L2SP is catalog.find("methods", "l2sp")
    with pytest.raises(AttributeError, match="has no attribute 'L3SP'"):
        _ = methods.L3SP


# Third parties -------------------------------------------------------------------------------------------------------

FOREIGN = '''
"""A package of somebody else."""

raise_when_listed = __import__("sys").modules.setdefault("foreign_was_imported", __import__("sys"))

from dataclasses import dataclass
from headstart.protocols import Method


@dataclass
class Nudge(Method):
    """Nudges the weights a little.

    More about it.
    """

    by: float = 0.1
'''


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with an installed distribution `headstart-nudge`."""
    info = tmp_path / "headstart_nudge-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: headstart-nudge\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[headstart.methods]\n"
        "nudge = nudge_plugin:Nudge\n"
        "mixup = nudge_plugin:Nudge\n"
        "absent = nowhere_to_be_found.inner:Gone\n"
        "broken = broken_plugin:Broken\n"
        "renamed = nudge_plugin:OldName\n"
    )
    (tmp_path / "nudge_plugin.py").write_text(FOREIGN)
    (tmp_path / "broken_plugin.py").write_text("class Broken(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    catalog.entries.cache_clear()
    yield tmp_path
    catalog.entries.cache_clear()
    for name in ("nudge_plugin", "broken_plugin", "foreign_was_imported"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("third_party")
def test_entry_points_are_listed_with_their_source_and_without_being_imported() -> None:
    entry = catalog.entries("methods")["nudge"]
    assert entry.to_json() == {
        "name": "nudge",
        "summary": "Nudges the weights a little.",
        "source": "headstart-nudge",
    }
    assert entry.target == "nudge_plugin:Nudge"
    assert "nudge_plugin" not in sys.modules and "foreign_was_imported" not in sys.modules


@pytest.mark.usefixtures("third_party")
def test_entry_points_are_found_named_and_reachable_like_built_in_ones() -> None:
    cls = catalog.find("methods", "nudge")
    assert issubclass(cls, Method) and cls(by=0.5).options() == {"by": 0.5}
    assert catalog.name_of("methods", cls) == "nudge"
    assert importlib.import_module("headstart.methods").Nudge is cls
    with pytest.raises(SpecError, match="did you mean 'nudge'"):
        catalog.find("methods", "nugde")


@pytest.mark.usefixtures("third_party")
def test_a_built_in_name_cannot_be_taken_over() -> None:
    assert catalog.entries("methods")["mixup"].source == "headstart"


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("name", ["absent", "broken", "renamed"])
def test_a_broken_third_party_does_not_break_the_listing_and_is_named_when_used(name: str) -> None:
    listed = catalog.entries("methods")[name]
    assert listed.doc == "" and listed.summary == ""
    with pytest.raises(SpecError, match=rf"the method '{name}' of headstart-nudge cannot be imported"):
        catalog.find("methods", name)
