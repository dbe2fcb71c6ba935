"""Queries and changes of the models, versions and aliases of one MLflow registry."""

from __future__ import annotations

from typing import Any

from eagleray.core.errors import UnknownNameError
from eagleray.core.settings import Settings
from eagleray.registry.artifacts import RunArtifacts
from eagleray.registry.tracking import registry_errors
from eagleray.registry.versions import MODEL_ARTIFACT, PACKAGE_ARTIFACT, alias_numbers

__all__ = ["MlflowModels", "all_pages"]

_MAX_VERSION = 2**31 - 1  # the largest number that every database accepts
_MAX_MODELS_PER_PAGE = 1000  # MLflow's limit
_NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class MlflowModels:
    """The registered models of one MLflow.

    Args:
        settings: The settings that name the MLflow.
        client: A client that is connected to it.
        artifacts: The artifacts of its runs.
    """

    def __init__(self, settings: Settings, client: Any, artifacts: RunArtifacts) -> None:
        self._settings, self._client, self._artifacts = settings, client, artifacts

    def all(self) -> list[Any]:
        """Return MLflow's models."""
        return self._search(self._client.search_registered_models, max_results=_MAX_MODELS_PER_PAGE)

    def names(self) -> list[str]:
        """Return the names of all models, sorted."""
        return sorted(model.name for model in self.all())

    def aliases(self, name: str) -> dict[str, int]:
        """Return the aliases of a model with their versions.

        Raises:
            UnknownNameError: If there is no such model.
        """
        model = self._find(self._client.get_registered_model, name)
        if model is None:
            raise UnknownNameError(
                "registered model", name, self.names(), hint="`eagleray models list` shows all."
            )
        return alias_numbers(model)

    def find_version(self, name: str, version: int) -> Any | None:
        """Return MLflow's version of a model; None if there is no such version."""
        return self._find(self._client.get_model_version, name, str(min(version, _MAX_VERSION)))

    def search_versions(self, filter_string: str) -> list[Any]:
        """Return MLflow's versions of all models that meet a filter; all for an empty one."""
        return self._search(self._client.search_model_versions, filter_string=filter_string)

    # --- the alias history's view of the registry ---

    def alias_target(self, name: str, alias: str) -> int | None:
        """Return the version that an alias points to, if any."""
        return self.aliases(name).get(alias)

    def has_version(self, name: str, version: int) -> bool:
        """Whether a version exists."""
        return self.find_version(name, version) is not None

    def point_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version; only the history calls this, which records the change."""
        with registry_errors(self._settings):
            self._client.set_registered_model_alias(name, alias, str(version))

    def remove_version(self, name: str, version: int, files: str | None) -> None:
        """Remove a version, and its package from a run's folder; only the history calls this."""
        if self.has_version(name, version):
            with registry_errors(self._settings):
                self._client.delete_model_version(name, str(version))
        if files is not None:
            for artifact in (MODEL_ARTIFACT, PACKAGE_ARTIFACT):
                self._artifacts.remove(files, artifact)

    def _find(self, get: Any, *key: str) -> Any | None:
        from mlflow.exceptions import MlflowException

        with registry_errors(self._settings):
            try:
                return get(*key)
            except MlflowException as error:
                if error.error_code not in _NOT_FOUND:
                    raise
        return None

    def _search(self, search: Any, **query: Any) -> list[Any]:
        with registry_errors(self._settings):
            return all_pages(search, **query)


def all_pages(search: Any, **query: Any) -> list[Any]:
    """Return the results of all pages of one of MLflow's searches."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **query)
        found += page
        token = page.token
        if not token:
            return found
