"""The registry of models in MLflow: a package becomes a version, and aliases point to versions.

Versions are immutable. The package's digest is recorded with the version, so that a package that
was altered in its storage is refused when the version is loaded. Aliases move through the history
only (`alias_history.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from eagleray.core.errors import (
    EaglerayError,
    InputError,
    UnknownVersionError,
    unknown_alias,
)
from eagleray.core.limits import MAX_FILES, MAX_MANIFEST_BYTES
from eagleray.core.names import require_alias
from eagleray.core.settings import Settings, read_settings
from eagleray.database.store import open_database
from eagleray.evaluation.predictions import ImagePredictions
from eagleray.evaluation.record import EvaluationRecord
from eagleray.inference.latency import Latency
from eagleray.models.package import (
    MANIFEST_FILE,
    ModelManifest,
    ModelPackage,
    read_manifest,
    read_package,
)
from eagleray.models.package_files import require_sizes
from eagleray.registry.alias_history import Action, AliasChange, VersionHistory
from eagleray.registry.artifacts import RunArtifacts
from eagleray.registry.compatibility import ModelInterface, describe_differences
from eagleray.registry.evaluations import read_evaluations, read_predictions, write_evaluation
from eagleray.registry.mlflow_models import MlflowModels, all_pages
from eagleray.registry.model_folder import write_model_folder
from eagleray.registry.tracking import (
    EXPERIMENT,
    PARENT_TAG,
    TrackedRun,
    connect,
    registry_errors,
)
from eagleray.registry.versions import (
    DID_NOT_LEARN_TAG,
    DIGEST_TAG,
    MAX_TAG_LENGTH,
    MODEL_ARTIFACT,
    ModelVersion,
    alias_numbers,
    latency_tag,
    make_version,
    package_tags,
)

__all__ = ["ModelVersion", "Registry"]


class Registry:
    """The registered models of an organisation.

    Args:
        settings: The settings that name the MLflow; None reads the environment.

    Attributes:
        settings: The settings.
        client: MLflow's client.
        artifacts: The artifacts of MLflow's runs.
        models: MLflow's models, versions and aliases.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or read_settings()
        self.client: Any = connect(self.settings)
        self.artifacts = RunArtifacts(self.settings, self.client)
        self.models = MlflowModels(self.settings, self.client, self.artifacts)

    @cached_property
    def history(self) -> VersionHistory:
        """The history of all aliases; its database is opened when it is first needed.

        Raises:
            UserError: If the database does not answer.
        """
        return VersionHistory(open_database(self.settings), self.models)

    # --- registration ---

    def start_run(
        self,
        name: str,
        *,
        run_id: str | None = None,
        experiment: str | None = None,
        tags: Mapping[str, str] = MappingProxyType({}),
        samples_system: bool = False,
    ) -> TrackedRun:
        """Start an MLflow run, or resume one.

        Args:
            name: Name of a new run.
            run_id: ID of a run to resume; None starts a new run.
            experiment: Experiment of a new run; None takes the default.
            tags: Tags of a new run.
            samples_system: Whether MLflow samples the use of this machine while the run lasts.

        Raises:
            InputError: If the experiment is deleted.
        """
        return TrackedRun(
            self.settings,
            self.client,
            name,
            run_id=run_id,
            experiment=experiment or EXPERIMENT,
            tags=tags,
            samples_system=samples_system,
        )

    def end_interrupted_run(self, run_id: str | None) -> None:
        """Mark a run as killed that nothing has ended, because its process was killed.

        A run that MLflow no longer knows has nothing to end.
        """
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return
        with registry_errors(self.settings):
            try:
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_terminated(run_id, "KILLED")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise

    def child_runs(self, run: TrackedRun) -> dict[str, str]:
        """Return the IDs of a run's children by their names."""
        with registry_errors(self.settings):
            experiment = self.client.get_run(run.run_id).info.experiment_id
            found = all_pages(
                self.client.search_runs,
                experiment_ids=[experiment],
                filter_string=f"tags.`{PARENT_TAG}` = '{run.run_id}'",
            )
        return {child.info.run_name: child.info.run_id for child in found}

    def register(
        self,
        package: ModelPackage,
        *,
        run: TrackedRun | None = None,
        alias: str | None = None,
        force: bool = False,
    ) -> ModelVersion:
        """Make a package the next version of the model that it names.

        Args:
            package: The model package.
            run: The run that made the package; None starts one for the registration.
            alias: An alias to point to the new version.
            force: Move the alias from a model of another task, labels or input too.

        Raises:
            InputError: If the alias points to a model of another task, labels or input; nothing is
                registered.
        """
        if alias is not None:
            require_alias(alias)
            if not force:
                self.require_compatible(package.manifest.name, package.manifest, alias)
        if run is None:
            tags = {"eagleray.kind": "register"}
            with self.start_run(f"register {package.manifest.name}", tags=tags) as own_run:
                own_run.log_metrics(package.manifest.metrics)
                return self.register(package, run=own_run, alias=alias, force=True)
        name = package.manifest.name
        with registry_errors(self.settings):
            with tempfile.TemporaryDirectory(prefix="eagleray-") as folder:
                tags = write_model_folder(package, f"{folder}/model", run_id=run.run_id)
                self.client.log_artifacts(run.run_id, f"{folder}/model", MODEL_ARTIFACT)
            run.set_tags(tags)
            if name not in self.models.names():
                self.client.create_registered_model(name)
            created = self.client.create_model_version(
                name,
                source=f"{run.artifact_uri}/{MODEL_ARTIFACT}",
                run_id=run.run_id,
                tags=package_tags(package),
            )
        if alias is not None:
            self.set_alias(name, alias, int(created.version), action="register", force=True)
        return self.get(name, version=int(created.version))

    def version_of_run(self, run: TrackedRun, name: str) -> ModelVersion | None:
        """Return the version of a model that a run has registered, if it has.

        A run keeps one package. Before a resumed run registers its package it must ask, as
        registering again would overwrite the files of the existing version.
        """
        found = self.all_versions(filter_string=f"run_id = '{run.run_id}'")
        return next((version for version in found if version.name == name), None)

    def version_of_package(self, digest: str) -> ModelVersion | None:
        """Return a version with this package, if the registry has one."""
        found = self.all_versions(filter_string=f"tag.`{DIGEST_TAG}` = '{digest}'")
        return found[0] if found else None

    # --- versions ---

    def get(
        self, name: str, *, version: int | None = None, alias: str | None = None
    ) -> ModelVersion:
        """Return a version by number or alias.

        Raises:
            UnknownNameError: If there is no such model or alias.
            UnknownVersionError: If there is no such version.
        """
        aliases = self.models.aliases(name)
        if alias is not None:
            if alias not in aliases:
                raise unknown_alias(name, alias, aliases)
            version = aliases[alias]
        found = self.models.find_version(name, version or 0)
        if found is None:
            versions = self.versions(name)
            newest = versions[0].version if versions else 0
            raise UnknownVersionError(
                f"Model {name!r} has no version {version}; the newest is {newest}."
            )
        return make_version(found, aliases)

    def names(self) -> list[str]:
        """Return the names of all models, sorted."""
        return self.models.names()

    def versions(self, name: str) -> list[ModelVersion]:
        """Return all versions of a model, newest first.

        Raises:
            UnknownNameError: If there is no such model.
        """
        aliases = self.models.aliases(name)
        found = self.models.search_versions(f"name = '{name}'")
        versions = [make_version(item, aliases) for item in found]
        return sorted(versions, key=lambda item: -item.version)

    def all_versions(self, *, filter_string: str = "") -> list[ModelVersion]:
        """Return the versions of all models, by name and newest first.

        Args:
            filter_string: A filter of MLflow's search; empty for all versions.
        """
        aliases = {model.name: alias_numbers(model) for model in self.models.all()}
        found = self.models.search_versions(filter_string)
        versions = [make_version(item, aliases.get(item.name, {})) for item in found]
        return sorted(versions, key=lambda item: (item.name, -item.version))

    def latest_versions(self) -> list[ModelVersion]:
        """Return the newest version of each model, by name, with one query."""
        latest = [
            make_version(
                max(model.latest_versions, key=lambda item: int(item.version)),
                alias_numbers(model),
            )
            for model in self.models.all()
            if model.latest_versions
        ]
        return sorted(latest, key=lambda item: item.name)

    def aliases(self) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
        """Query all models at once.

        Returns:
            The version of each alias of each model, and each model's newest version.
        """
        aliases, newest = {}, {}
        for model in self.models.all():
            aliases[model.name] = alias_numbers(model)
            numbers = [int(version.version) for version in model.latest_versions]
            newest[model.name] = max([*numbers, *aliases[model.name].values()], default=0)
        return aliases, newest

    def record_verdict(self, version: ModelVersion, did_not_learn: Sequence[str]) -> ModelVersion:
        """Record with a version and its run why its training did not learn.

        Args:
            version: The version.
            did_not_learn: Sentences; none if it did learn, and then nothing is recorded.
        """
        if not did_not_learn:
            return version
        text = "\n".join(did_not_learn)[:MAX_TAG_LENGTH]
        with registry_errors(self.settings):
            self.client.set_model_version_tag(
                version.name, str(version.version), DID_NOT_LEARN_TAG, text
            )
            if version.run_id is not None:
                self.client.set_tag(version.run_id, DID_NOT_LEARN_TAG, text)
        return dataclasses.replace(version, did_not_learn=tuple(did_not_learn))

    def record_latency(self, version: ModelVersion, latency: Latency) -> None:
        """Keep a measurement with a version, replacing an earlier one of the same machine."""
        with registry_errors(self.settings):
            self.client.set_model_version_tag(
                version.name, str(version.version), latency_tag(latency), latency.model_dump_json()
            )

    # --- packages ---

    def load(self, version: ModelVersion) -> ModelPackage:
        """Fetch and verify a version's package.

        Raises:
            PackageError: If it is not the package that was registered.
        """
        with self.location(version) as folder:
            return read_package(folder, expected_digest=version.digest or None)

    @contextlib.contextmanager
    def location(self, version: ModelVersion) -> Iterator[str]:
        """Yield a folder or URI with a version's package, which may be a downloaded copy.

        Raises:
            PackageError: If a package behind a server is not the registered one, or too large.
        """
        if self.artifacts.is_behind_server(version.source):
            architecture = self.manifest(version).architecture
            sizes = self.artifacts.sizes(version.source, limit=2 * MAX_FILES)
            require_sizes(version.reference, sizes, architecture)
        with self.artifacts.accessible(version.source) as folder:
            yield folder

    def manifest(self, version: ModelVersion) -> ModelManifest:
        """Fetch the manifest of a version's package, without its weights.

        Raises:
            PackageError: If it is not that of the registered package.
        """
        uri = f"{version.source}/{MANIFEST_FILE}"
        with self.artifacts.accessible(uri, max_bytes=MAX_MANIFEST_BYTES) as file:
            folder = file.removesuffix(f"/{MANIFEST_FILE}")
            return read_manifest(folder, expected_digest=version.digest or None)

    # --- evaluations ---

    def record_evaluation(
        self,
        version: ModelVersion,
        record: EvaluationRecord,
        predictions: ImagePredictions | None = None,
    ) -> None:
        """Keep an evaluation with the version's run, replacing one on the same images.

        Args:
            version: The version.
            record: The record of the evaluation.
            predictions: The predictions, which are kept too unless they are large.

        Raises:
            InputError: If it is of another package, or the version has no run.
        """
        write_evaluation(self.artifacts, version, record, predictions)

    def predictions(self, version: ModelVersion, data_digest: str) -> ImagePredictions | None:
        """Return the predictions of an evaluation, if they were kept.

        Raises:
            InputError: If they cannot be read.
        """
        task = self.manifest(version).task
        return read_predictions(self.artifacts, version, data_digest, task)

    def evaluations(self, version: ModelVersion) -> list[EvaluationRecord]:
        """Return the evaluations of a version, newest first.

        Raises:
            InputError: If one of them cannot be read.
        """
        return read_evaluations(self.artifacts, version)

    # --- aliases and deletion, through the history ---

    def alias_target(self, name: str, alias: str) -> int | None:
        """Return the version that an alias points to, if any."""
        return self.models.alias_target(name, alias)

    def set_alias(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        action: Action = "set",
        actor: str | None = None,
        reason: str = "",
        force: bool = False,
        evidence: Mapping[str, Any] | None = None,
    ) -> AliasChange:
        """Point an alias to a version, whatever its metrics are.

        Args:
            name: The model's name.
            alias: The alias; it need not exist.
            version: The version's number.
            action: The kind of change, for the history.
            actor: The user who makes the change; None takes the settings' user.
            reason: The user's reason, for the history.
            force: Move the alias from a model of another task, labels or input too.
            evidence: The figures that the change is based on, for the history.

        Raises:
            InputError: If the alias is not a valid name, or points to a model of another task,
                labels or input.
            UnknownVersionError: If there is no such version.
        """
        require_alias(alias)
        found = self.get(name, version=version)
        if not force:
            self.require_compatible(name, self.manifest(found), alias)
        actor = actor or self.settings.actor
        with self.history.lock(name) as locked:
            return locked.move(
                alias, version, action=action, actor=actor, reason=reason, evidence=evidence
            )

    def require_compatible(self, name: str, model: ModelInterface, alias: str) -> None:
        """Refuse a model that would surprise the callers of an alias.

        Args:
            name: The model's name.
            model: The model.
            alias: The alias that is to point to it.

        Raises:
            InputError: If the alias points to a model of another task, labels or input.
        """
        differences = self.differences(name, model, alias)
        if differences:
            raise InputError(
                f"{name}@{alias} points to another kind of model, and its callers would notice: "
                f"{'; '.join(differences)}. Use --force to move it, or name another alias."
            )

    def differences(self, name: str, model: ModelInterface, alias: str) -> tuple[str, ...]:
        """Return what callers of an alias would notice if it pointed to a model, as phrases.

        There are none if the alias is unset, or the files of its version are lost.
        """
        current = self.alias_target(name, alias) if name in self.models.names() else None
        if current is None:
            return ()
        try:
            before = self.manifest(self.get(name, version=current))
        except EaglerayError:
            return ()
        return describe_differences(before, model)

    def was_registered_as(self, version: ModelVersion, alias: str) -> bool:
        """Whether an alias was pointed to a version by its registration, wherever it is now."""
        changes = self.history.changes(version.name, alias)
        return any(
            item.version == version.version and item.action == "register" for item in changes
        )

    def delete(
        self, name: str, version: int, *, actor: str | None = None, reason: str = ""
    ) -> AliasChange:
        """Delete a version, and its package if Eagleray has registered it.

        Raises:
            InputError: If an alias points to the version.
        """
        with self.history.lock(name) as locked:
            found = self.get(name, version=version)
            self.require_unused(found)
            files = self._own_files(found)
            actor = actor or self.settings.actor
            return locked.delete(version, actor=actor, reason=reason, files=files)

    def require_unused(self, version: ModelVersion) -> None:
        """Refuse a version that an alias points to.

        Raises:
            InputError: If an alias points to the version.
        """
        if version.aliases:
            raise InputError(
                f"{version.name}@{version.aliases[0]} points to {version.reference}, which is "
                "therefore not deleted; point the alias to another version first."
            )

    def _own_files(self, version: ModelVersion) -> str | None:
        """Return the run's folder with a version's package, if no other version uses it."""
        if version.run_id is None or not version.digest:
            return None
        folder = version.run_folder
        if folder != self.artifacts.folder(version.run_id):
            return None
        versions = self.models.search_versions(f"run_id = '{version.run_id}'")
        users = [item for item in versions if make_version(item, {}).source == version.source]
        return folder if len(users) == 1 else None
