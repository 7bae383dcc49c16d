"""Registering, listing, promoting and rolling back, through the public functions."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

import headstart as hs
from headstart.errors import BundleError, GateError, MissingExtra, RegistryError
from headstart.registry import place, records
from headstart.registry.place import Registry


def aliases(registry: Path) -> dict[int, tuple[str, ...]]:
    return {version.version: version.aliases for version in hs.models("tickets", registry=registry)}


@pytest.fixture
def two(good: Path, bad: Path, registry: Path) -> Path:
    """Version 1, good, is the champion; version 2, bad, is the challenger."""
    hs.register(good, "tickets", alias="champion", registry=registry)
    hs.register(bad, "tickets", alias="challenger", registry=registry)
    return registry


def test_a_version_says_where_it_comes_from_and_its_copy_is_the_bundle(good: Path, registry: Path) -> None:
    record = json.loads((good / "bundle.json").read_text())
    report = json.loads((good / "report.json").read_text())["metrics"]["test"]["accuracy"]
    made = hs.register(good, "tickets", alias="challenger", tags={"by": "mail", "ticket/no": "7"}, registry=registry)
    assert (made.name, made.version, made.aliases) == ("tickets", 1, ("challenger",))
    assert (made.metric, made.split) == ("accuracy", "test")
    assert (made.value, made.low, made.high) == pytest.approx((report["value"], report["low"], report["high"]))
    assert made.bundle == record["lineage"]["id"] and made.fingerprint == record["fingerprint"]
    assert made.base_digest == record["base"]["digest"] and made.base == record["base"]["ref"]
    assert made.spec == hs.Spec.make(record["spec"]).digest
    assert made.tags == {"by": "mail", "ticket/no": "7"}
    assert abs((datetime.now(UTC) - made.when).total_seconds()) < 60
    copy = Registry(registry).fetch(made)
    assert registry in copy.parents
    assert hs.load(copy).predict(["where is my parcel"]) == hs.load(good).predict(["where is my parcel"])
    assert made.bytes == sum(path.stat().st_size for path in copy.rglob("*") if path.is_file())
    (listed,) = hs.models(registry=registry)
    assert listed == made
    assert json.loads(json.dumps(made.to_json()))["when"] == made.when.isoformat(timespec="seconds")
    (row,) = [path for path in (registry / "models" / "tickets").iterdir()]
    assert row == copy, "nothing else is left"


def test_a_bundle_in_memory_is_registered_as_it_is(good: Path, registry: Path) -> None:
    model = hs.load(good)
    made = hs.register(model, "tickets", registry=registry)
    assert model.folder == good, "registering does not move it"
    assert made.bundle == model.record["lineage"]["id"]


def test_a_registry_can_be_moved(two: Path, tmp_path: Path) -> None:
    shutil.move(two, tmp_path / "elsewhere")
    there = Registry(tmp_path / "elsewhere")
    assert hs.load(there.fetch(there.version("tickets", "champion"))).labels == ("delivery", "login", "refund")


def test_several_models_are_listed_by_name_the_newest_version_first(good: Path, registry: Path) -> None:
    for name in ("tickets", "moods", "tickets"):
        hs.register(good, name, registry=registry)
    listed = [(version.name, version.version) for version in hs.models(registry=registry)]
    assert listed == [("moods", 1), ("tickets", 2), ("tickets", 1)]


def test_more_versions_than_a_page_holds_are_all_listed(
    good: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "PAGE", 2)
    for name in ("a", "b", "c"):
        hs.register(good, name, alias="champion", registry=registry)
    for _ in range(4):
        hs.register(good, "a", registry=registry)
    assert [version.version for version in hs.models("a", registry=registry)] == [5, 4, 3, 2, 1]
    assert len(hs.models(registry=registry)) == 7
    assert Registry(registry).champions() == {"a": 1, "b": 1, "c": 1}


def test_models_that_others_keep_in_the_same_mlflow_are_left_alone(two: Path) -> None:
    client = Registry(two).client
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "s3://somewhere/model")
    client.create_model_version("tickets", "s3://somewhere/model")
    assert {(version.name, version.version) for version in hs.models(registry=two)} == {("tickets", 1), ("tickets", 2)}
    with pytest.raises(RegistryError, match="has no version '3'"):
        hs.promote("tickets", 3, registry=two)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"name": "a/b"}, "'a/b' cannot be the name of a model: expected at most 64 letters"),
        ({"name": "../x"}, r"'\.\./x' cannot be the name of a model"),
        ({"name": ""}, "'' cannot be the name of a model"),
        (
            {"alias": "champoin"},
            "expected --alias champion or challenger, received 'champoin': did you mean 'champion'",
        ),
        ({"tags": {"headstart.value": "1"}}, "tags that start with 'headstart.' are written by Headstart"),
        ({"tags": {"a=b": "1"}}, "expected a tag's key of letters, digits"),
    ],
)
def test_what_cannot_be_registered_is_said_before_anything_is_written(
    good: Path, tmp_path: Path, asked: dict[str, object], sentence: str
) -> None:
    with pytest.raises(RegistryError, match=sentence):
        hs.register(good, **{"name": "tickets", "registry": tmp_path / "new", **asked})  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_what_is_no_bundle_is_not_registered(good: Path, registry: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"x")
    for folder, sentence in ((tmp_path / "none", "there is no bundle at"), (tmp_path / "cut", "it was cut short")):
        with pytest.raises(BundleError, match=sentence):
            hs.register(folder, "tickets", registry=registry)
    assert hs.models(registry=registry) == [] and not (registry / "models").exists()


def test_a_place_that_is_no_registry_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "registry.db").write_text("no database, but long enough to be read as one" * 40)
    for uri, sentence in (
        (tmp_path / "none", "there is no registry at .*'headstart register BUNDLE --name NAME' makes one"),
        (tmp_path / "file", "expected a folder as --registry, and .* is a file"),
        (tmp_path / "broken", "the registry .* cannot be opened: .*not a database"),
        ("http://me:secret@127.0.0.1:9", r"the registry 'http://me:\*\*\*@127.0.0.1:9' cannot be opened"),
    ):
        with pytest.raises(RegistryError, match=sentence) as caught:
            hs.models(registry=uri)
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'headstart\[registry\]'"):
        hs.models(registry=tmp_path)


def test_names_numbers_and_aliases_that_are_not_there_are_said(two: Path) -> None:
    with pytest.raises(RegistryError, match=r"there is no model 'tickts' in .*: did you mean 'tickets'"):
        hs.models("tickts", registry=two)
    with pytest.raises(
        RegistryError, match=r"'tickets' has no version '9' in .*: versions 1, 2; aliases challenger, champ"
    ):
        hs.promote("tickets", 9, registry=two)
    with pytest.raises(RegistryError, match="version 1 of 'tickets' is the champion already"):
        hs.promote("tickets", "champion", registry=two)
    with pytest.raises(RegistryError, match="there is no model 'moods'"):
        hs.rollback("moods", registry=two)


def test_only_a_promotion_replaces_a_champion(good: Path, two: Path) -> None:
    with pytest.raises(RegistryError, match="has a champion, version 1, which only a promotion replaces"):
        hs.register(good, "tickets", alias="champion", registry=two)
    assert aliases(two) == {1: ("champion",), 2: ("challenger",)}


def test_a_challenger_that_is_worse_is_refused_and_nothing_changes(two: Path) -> None:
    before = [version.to_json() for version in hs.models(registry=two)]
    said: list[str] = []
    with pytest.raises(
        GateError, match=r"version 2 of 'tickets' does not replace version 1: accuracy .* worse on"
    ) as got:
        hs.promote("tickets", registry=two, say=said.append)
    (measured,) = got.value.figures["judgement"]["measured"]
    assert measured["champion"] > 0.9 > 0.5 > measured["challenger"]
    assert said[0].startswith("accuracy on 72 rows of")
    assert [version.to_json() for version in hs.models(registry=two)] == before
    assert Registry(two).stack("tickets") == "1"


def test_a_reason_passes_the_gate_by_and_is_kept(two: Path) -> None:
    done = hs.promote("tickets", registry=two, force="the old labels were wrong")
    assert (done.version, done.before, done.forced) == (2, 1, "the old labels were wrong")
    assert aliases(two) == {2: ("champion",), 1: ()}, "the challenger has become the champion"
    newest = hs.models(registry=two)[0]
    assert newest.notes["forced"] == "the old labels were wrong" and "promoted" in newest.notes
    assert json.loads(newest.notes["gate"])["reasons"]
    with pytest.raises(RegistryError, match="expected a reason with --force"):
        hs.promote("tickets", 1, registry=two, force=" ")


def test_rolling_back_goes_further_back_each_time_and_history_stays(
    good: Path, again: Path, bad: Path, registry: Path
) -> None:
    hs.register(good, "tickets", alias="champion", registry=registry)
    for folder in (bad, again):
        hs.register(folder, "tickets", alias="challenger", registry=registry)
        hs.promote("tickets", registry=registry, force="for the test")
    assert Registry(registry).champions() == {"tickets": 3}
    done = hs.rollback("tickets", registry=registry)
    assert (done.version, done.before) == (2, 3)
    assert hs.rollback("tickets", registry=registry).version == 1
    with pytest.raises(RegistryError, match="no version of 'tickets' was champion before version 1"):
        hs.rollback("tickets", registry=registry)
    notes = {version.version: version.notes for version in hs.models(registry=registry)}
    assert "rolled_back" in notes[2] and "rolled_back" in notes[3] and "rolled_back" not in notes[1]
    hs.promote("tickets", 3, registry=registry, force="for the test")
    assert hs.rollback("tickets", registry=registry).version == 1, "version 2 did not serve before version 3 this time"


def test_there_is_nothing_to_go_back_to_without_a_champion(good: Path, registry: Path) -> None:
    hs.register(good, "tickets", registry=registry)
    with pytest.raises(RegistryError, match="'tickets' has no champion: 'headstart promote tickets VERSION' makes one"):
        hs.rollback("tickets", registry=registry)
    assert hs.promote("tickets", 1, registry=registry).before is None


def test_a_bundle_that_was_damaged_in_the_registry_does_not_serve_again(two: Path) -> None:
    hs.promote("tickets", registry=two, force="for the test")
    there = Registry(two)
    folder = there.fetch(there.version("tickets", 1))
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match="it was cut short or altered"):
        hs.rollback("tickets", registry=two)
    (folder / "bundle.json").write_text((folder / "bundle.json").read_text() + " ")
    with pytest.raises(
        BundleError, match=r"is not the bundle that was registered: its bundle\.json is missing or altered"
    ):
        hs.rollback("tickets", registry=two)
    assert there.champions() == {"tickets": 2}


@pytest.mark.parametrize("where", ["/etc", "models/tickets/../../..", "../outside", "models/tickets"])
def test_a_place_outside_of_the_registry_is_never_read(two: Path, where: str) -> None:
    there = Registry(two)
    there.client.set_model_version_tag("tickets", "1", f"{records.OWN}place", where)
    with pytest.raises(BundleError, match="version 1 of 'tickets' has no place in"):
        there.fetch(there.version("tickets", 1))


def test_a_champion_that_changed_while_it_was_compared_with_is_not_replaced(
    two: Path, again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.registry import gate

    hs.register(again, "tickets", registry=two)
    real = gate.judge

    def slow(*models: hs.Bundle, **asked: object) -> gate.Judgement:
        Registry(two).point("tickets", "champion", 3)
        return real(*models, **asked)  # type: ignore[arg-type]

    monkeypatch.setattr(gate, "judge", slow)
    with pytest.raises(RegistryError, match="changed from version 1 to 3 while version 2 was measured: promote again"):
        hs.promote("tickets", 2, registry=two, gate="99%")
    assert Registry(two).champions() == {"tickets": 3}


def test_a_newer_challenger_keeps_its_alias_while_the_older_one_is_promoted(
    two: Path, again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.registry import gate

    real = gate.judge

    def slow(*models: hs.Bundle, **asked: object) -> gate.Judgement:
        hs.register(again, "tickets", alias="challenger", registry=two)
        return real(*models, **asked)  # type: ignore[arg-type]

    monkeypatch.setattr(gate, "judge", slow)
    hs.promote("tickets", registry=two, gate="99%")
    assert aliases(two) == {1: (), 2: ("champion",), 3: ("challenger",)}


def test_the_first_champion_has_a_budget_of_time_too(good: Path, registry: Path) -> None:
    hs.register(good, "tickets", alias="challenger", registry=registry)
    with pytest.raises(GateError, match="version 1 of 'tickets' does not become the first champion: one row takes"):
        hs.promote("tickets", registry=registry, latency_ms=1e-6)
    assert aliases(registry) == {1: ("challenger",)}
    hs.promote("tickets", registry=registry, latency_ms=1e9)
    assert json.loads(hs.models("tickets", registry=registry)[0].notes["gate"])["budget_ms"] == 1e9


def test_a_champion_that_cannot_be_loaded_is_replaced_by_force_only(two: Path) -> None:
    there = Registry(two)
    (there.fetch(there.version("tickets", 1)) / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match="it was cut short or altered"):
        hs.promote("tickets", registry=two)
    said: list[str] = []
    done = hs.promote("tickets", registry=two, force="the champion is broken", say=said.append)
    assert done.judgement is None and said[0].startswith("not measured: ")


def test_a_server_keeps_bundles_as_artefacts_and_each_machine_a_copy(
    good: Path, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's folder store goes through the same client as a server."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = (tmp_path / "mlruns").as_uri()
    first = hs.register(good, "tickets", alias="champion", tags={"by": "mail"}, registry=uri)
    hs.register(bad, "tickets", alias="challenger", registry=uri)
    assert (first.version, first.aliases, first.tags) == (1, ("champion",), {"by": "mail"})
    there = Registry(uri)
    run = there.client.get_run(there.client.get_model_version("tickets", "1").run_id)
    assert run.info.status == "FINISHED"
    copy = there.fetch(first)
    assert copy == tmp_path / "cache" / "headstart" / "registry" / first.sha256
    assert hs.load(copy).predict(["refund my card"]) == hs.load(good).predict(["refund my card"])
    inode = (copy / "bundle.json").stat().st_ino
    assert there.fetch(first) == copy and (copy / "bundle.json").stat().st_ino == inode, "it is brought once"
    with pytest.raises(GateError):
        hs.promote("tickets", registry=uri)
    hs.promote("tickets", registry=uri, force="for the test")
    assert hs.rollback("tickets", registry=uri).version == 1
