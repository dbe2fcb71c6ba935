"""Versions of models in MLflow: a package becomes a version, an alias points to one.

Versions are immutable. The package's digest is recorded with the version, so that files altered
behind the registry's back are refused when the version is loaded. Aliases move by way of the
history alone (`history.py`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from eagleray.core.errors import InputError, UnknownNameError, UnknownVersionError
from eagleray.core.json_limits import parse_json
from eagleray.core.limits import MAX_FILES, MAX_MANIFEST_BYTES, MAX_RECORD_BYTES, RECORD_JSON
from eagleray.core.names import require_alias
from eagleray.core.settings import Settings, read_settings
from eagleray.core.validation import first_validation_error
from eagleray.database.store import open_database
from eagleray.evaluation.record import EvaluationRecord
from eagleray.io import storage
from eagleray.models.package import (
    MANIFEST_FILE,
    ModelManifest,
    ModelPackage,
    read_manifest,
    read_package,
    write_package,
)
from eagleray.models.package_files import require_sizes
from eagleray.registry.alias_history import Action, AliasChange, VersionHistory
from eagleray.registry.artifacts import RunArtifacts
from eagleray.registry.tracking import TrackedRun, connect, registry_errors

__all__ = ["ModelVersion", "Registry"]

DIGEST_TAG = "eagleray.package_digest"
CONTRACT_TAG = "eagleray.contract_digest"
TASK_TAG = "eagleray.task"
ARCHITECTURE_TAG = "eagleray.architecture"
METRIC_TAG_PREFIX = "eagleray.metric."
PACKAGE_ARTIFACT = "package"
EVALUATIONS_ARTIFACT = "evaluations"

_MOST = 2**31 - 1  # the largest version number that every database can be asked for
_MAX_MODELS_AT_ONCE = 1000  # more a page no MLflow gives
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a registered model.

    Attributes:
        name: The model.
        version: Counts from 1.
        aliases: Names that point to it, sorted.
        created: Milliseconds since 1970.
        source: Where its package is.
        run_id: The MLflow run that made it, if any.
        digest: Of the package.
        task: What it answers.
        architecture: Name of its network.
        metrics: Its evaluation.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    created: int
    source: str
    run_id: str | None
    digest: str
    task: str
    architecture: str
    metrics: Mapping[str, float]

    @property
    def reference(self) -> str:
        """The name that loads exactly this version."""
        return f"{self.name}/{self.version}"


class Registry:
    """The models that this organisation has.

    Args:
        settings: Which MLflow; None reads the environment.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or read_settings()
        self.client: Any = connect(self.settings)
        self.artifacts = RunArtifacts(self.settings, self.client)

    @cached_property
    def history(self) -> VersionHistory:
        """Who moved which alias, when and why; its database is opened when it is first needed.

        Raises:
            UserError: The database does not answer.
        """
        return VersionHistory(open_database(self.settings), self)

    def start_run(self, name: str, *, run_id: str | None = None) -> TrackedRun:
        """Open an MLflow run beside the registry, or go on with one."""
        return TrackedRun(self.settings, self.client, name, run_id=run_id)

    def register(
        self,
        package: ModelPackage,
        *,
        run: TrackedRun | None = None,
        alias: str | None = None,
    ) -> ModelVersion:
        """Make a package the next version of the model that it names.

        Args:
            package: The model.
            run: The run that made it; None opens one for the registration itself.
            alias: Points to the new version at once.
        """
        if alias is not None:
            require_alias(alias)
        tags = _tags(package)
        if run is None:
            with self.start_run(f"register {package.manifest.name}") as own_run:
                own_run.log_metrics(package.manifest.metrics)
                return self.register(package, run=own_run, alias=alias)
        manifest = package.manifest
        with registry_errors(self.settings):
            with tempfile.TemporaryDirectory(prefix="eagleray-") as folder:
                write_package(package, folder)
                self.client.log_artifacts(run.run_id, folder, PACKAGE_ARTIFACT)
            if not self._exists(manifest.name):
                self.client.create_registered_model(manifest.name)
            created = self.client.create_model_version(
                manifest.name,
                source=f"{run.artifact_uri}/{PACKAGE_ARTIFACT}",
                run_id=run.run_id,
                tags=tags,
            )
        if alias is not None:
            self.set_alias(manifest.name, alias, int(created.version), action="register")
        return self.get(manifest.name, version=int(created.version))

    def version_of_run(self, run: TrackedRun, name: str) -> ModelVersion | None:
        """Return the version of a model that a run has registered, if it came that far.

        A run keeps one package. Whoever goes on with a run asks first: to register again would
        write over the files of the version that is there.
        """
        found = self.all_versions(filter_string=f"run_id = '{run.run_id}'")
        return next((version for version in found if version.name == name), None)

    def set_first_alias(self, version: ModelVersion, alias: str) -> ModelVersion:
        """Point an alias to a version as its registration does, unless that was done before.

        An alias that somebody has moved on since then stays where it is.
        """
        changes = self.history.changes(version.name, alias)
        done = any(
            item.version == version.version and item.action == "register" for item in changes
        )
        if not done:
            self.set_alias(version.name, alias, version.version, action="register")
        return self.get(version.name, version=version.version)

    def get(
        self, name: str, *, version: int | None = None, alias: str | None = None
    ) -> ModelVersion:
        """Look a version up by number or alias.

        Raises:
            UnknownNameError: No such model, version or alias.
        """
        from mlflow.exceptions import MlflowException

        aliases = self._aliases(name)
        if alias is not None:
            if alias not in aliases:
                raise UnknownNameError(f"alias of model {name!r}", alias, aliases)
            version = aliases[alias]
        with registry_errors(self.settings):
            try:
                found = self.client.get_model_version(name, str(min(version or 0, _MOST)))
            except MlflowException as error:
                if error.error_code not in _NOT_THERE:
                    raise
                found = None
        if found is None:
            versions = self.versions(name)
            newest = versions[0].version if versions else 0
            raise UnknownVersionError(
                f"Model {name!r} has no version {version}; the newest is {newest}."
            )
        return _as_version(found, aliases)

    def load(self, version: ModelVersion) -> ModelPackage:
        """Fetch and verify a version's package.

        Raises:
            PackageError: It is not what was registered.
        """
        with self.location(version) as folder:
            return read_package(folder, expected_digest=version.digest or None)

    @contextlib.contextmanager
    def location(self, version: ModelVersion) -> Iterator[str]:
        """Give a folder or URI that has a version's package, or a copy of it.

        Raises:
            PackageError: It is behind a server, and not what was registered or too large to be.
        """
        if self.artifacts.is_behind_server(version.source):
            architecture = self.manifest(version).architecture
            sizes = self.artifacts.sizes(version.source, limit=2 * MAX_FILES)
            require_sizes(version.reference, sizes, architecture)
        with self.artifacts.accessible(version.source) as folder:
            yield folder

    def manifest(self, version: ModelVersion) -> ModelManifest:
        """Fetch what a version's package says of itself, without its weights.

        Raises:
            PackageError: It is not what was registered.
        """
        uri = f"{version.source}/{MANIFEST_FILE}"
        with self.artifacts.accessible(uri, max_bytes=MAX_MANIFEST_BYTES) as file:
            folder = file.removesuffix(f"/{MANIFEST_FILE}")
            return read_manifest(folder, expected_digest=version.digest or None)

    def names(self) -> list[str]:
        """Return the names of all registered models, sorted."""
        return sorted(model.name for model in self._models())

    def aliases(self) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
        """Ask for all models at once.

        Returns:
            The version that each alias of each model points to, and each model's newest version.
        """
        aliases, newest = {}, {}
        for model in self._models():
            aliases[model.name] = _alias_numbers(model)
            numbers = [int(version.version) for version in model.latest_versions]
            newest[model.name] = max([*numbers, *aliases[model.name].values()], default=0)
        return aliases, newest

    def latest_versions(self) -> list[ModelVersion]:
        """Return the newest version of each model, by name, in one question."""
        newest = [
            _as_version(
                max(model.latest_versions, key=lambda item: int(item.version)),
                _alias_numbers(model),
            )
            for model in self._models()
            if model.latest_versions
        ]
        return sorted(newest, key=lambda item: item.name)

    def versions(self, name: str) -> list[ModelVersion]:
        """Return all versions of a model, newest first.

        Raises:
            UnknownNameError: No such model.
        """
        aliases = self._aliases(name)
        with registry_errors(self.settings):
            found = _all_pages(self.client.search_model_versions, filter_string=f"name = '{name}'")
        versions = [_as_version(item, aliases) for item in found]
        return sorted(versions, key=lambda item: -item.version)

    def all_versions(self, *, filter_string: str = "") -> list[ModelVersion]:
        """Return the versions of all models, by name and newest first.

        Args:
            filter_string: As MLflow reads it; empty for all.
        """
        aliases = {model.name: _alias_numbers(model) for model in self._models()}
        with registry_errors(self.settings):
            found = _all_pages(self.client.search_model_versions, filter_string=filter_string)
        versions = [_as_version(item, aliases.get(item.name, {})) for item in found]
        return sorted(versions, key=lambda item: (item.name, -item.version))

    # --- evaluations ---

    def record_evaluation(self, version: ModelVersion, record: EvaluationRecord) -> None:
        """Keep an evaluation with the version's run, in place of one on the same images.

        Raises:
            InputError: It is of another package, or the version came without a run.
        """
        if record.package_digest != version.digest:
            raise InputError(
                f"The evaluation is of package {record.package_digest[:12]}, and "
                f"{version.reference} is {version.digest[:12]}; evaluate {version.reference}."
            )
        if version.run_id is None:
            raise InputError(
                f"{version.reference} has no MLflow run that could keep its evaluations; register "
                "its package again."
            )
        name = f"{record.data_digest}-{record.package_digest}.json"
        text = record.model_dump_json(indent=2)
        self.artifacts.write(version.run_id, f"{EVALUATIONS_ARTIFACT}/{name}", text)

    def evaluations(self, version: ModelVersion) -> list[EvaluationRecord]:
        """Return the evaluations of a version, newest first.

        Raises:
            InputError: One cannot be read.
        """
        if version.run_id is None:
            return []
        records = []
        folder = f"{self.artifacts.folder(version.run_id)}/{EVALUATIONS_ARTIFACT}"
        for path in self.artifacts.names(version.run_id, EVALUATIONS_ARTIFACT):
            if not path.endswith(f"-{version.digest}.json"):
                continue
            try:
                content = self.artifacts.read(folder, storage.name_of(path), limit=MAX_RECORD_BYTES)
                parse_json(content, RECORD_JSON)
                records.append(EvaluationRecord.model_validate_json(content))
            except ValueError as error:
                fault = (
                    first_validation_error(error) if isinstance(error, ValidationError) else error
                )
                raise InputError(
                    f"{path} of run {version.run_id} is no evaluation ({fault}); remove it and "
                    f"evaluate {version.reference} again."
                ) from None
        return sorted(records, key=lambda record: record.created, reverse=True)

    # --- aliases and deletion, by way of the history ---

    def set_alias(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        action: Action = "set",
        who: str | None = None,
        reason: str = "",
    ) -> AliasChange:
        """Point an alias to a version, whatever its figures are.

        Args:
            name: Of the model.
            alias: Need not exist.
            version: Number.
            action: What the history calls it.
            who: None takes the settings' user.
            reason: For the history.

        Raises:
            InputError: The alias is not a valid name.
            UnknownVersionError: The version is not there.
        """
        require_alias(alias)
        self.get(name, version=version)
        who = who or self.settings.actor
        with self.history.lock(name) as locked:
            return locked.move(alias, version, action=action, who=who, reason=reason)

    def delete(
        self, name: str, version: int, *, who: str | None = None, reason: str = ""
    ) -> AliasChange:
        """Delete a version, and its package where it was registered by Eagleray.

        Raises:
            InputError: An alias points to it.
        """
        with self.history.lock(name) as locked:
            found = self.get(name, version=version)
            self.require_unused(found)
            files = self._own_files(found)
            return locked.delete(
                version, who=who or self.settings.actor, reason=reason, files=files
            )

    def require_unused(self, version: ModelVersion) -> None:
        """Refuse a version that an alias points to.

        Raises:
            InputError: With the alias.
        """
        if version.aliases:
            raise InputError(
                f"{version.reference} is {version.name}@{version.aliases[0]} and stays; point that "
                "elsewhere first."
            )

    def _own_files(self, version: ModelVersion) -> str | None:
        """Return the run's folder that holds a version's package, if nobody else needs it."""
        if version.run_id is None or not version.digest:
            return None
        folder, _, name = version.source.rpartition("/")
        with registry_errors(self.settings):
            run = self.client.get_run(version.run_id)
            query = f"run_id = '{version.run_id}'"
            users = _all_pages(self.client.search_model_versions, filter_string=query)
        others = [item for item in users if item.source == version.source]
        ours = folder == run.info.artifact_uri and name == PACKAGE_ARTIFACT and len(others) == 1
        return folder if ours else None

    # --- what the history asks of MLflow ---

    def alias_target(self, name: str, alias: str) -> int | None:
        """Return the version that an alias points to, if any."""
        return self._aliases(name).get(alias)

    def has_version(self, name: str, version: int) -> bool:
        """Whether a version is there."""
        from mlflow.exceptions import MlflowException

        with registry_errors(self.settings):
            try:
                self.client.get_model_version(name, str(version))
            except MlflowException as error:
                if error.error_code not in _NOT_THERE:
                    raise
                return False
        return True

    def point_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version; for the history alone, which knows of nothing else."""
        with registry_errors(self.settings):
            self.client.set_registered_model_alias(name, alias, str(version))

    def remove_version(self, name: str, version: int, files: str | None) -> None:
        """Remove a version, and its package from that folder; for the history alone."""
        if self.has_version(name, version):
            with registry_errors(self.settings):
                self.client.delete_model_version(name, str(version))
        if files is not None:
            self.artifacts.remove(files, PACKAGE_ARTIFACT)

    def _models(self) -> list[Any]:
        with registry_errors(self.settings):
            return _all_pages(self.client.search_registered_models, max_results=_MAX_MODELS_AT_ONCE)

    def _aliases(self, name: str) -> dict[str, int]:
        """Return the aliases of a model with their versions.

        Raises:
            UnknownNameError: No such model.
        """
        from mlflow.exceptions import MlflowException

        with registry_errors(self.settings):
            try:
                return _alias_numbers(self.client.get_registered_model(name))
            except MlflowException as error:
                if error.error_code not in _NOT_THERE:
                    raise
        raise UnknownNameError(
            "registered model", name, self.names(), hint="`eagleray models list` shows all."
        )

    def _exists(self, name: str) -> bool:
        return name in self.names()


def _all_pages(search: Any, **query: Any) -> list[Any]:
    """Collect every page of one of MLflow's searches."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **query)
        found += page
        token = page.token
        if not token:
            return found


