"""Versions that are removed, and those that have to stay."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

import headstart as hs
from headstart.cli import run
from headstart.errors import BundleError, RegistryError
from headstart.registry.place import Registry


@pytest.fixture(scope="module")
def whole(good: Path, empty_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six versions of tickets: 1, 2 and 3 were made champion, 4 is the challenger."""
    registry = tmp_path_factory.mktemp("six") / "registry"
    shutil.copytree(empty_registry, registry)
    for _ in range(6):
        hs.register(good, "tickets", registry=registry)
    for version in (1, 2, 3):
        hs.promote("tickets", version, registry=registry, force="for the test")
    Registry(registry).point("tickets", "challenger", 4)
    return registry


@pytest.fixture
def six(whole: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    shutil.copytree(whole, tmp_path / "registry")
    return tmp_path / "registry"


def numbers(registry: Path) -> list[int]:
    return [version.version for version in hs.models("tickets", registry=registry)]


def folders(registry: Path) -> set[str]:
    return {path.name for path in (registry / "models" / "tickets").iterdir()}


def places(registry: Path) -> set[str]:
    return {Path(version.place).name for version in hs.models("tickets", registry=registry)}


def test_all_go_but_the_newest_and_what_is_needed(six: Path) -> None:
    said: list[str] = []
    size = hs.models("tickets", registry=six)[0].bytes
    done = hs.remove("tickets", keep=1, registry=six, say=said.append)
    assert (done.removed, done.left, done.bytes) == ((1, 5), 4, 2 * size)
    assert done.kept == {2: "rollback goes back to it", 3: "it is the champion", 4: "it is the challenger"}
    assert (done.back, done.moved, done.dry_run) == (2, False, False)
    assert numbers(six) == [6, 4, 3, 2] and folders(six) == places(six)
    assert (
        said[0] == f"removed version 1, {size / 1e6:.1f} MB" and said[2] == "kept version 2: rollback goes back to it"
    )
    assert hs.remove("tickets", keep=1, registry=six).removed == ()
    assert hs.rollback("tickets", registry=six).version == 2
    assert hs.remove("tickets", keep=0, registry=six).removed == (3, 6), "nothing to go back to any more"
    assert numbers(six) == [4, 2] and folders(six) == places(six)


def test_a_dry_run_says_the_same_and_changes_nothing(six: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in six.rglob("*")}
    would = hs.remove("tickets", keep=2, registry=six, dry_run=True)
    assert {path: path.stat().st_mtime_ns for path in six.rglob("*")} == before
    done = hs.remove("tickets", keep=2, registry=six)
    assert would.to_json() == {**done.to_json(), "dry_run": True} and would.removed == (1,)


def test_versions_go_by_number_and_their_numbers_are_not_given_again(six: Path, good: Path) -> None:
    said: list[str] = []
    done = hs.remove("tickets", [6, "2"], registry=six, say=said.append)
    assert (done.removed, done.kept, done.back, done.moved) == ((2, 6), {}, 1, True)
    assert said[-1] == "rollback goes back to version 1 from now on"
    assert hs.remove("tickets", [1], registry=six).back is None
    assert hs.register(good, "tickets", registry=six).version == 7
    with pytest.raises(RegistryError, match="no version of 'tickets' was champion before version 3"):
        hs.rollback("tickets", registry=six)
    assert folders(six) == places(six)


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        ([3], "version 3 of 'tickets' is not removed: it is the champion; promote another one first"),
        (["challenger"], "version 4 .* it is the challenger; promote it, or register another one with --alias"),
        ([1, 5], "version 5 of 'tickets' is not removed: it has the alias 'blue'; take the alias away first"),
        ([1, 9], "'tickets' has no version '9' in .*: versions 1, 2, 3, 4, 5, 6"),
        ([], "expected either numbers of versions to remove, such as 3, or --keep"),
    ],
)
def test_what_has_to_stay_stays_and_so_do_those_that_were_named_beside_it(
    six: Path, which: list[int | str], sentence: str
) -> None:
    Registry(six).point("tickets", "blue", 5)
    with pytest.raises(RegistryError, match=sentence):
        hs.remove("tickets", which, registry=six)
    assert numbers(six) == [6, 5, 4, 3, 2, 1] and folders(six) == places(six)


