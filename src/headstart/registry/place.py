"""Where a registry is: a folder with a database and the bundles, or an MLflow server that keeps both.

    registry                     a folder: registry/registry.db, and the bundles under registry/models/NAME
    sqlite:///runs/mlflow.db     a database of one's own, the bundles beside it under runs/models/NAME
    https://host:5000            an MLflow server; the bundles are artefacts of runs there

Several processes may use a registry at once. In a folder, writers take turns by locks on files that the system lets go
when a process ends; a server settles it by its own transactions.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headstart import bundle as bundles
from headstart.errors import BundleError, HeadstartError, MissingExtra, RegistryError, did_you_mean
from headstart.registry import copies, records
from headstart.registry.records import Version
from headstart.stores import first_line, prepare, shown

DATABASE = "registry.db"
EXPERIMENT = "headstart-registry"
ARTEFACTS = "bundle"
PAGE = 100


class Registry:
    """One registry. create: make it where it is not there yet, a folder only.

    Raises RegistryError for a place that is no registry or cannot be reached, MissingExtra without MLflow.
    """

    def __init__(self, uri: str | Path, *, create: bool = False) -> None:
        if find_spec("mlflow") is None or find_spec("sqlalchemy") is None:
            raise MissingExtra("mlflow-skinny and sqlalchemy", "registry", "a registry of models")
        self.uri = str(uri)
        self.shown = shown(self.uri)
        database = _database(self.uri)
        self.folder = None if database is None else database.parent
        prepare()
        if database is not None:
            self._make(database, create)
        target = self.uri if database is None else f"sqlite:///{database}"
        with self._told("cannot be opened"):
            self.client = import_module("mlflow").MlflowClient(tracking_uri=target, registry_uri=target)
            self.client.search_registered_models(max_results=1)

    def _make(self, database: Path, create: bool) -> None:
        if database.is_file():
            return
        if database.parent.exists() and not database.parent.is_dir():
            raise RegistryError(f"expected a folder as --registry, and '{self.shown}' is a file")
        if not create:
            raise RegistryError(
                f"there is no registry at '{self.shown}': 'headstart register BUNDLE --name NAME' makes one; if it is "
                f"elsewhere, pass --registry"
            )
        with self._told("cannot be made"), copies.locked(database.parent / ".lock"):
            if not database.is_file():
                _create(database)

    def lock(self) -> AbstractContextManager[None]:
        """Inside, no other process changes an alias. A server has no locks: there it holds nothing."""
        return nullcontext() if self.folder is None else copies.locked(self.folder / ".lock")

    # What is there

    def versions(self, name: str | None = None) -> list[Version]:
        """Every version of every model, or of one: by name, the newest first. Raises RegistryError for no such name."""
        with self._told("cannot be read"):
            known = {model.name: model for model in _pages(self.client.search_registered_models)}
            if name is not None and name not in known:
                raise self._unknown(name, known)
            chosen = f"name = '{name}'" if name is not None else None
            found = []
            for entry in _pages(self.client.search_model_versions, filter_string=chosen):
                aliases = known[entry.name].aliases if entry.name in known else {}
                version = records.read(entry, [a for a, number in aliases.items() if int(number) == int(entry.version)])
                found += [version] if version is not None else []
        return sorted(found, key=lambda version: (version.name, -version.version))

    def version(self, name: str, which: str | int) -> Version:
        """A version by number or alias. Raises RegistryError for a name, number or alias that is not there."""
        versions = self.versions(name)
        for version in versions:
            if str(version.version) == str(which) or which in version.aliases:
                return version
        numbers = ", ".join(str(version.version) for version in reversed(versions)) or "none"
        aliases = sorted(alias for version in versions for alias in version.aliases)
        raise RegistryError(
            f"'{name}' has no version '{which}' in '{self.shown}': versions {numbers}; aliases "
            f"{', '.join(aliases) or 'none'}"
        )

    def champions(self) -> dict[str, int]:
        """The version that serves, of every model that has one. A single question, fit for asking often."""
        with self._told("cannot be read"):
            models = list(_pages(self.client.search_registered_models))
        return {
            model.name: int(model.aliases[records.CHAMPION]) for model in models if records.CHAMPION in model.aliases
        }

    def holder(self, name: str, alias: str) -> int | None:
        """The version that has an alias; None for none, or for no such model."""
        with self._told("cannot be read"):
            models = {model.name: model for model in _pages(self.client.search_registered_models)}
        found = models[name].aliases.get(alias) if name in models else None
        return None if found is None else int(found)

    def stack(self, name: str) -> str:
        """What `keep_stack` kept, else an empty text. Raises RegistryError for no such name."""
        with self._told("cannot be read"):
            known = {model.name: model for model in _pages(self.client.search_registered_models)}
            if name not in known:
                raise self._unknown(name, known)
            return str(known[name].tags.get(f"{records.OWN}champions", ""))

    def _unknown(self, name: str, known: Mapping[str, Any]) -> RegistryError:
        return RegistryError(f"there is no model '{name}' in '{self.shown}': {did_you_mean(name, known)}")

    # Changes

    def add(
        self,
        name: str,
        bundle: bundles.Bundle,
        folder: Path,
        tags: Mapping[str, str],
        then: Callable[[Version], None] = lambda version: None,
    ) -> Version:
        """Copy a bundle in, prove the copy, list it as the next version: all of it or nothing, killed at any moment.

        folder: where the bundle lies. then: told the version before anybody may remove it.
        Raises BundleError, ProofError or RegistryError; then nothing is listed.
        """
        with self.turn():
            if self.folder is None:
                version = self._upload(name, bundle, folder, tags)
            else:
                place = f"models/{name}/{uuid.uuid4().hex}"
                target = self.folder / place
                self.sweep(name)
                with copies.pending(target):
                    copies.copy(folder, target)
                    told = records.describe(bundle, target, place, copies.size(target))
                    version = self._list(name, place, {**tags, **told}, None)
            then(version)
        return version

    def turn(self) -> AbstractContextManager[None]:
        """Inside, no other process lists or removes versions, in a folder. To be taken before `lock`."""
        return nullcontext() if self.folder is None else copies.locked(self.folder / ".register.lock")

    def sweep(self, name: str) -> None:
        """Remove what processes that were killed left of a model's folders; within `turn`."""
        if self.folder is not None:
            known = {Path(version.place).name for version in self.versions() if version.name == name}
            copies.sweep(self.folder / "models" / name, known)

    def unlist(self, version: Version) -> None:
        """List a version no more; within `turn`, and `lock`. Then `discard`: killed between, a later turn does it."""
        if self.folder is not None and not self._shared(version):
            copies.mark(self._home(version))
        self._drop(version)

    def _shared(self, version: Version) -> bool:
        """Whether another version has the same files: MLflow's own programs can copy one from model to model."""
        own = (version.name, version.version)
        return any(each.place == version.place for each in self.versions() if (each.name, each.version) != own)

    def _drop(self, version: Version) -> None:
        with self._told("cannot be written"):
            self.client.delete_model_version(version.name, str(version.version))

    def discard(self, version: Version) -> str:
        """Remove the files of a version that is not listed any more; within `turn`. Why some stay, else an empty text.

        A server marks their run as deleted too, for its own cleaning.
        """
        with self._told("cannot be written"):
            if self._shared(version):
                return "another version has the same files"
            if self.folder is not None:
                copies.discard(self._home(version))
                return ""
            left = self._erase(self.client.get_run(version.place).info)
            self.client.delete_run(version.place)
        return left

    def _erase(self, run: Any) -> str:
        """Remove a bundle from a server's store of artefacts. Why it is still there, else an empty text."""
        local = re.match(r"https?:", self.uri) and re.match(r"file:|/|[a-zA-Z]:", run.artifact_uri)
        if local or self.client.get_experiment(run.experiment_id).name != EXPERIMENT:
            return f"the server says that they are at {shown(run.artifact_uri)}, where they are not removed from here"
        try:
            # MLflow's client cannot do it. Its stores can, that of a server which keeps artefacts itself among them.
            stores = import_module("mlflow.store.artifact.artifact_repository_registry")
            stores.get_artifact_repository(run.artifact_uri, self.uri).delete_artifacts(ARTEFACTS)
        except Exception as error:  # each kind of store has errors of its own, and some cannot remove at all
            return first_line(error)
        return ""

    def unused(self, version: Version) -> AbstractContextManager[bool]:
        """Whether no process reads a version's bundle (`using`) or serves it; nobody begins to until the end.

        Of a server that is not known, and everything is taken as unused.
        """
        return nullcontext(True) if self.folder is None else copies.unused(self._home(version))

    def _upload(self, name: str, bundle: bundles.Bundle, folder: Path, tags: Mapping[str, str]) -> Version:
        with tempfile.TemporaryDirectory() as made, self._told("cannot be written"):
            copies.copy(folder, Path(made) / ARTEFACTS)
            known = self.client.get_experiment_by_name(EXPERIMENT)
            experiment = known.experiment_id if known else self.client.create_experiment(EXPERIMENT)
            run = self.client.create_run(experiment, run_name=name)
            try:
                self.client.log_artifacts(run.info.run_id, str(Path(made) / ARTEFACTS), ARTEFACTS)
                self._download(run.info.run_id, Path(made) / "back")
                told = records.describe(bundle, Path(made) / "back", run.info.run_id, copies.size(Path(made) / "back"))
                source = f"{run.info.artifact_uri}/{ARTEFACTS}"
                version = self._list(name, source, {**tags, **told}, run.info.run_id)
            except BaseException:
                self.client.set_terminated(run.info.run_id, "FAILED")
                raise
            self.client.set_terminated(run.info.run_id, "FINISHED")
        return version

    def _list(self, name: str, source: str, tags: Mapping[str, str], run: str | None) -> Version:
        """The version appears with all of its tags at once: MLflow writes both in one transaction."""
        with self._told("cannot be written"):
            try:
                self.client.create_registered_model(name)
            except Exception:
                # It is there already, or the next line fails too and says why.
                self.client.get_registered_model(name)
            made = self.client.create_model_version(name, source, run_id=run, tags=dict(tags))
        version = records.read(made, ())
        assert version is not None
        return version

    def point(self, name: str, alias: str, version: int | None) -> None:
        """Give an alias to a version, taking it from any other; None takes it away."""
        with self._told("cannot be written"):
            if version is None:
                self.client.delete_registered_model_alias(name, alias)
            else:
                self.client.set_registered_model_alias(name, alias, str(version))

    def note(self, version: Version, key: str, text: str) -> None:
        """Keep a sentence about a version (`Version.notes`)."""
        with self._told("cannot be written"):
            self.client.set_model_version_tag(version.name, str(version.version), f"{records.OWN}{key}", text)

    def keep_stack(self, name: str, text: str) -> None:
        """Keep who served, of one model, for `stack`."""
        with self._told("cannot be written"):
            self.client.set_registered_model_tag(name, f"{records.OWN}champions", text)

    # Bundles

    def fetch(self, version: Version) -> Path:
        """The folder of a version's bundle, which stays as it is; from a server it is brought once and kept.

        Raises BundleError when it is not the bundle that was registered.
        """
        path = self._fetched(version) if self.folder is None else self._home(version)
        if not (path / "bundle.json").is_file() or records.digest(path) != version.sha256:
            raise BundleError(
                f"version {version.version} of '{version.name}' in '{self.shown}' is not the bundle that was "
                f"registered: its bundle.json is missing or altered; register it again"
            )
        return path

    @contextmanager
    def using(self, version: Version) -> Iterator[Path]:
        """The folder of a version's bundle, which nobody removes (`unused`) inside. Raises BundleError as `fetch`."""
        path = self.fetch(version)
        with copies.used(path):
            yield path

    def _home(self, version: Version) -> Path:
        """Where a bundle lies in the registry's own folder; never outside of it. Raises BundleError."""
        if not re.fullmatch(r"models/[A-Za-z0-9][A-Za-z0-9._-]*/[0-9a-f]{32}", version.place):
            raise BundleError(f"version {version.version} of '{version.name}' has no place in '{self.shown}'")
        assert self.folder is not None
        return self.folder / version.place

    def _fetched(self, version: Version) -> Path:
        """The copy of a server's bundle on this machine, under the digest of its content."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headstart" / "registry"
        path = base / version.sha256
        with copies.locked(base / ".lock"):
            if not path.is_dir():
                with tempfile.TemporaryDirectory() as made, self._told("cannot be read"):
                    self._download(version.place, Path(made) / "back")
                    copies.copy(Path(made) / "back", path)
        return path

    def _download(self, run: str, target: Path) -> None:
        """Bring a bundle from the server and prove it."""
        with tempfile.TemporaryDirectory() as made:
            got = self.client.download_artifacts(run, ARTEFACTS, made)
            shutil.move(got, target)
        bundles.load(target, report=False)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """MLflow's errors as one sentence, without passwords."""
        try:
            yield
        except HeadstartError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise RegistryError(f"the registry '{self.shown}' {what}: {reason}") from None


def _database(uri: str) -> Path | None:
    """The database of a registry on this machine; None for a server's address."""
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///")).absolute()
    if re.match(r"[a-z][a-z0-9+.-]+:", uri):
        return None
    return Path(uri).absolute() / DATABASE


def _create(database: Path) -> None:
    """An empty database; it appears when all of its tables are there."""
    part = database.with_name(f".part-{database.name}")
    for left in (part, part.with_name(f"{part.name}-journal")):
        left.unlink(missing_ok=True)
    store = import_module("mlflow.store.model_registry.sqlalchemy_store").SqlAlchemyStore(f"sqlite:///{part}")
    store.engine.dispose()
    part.rename(database)


def _pages(ask: Callable[..., Any], **asked: Any) -> Iterator[Any]:
    """The entries of all pages of an answer."""
    token = None
    while True:
        page = ask(max_results=PAGE, page_token=token, **asked)
        yield from page
        token = page.token
        if not token:
            return
