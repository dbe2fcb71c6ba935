"""Versions of models in MLflow: a package becomes a version, an alias points to one.

Versions are immutable. The package's digest is recorded with the version, so that files altered
behind the registry's back are refused when the version is loaded.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eagleray import storage
from eagleray.errors import InputError, UnknownNameError
from eagleray.evaluation.record import EvaluationRecord
from eagleray.models.package import ModelPackage, read_package, write_package
from eagleray.settings import Settings, read_settings
from eagleray.tracking import TrackedRun, connect, explain_failures

__all__ = ["ModelVersion", "Registry"]

DIGEST_TAG = "eagleray.package_digest"
CONTRACT_TAG = "eagleray.contract_digest"
TASK_TAG = "eagleray.task"
ARCHITECTURE_TAG = "eagleray.architecture"
METRIC_TAG_PREFIX = "eagleray.metric."
PACKAGE_ARTIFACT = "package"
EVALUATIONS_ARTIFACT = "evaluations"

_MOST = 2**31 - 1  # the largest version number that every database can be asked for
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_LOOKS_LIKE_VERSION = re.compile(r"v\d+", re.IGNORECASE)


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
        with explain_failures(self.settings):
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
            self.set_alias(manifest.name, alias, int(created.version))
        return self.get(manifest.name, version=int(created.version))

    def get(
        self, name: str, *, version: int | None = None, alias: str | None = None
    ) -> ModelVersion:
        """Look a version up by number or alias.

        Raises:
            UnknownNameError: No such model, version or alias.
        """
        from mlflow.exceptions import MlflowException

        self._require_model(name)
        try:
            if alias is not None:
                found = self.client.get_model_version_by_alias(name, alias)
            else:
                found = self.client.get_model_version(name, str(min(version or 0, _MOST)))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                with explain_failures(self.settings):
                    raise
            versions = self.versions(name)
            if alias is not None:
                aliases = [known for item in versions for known in item.aliases]
                raise UnknownNameError(f"alias of model {name!r}", alias, aliases) from None
            newest = versions[0].version if versions else 0
            raise InputError(
                f"Model {name!r} has no version {version}; the newest is {newest}."
            ) from None
        # MLflow leaves the aliases out of this answer on some back ends.
        found_version = int(found.version)
        return _as_version(found, self._aliases(name).get(found_version, ()))

    def load(self, version: ModelVersion) -> ModelPackage:
        """Fetch and verify a version's package.

        Raises:
            PackageError: It is not what was registered.
        """
        if version.source.startswith(("mlflow-artifacts:", "runs:", "http:", "https:")):
            import mlflow.artifacts

            with (
                tempfile.TemporaryDirectory(prefix="eagleray-") as folder,
                explain_failures(self.settings),
            ):
                local = mlflow.artifacts.download_artifacts(
                    artifact_uri=version.source,
                    dst_path=folder,
                    tracking_uri=self.settings.mlflow_uri,
                )
                return read_package(local, expected_digest=version.digest or None)
        return read_package(
            storage.absolute(version.source), expected_digest=version.digest or None
        )

    def names(self) -> list[str]:
        """Return the names of all registered models, sorted."""
        with explain_failures(self.settings):
            return sorted(model.name for model in _all_pages(self.client.search_registered_models))

    def versions(self, name: str) -> list[ModelVersion]:
        """Return all versions of a model, newest first.

        Raises:
            UnknownNameError: No such model.
        """
        self._require_model(name)
        aliases = self._aliases(name)
        with explain_failures(self.settings):
            found = _all_pages(self.client.search_model_versions, filter_string=f"name = '{name}'")
        versions = [_as_version(item, aliases.get(int(item.version), ())) for item in found]
        return sorted(versions, key=lambda item: -item.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version.

        Raises:
            InputError: The alias is not a valid name, or the version is not there.
        """
        require_alias(alias)
        self.get(name, version=version)
        with explain_failures(self.settings):
            self.client.set_registered_model_alias(name, alias, str(version))

    def record_evaluation(self, version: ModelVersion, record: EvaluationRecord) -> None:
        """Keep an evaluation beside the version's package; the same data again replace it.

        Raises:
            InputError: No run made the version, so there is no place to keep it.
        """
        if version.run_id is None:
            raise InputError(
                f"{version.reference} has no MLflow run to keep its evaluation in; register its "
                "package as a new version."
            )
        name = f"{record.data_digest}-{record.package_digest}.json"
        with explain_failures(self.settings):
            self.client.log_text(
                version.run_id, record.model_dump_json(), f"{EVALUATIONS_ARTIFACT}/{name}"
            )

    def _exists(self, name: str) -> bool:
        return name in self.names()

    def _require_model(self, name: str) -> None:
        names = self.names()
        if name not in names:
            raise UnknownNameError(
                "registered model", name, names, hint="`eagleray models list` shows all."
            )

    def _aliases(self, name: str) -> dict[int, tuple[str, ...]]:
        with explain_failures(self.settings):
            model = self.client.get_registered_model(name)
        by_version: dict[int, list[str]] = {}
        for alias, version in dict(model.aliases).items():
            by_version.setdefault(int(version), []).append(alias)
        return {version: tuple(sorted(names)) for version, names in by_version.items()}


def require_alias(alias: str) -> None:
    """Refuse names that cannot be an alias, before work starts.

    Raises:
        InputError: MLflow reserves `latest` and what looks like a version.
    """
    if (
        not _ALIAS.fullmatch(alias)
        or alias.lower() == "latest"
        or _LOOKS_LIKE_VERSION.fullmatch(alias)
    ):
        raise InputError(
            f"{alias!r} cannot be an alias: take letters, digits, '_' and '-', starting with a "
            "letter, other than 'latest' and 'v1', 'v2', …"
        )


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


def _as_version(found: Any, aliases: tuple[str, ...]) -> ModelVersion:
    tags = dict(found.tags or {})
    return ModelVersion(
        name=found.name,
        version=int(found.version),
        aliases=aliases,
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