def test_how_many_are_kept_is_checked(six: Path) -> None:
    with pytest.raises(RegistryError, match="expected --keep of 0 or more, received -1"):
        hs.remove("tickets", keep=-1, registry=six)
    with pytest.raises(RegistryError, match="expected either numbers"):
        hs.remove("tickets", [1], keep=1, registry=six)
    with pytest.raises(RegistryError, match=r"there is no model 'ticket' in .*: did you mean 'tickets'"):
        hs.remove("ticket", keep=1, registry=six)


def test_what_a_process_reads_is_not_removed_before_it_has_ended(six: Path) -> None:
    place = Registry(six)
    with place.using(place.version("tickets", 1)) as folder:
        done = hs.remove("tickets", keep=1, registry=six)
        assert done.removed == (5,) and done.kept[1] == "a process reads or serves it"
        with pytest.raises(RegistryError, match="1 of 'tickets' is not removed: a process reads or serves it; try"):
            hs.remove("tickets", [1], registry=six)
        assert hs.load(folder).predict(["refund my card"])
    version = place.version("tickets", 1)
    assert hs.remove("tickets", [1], registry=six).removed == (1,)
    with pytest.raises(BundleError), place.using(version):
        raise AssertionError


def test_a_version_that_is_being_measured_is_not_removed(six: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.registry import verbs

    judge, refused = verbs.gates.judge, []

    def slow(*args: object, **asked: object) -> object:
        with pytest.raises(RegistryError, match="a process reads or serves it") as caught:
            hs.remove("tickets", [6], registry=six)
        refused.append(caught)
        return judge(*args, **asked)  # type: ignore[arg-type]

    monkeypatch.setattr(verbs.gates, "judge", slow)
    assert hs.promote("tickets", 6, registry=six).version == 6
    assert len(refused) == 1


def test_a_damaged_version_can_be_removed(six: Path) -> None:
    place = Registry(six)
    (place.fetch(place.version("tickets", 5)) / "bundle.json").unlink()
    assert hs.remove("tickets", [5], registry=six).removed == (5,)
    assert folders(six) == places(six)


def test_nothing_outside_of_the_registry_is_removed(six: Path, good: Path) -> None:
    Registry(six).client.set_model_version_tag("tickets", "5", "headstart.place", str(good))
    with pytest.raises(BundleError, match="version 5 of 'tickets' has no place in"):
        hs.remove("tickets", [5], registry=six)
    assert (good / "bundle.json").is_file() and len(numbers(six)) == 6


def test_a_name_does_not_lead_to_other_folders(six: Path) -> None:
    (six / "orphan").mkdir()
    (six / ".pending-orphan").touch()
    with pytest.raises(RegistryError, match=r"'\.\.' cannot be the name of a model"):
        hs.remove("..", keep=1, registry=six)
    assert (six / "orphan").exists()


def test_files_that_cannot_be_removed_are_said_and_removed_later(six: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.registry import copies

    def broken(*args: object, **asked: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(copies.shutil, "rmtree", broken)
        with pytest.raises(RegistryError, match="cannot be written: Permission denied"):
            hs.remove("tickets", [1], registry=six)
    assert numbers(six) == [6, 5, 4, 3, 2] and len(folders(six)) == 7, "a folder too many, and its mark"
    hs.remove("tickets", [5], registry=six)
    assert folders(six) == places(six)


def test_a_server_that_serves_a_version_goes_on_and_lets_it_go_when_another_takes_over(six: Path) -> None:
    pytest.importorskip("starlette")
    from headstart.serve.following import Following
    from serving import Client, serving

    async def main() -> None:
        async with serving({}) as client:
            followed = Following(str(six), client.server.models, client.server.log, 60.0)
            await followed.start()
            await check(client, followed)
            followed.stop()

    async def check(client: Client, followed: Following) -> None:
        place = Registry(six)
        place.point("tickets", "champion", 6)  # the server has not looked yet
        place.keep_stack("tickets", "6")
        done = await asyncio.to_thread(hs.remove, "tickets", keep=0, registry=six)
        assert done.removed == (1, 2, 5) and done.kept[3] == "a process reads or serves it"
        assert len(await client.predict("tickets", ["refund my card"])) == 1
        assert (await client.post("/v2/repository/models/tickets/load")).status_code == 200, "its files are there"
        await followed.look()
        assert followed.live == {"tickets": 6}
        done = await asyncio.to_thread(hs.remove, "tickets", keep=0, registry=six)
        assert done.removed == (3,)
        assert len(await client.predict("tickets", ["refund my card"])) == 1

    asyncio.run(main())


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_of_the_registry_that_is_served_as_such_is_not_removed(six: Path, linked: bool) -> None:
    pytest.importorskip("starlette")
    from serving import Client, serving

    place = Registry(six)
    folder = place.fetch(place.version("tickets", 5))
    if linked:
        (six.parent / "link").symlink_to(folder)
        folder = six.parent / "link"

    async def refused() -> None:
        with pytest.raises(RegistryError, match=r"version 5 .* is not removed: a process reads or serves it"):
            await asyncio.to_thread(hs.remove, "tickets", [5], registry=six)

    async def check(client: Client) -> None:
        await refused()
        await client.post("/v2/repository/models/mine/load")
        await refused()
        await client.post("/v2/repository/models/mine/unload")
        await refused()  # since it may be loaded again
        assert (await client.post("/v2/repository/models/mine/load")).status_code == 200
        assert len(await client.predict("mine", ["refund my card"])) == 1

    async def main() -> None:
        async with serving({"mine": folder}) as client:
            await check(client)
        done = await asyncio.to_thread(hs.remove, "tickets", [5], registry=six)
        assert done.removed == (5,)

    asyncio.run(main())


def test_a_folder_that_a_server_does_not_load_any_more_may_be_removed(six: Path) -> None:
    pytest.importorskip("starlette")
    from serving import serving

    place = Registry(six)
    link = six.parent / "link"
    link.symlink_to(place.fetch(place.version("tickets", 5)))

    async def main() -> None:
        async with serving({"mine": link}) as client:
            link.unlink()
            link.symlink_to(place.fetch(place.version("tickets", 6)))
            assert (await client.post("/v2/repository/models/mine/load")).status_code == 200
            done = await asyncio.to_thread(hs.remove, "tickets", [5], registry=six)
            assert done.removed == (5,)
            with pytest.raises(RegistryError, match="a process reads or serves it"):
                await asyncio.to_thread(hs.remove, "tickets", [6], registry=six)

    asyncio.run(main())


def test_a_file_system_without_locks_does_not_keep_a_folder_from_being_served(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("starlette")
    import fcntl

    from serving import Client, ask

    def unsupported(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    async def check(client: Client) -> None:
        assert len(await client.predict("mine", ["refund my card"])) == 1

    monkeypatch.setattr(fcntl, "flock", unsupported)
    ask({"mine": good}, check)


@pytest.fixture
def server(good: Path, again: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """Two versions on what goes through the same client as an MLflow server, and where the files of the first lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = (tmp_path / "mlruns").as_uri()
    first = hs.register(good, "tickets", registry=uri)
    hs.register(again, "tickets", alias="champion", registry=uri)
    (files,) = (tmp_path / "mlruns").glob(f"*/{first.place}/artifacts/bundle")
    return uri, files


def test_an_mlflow_server_lists_it_no_more_and_its_files_go(server: tuple[str, Path]) -> None:
    uri, files = server
    first = hs.models("tickets", registry=uri)[1]
    done = hs.remove("tickets", keep=1, registry=uri)
    assert (done.removed, done.stayed) == ((1,), {})
    assert [version.version for version in hs.models(registry=uri)] == [2]
    place = Registry(uri)
    assert not files.exists() and place.client.get_run(first.place).info.lifecycle_stage == "deleted"
    assert hs.load(place.fetch(place.version("tickets", 2)), report=False)


def test_files_that_an_mlflow_server_does_not_give_up_are_said(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def refused(*args: object) -> None:
        raise NotImplementedError("this store removes nothing")

    uri, files = server
    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", refused)
    first, said = hs.models("tickets", registry=uri)[1], list[str]()
    done = hs.remove("tickets", [1], registry=uri, say=said.append)
    assert done.to_json()["stayed"] == {"1": "this store removes nothing"} and files.exists()
    assert said[1:] == ["version 1 is not listed any more, and its files are still there: this store removes nothing"]
    assert Registry(uri).client.get_run(first.place).info.lifecycle_stage == "deleted"


def test_a_run_of_somebody_else_keeps_its_files(server: tuple[str, Path], tmp_path: Path) -> None:
    uri, _ = server
    client = Registry(uri).client
    other = client.create_run(client.create_experiment("theirs")).info.run_id
    (tmp_path / "bundle.txt").write_text("theirs")
    client.log_artifact(other, str(tmp_path / "bundle.txt"), "bundle")
    client.set_model_version_tag("tickets", "1", "headstart.place", other)
    done = hs.remove("tickets", [1], registry=uri)
    assert done.stayed[1].startswith("the server says that they are at file:")
    assert [each.path for each in client.list_artifacts(other, "bundle")] == ["bundle/bundle.txt"]


@pytest.mark.parametrize("server_uri", ["http://127.0.0.1:9", "https://host"])
def test_a_server_cannot_have_folders_of_this_machine_removed(
    server: tuple[str, Path], server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, files = server
    place = Registry(uri)
    run = place.client.get_run(place.version("tickets", 1).place).info
    place.uri = server_uri
    assert "where they are not removed from here" in place._erase(run) and files.exists()


@pytest.mark.parametrize("where", ["folder", "server"])
def test_files_that_another_version_has_too_stay(
    where: str, six: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow copies a version from model to model with all of its tags."""
    uri = str(six) if where == "folder" else server[0]
    place = Registry(uri)
    found = place.version("tickets", 1)
    entry = place.client.get_model_version("tickets", "1")
    place.client.create_registered_model("copies")
    place.client.create_model_version("copies", entry.source, run_id=entry.run_id, tags=entry.tags)
    done = hs.remove("tickets", [1], registry=uri)
    assert (done.removed, done.stayed) == ((1,), {1: "another version has the same files"})
    copied = place.version("copies", 1)
    assert copied.place == found.place and hs.load(place.fetch(copied), report=False)
    assert hs.remove("copies", [1], registry=uri).stayed == {}, "the last one takes them along"
    assert not (six / found.place).exists() and (where == "folder" or not server[1].exists())


def test_the_command_removes_and_says_what(
    six: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(six.parent)
    size = f"{hs.models(registry=six)[0].bytes / 1e6:.1f} MB"
    assert run(["remove", "tickets", "--keep", "1", "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert f"would remove version 1, {size}" in err and "done: 2 versions of 'tickets' would go" in err
    assert run(["remove", "tickets", "5", "--json"]) == 0
    captured = capsys.readouterr()
    assert f"done: 1 version of 'tickets' removed, {size}; 5 left" in captured.err
    assert json.loads(captured.out)["removed"] == [5]
    assert run(["remove", "tickets", "3"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: version 3 of 'tickets' is not removed: it is the champion")
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert run(["remove", "tickets"]) == 2
    assert "expected either numbers of versions to remove" in capsys.readouterr().err


@pytest.mark.parametrize("keep", [0, 2])
def test_versions_of_one_model_do_not_touch_those_of_another(six: Path, good: Path, keep: int) -> None:
    hs.register(good, "moods", registry=six)
    hs.remove("tickets", keep=keep, registry=six)
    (version,) = hs.models("moods", registry=six)
    assert hs.load(Registry(six).fetch(version), report=False)