def _tags(package: ModelPackage) -> dict[str, str]:
    manifest = package.manifest
    metrics = {METRIC_TAG_PREFIX + key: repr(value) for key, value in manifest.metrics.items()}
    return {
        DIGEST_TAG: package.digest,
        CONTRACT_TAG: manifest.contract_digest,
        TASK_TAG: manifest.task.name,
        ARCHITECTURE_TAG: manifest.architecture.name,
        **metrics,
    }


def _alias_numbers(model: Any) -> dict[str, int]:
    return {alias: int(version) for alias, version in dict(model.aliases).items()}


def _as_version(found: Any, aliases: Mapping[str, int]) -> ModelVersion:
    """Make a version of what MLflow says; its answers often lack the aliases."""
    tags = dict(found.tags or {})
    return ModelVersion(
        name=found.name,
        version=int(found.version),
        aliases=tuple(sorted(name for name, held in aliases.items() if held == int(found.version))),
        created=int(found.creation_timestamp),
        source=found.source,
        run_id=found.run_id or None,
        digest=tags.get(DIGEST_TAG, ""),
        task=tags.get(TASK_TAG, ""),
        architecture=tags.get(ARCHITECTURE_TAG, ""),
        metrics={
            key.removeprefix(METRIC_TAG_PREFIX): float(value)
            for key, value in tags.items()
            if key.startswith(METRIC_TAG_PREFIX)
        },
    )
