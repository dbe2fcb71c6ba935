"""What is kept beside the runs of MLflow: packages, evaluations, splits; read, written, removed.

The artifacts of a run are in a folder, in an object store, or behind an MLflow server that gives
nobody else access. MLflow's client knows all of them; what can be read where it lies, is.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

from eagleray import storage
from eagleray.settings import Settings
from eagleray.tracking import explain_failures

__all__ = ["RunArtifacts"]

_BEHIND_A_SERVER = ("mlflow-artifacts:", "runs:", "http:", "https:")


class RunArtifacts:
    """The artifacts of all runs of one MLflow.

    Args:
        settings: Which MLflow.
        client: Connected to it.
    """

    def __init__(self, settings: Settings, client: Any) -> None:
        self._settings, self._client = settings, client

    def names(self, run_id: str, folder: str | None = None) -> list[str]:
        """Return the paths of what a run has at its root or in a folder; none if that is new."""
        with explain_failures(self._settings):
            return [item.path for item in self._client.list_artifacts(run_id, folder)]

    def write(self, run_id: str, path: str, text: str) -> None:
        """Keep a text with a run, in place of what has that path."""
        with explain_failures(self._settings):
            self._client.log_text(run_id, text, path)

    def read(self, run_id: str, path: str) -> bytes:
        """Read one artifact of a run."""
        with (
            tempfile.TemporaryDirectory(prefix="eagleray-") as folder,
            explain_failures(self._settings),
        ):
            return storage.read_bytes(self._client.download_artifacts(run_id, path, folder))

    @contextlib.contextmanager
    def reachable(self, uri: str) -> Iterator[str]:
        """Give a location that storage reads: the artifact's own, or that of a copy."""
        if not uri.startswith(_BEHIND_A_SERVER):
            yield storage.absolute(uri)
            return
        import mlflow.artifacts

        with tempfile.TemporaryDirectory(prefix="eagleray-") as folder:
            with explain_failures(self._settings):
                location = mlflow.artifacts.download_artifacts(
                    artifact_uri=uri, dst_path=folder, tracking_uri=self._settings.mlflow_uri
                )
            yield str(location)

    def remove(self, folder_uri: str, name: str) -> None:
        """Remove a file or folder of a run; once more changes nothing."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with explain_failures(self._settings):
            root = get_artifact_repository(folder_uri, tracking_uri=self._settings.mlflow_uri)
            if name in [item.path for item in root.list_artifacts()]:
                root.delete_artifacts(name)
