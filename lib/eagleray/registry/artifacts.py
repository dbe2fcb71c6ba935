"""Reads, writes and removes the artifacts of MLflow runs: packages, evaluations, splits.

The artifacts of a run are in a folder, in an object store, or behind an MLflow server that alone
has access. Artifacts that storage can read are read in place; others are downloaded first.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.io.storage.untrusted import open_untrusted_folder
from eagleray.registry.tracking import registry_errors

__all__ = ["RunArtifacts"]

_BEHIND_A_SERVER = ("mlflow-artifacts:", "runs:", "http:", "https:")
_MAX_ENTRIES = 100_000  # of a folder


class RunArtifacts:
    """The artifacts of all runs of one MLflow.

    Args:
        settings: The settings that name the MLflow.
        client: A client that is connected to it.
    """

    def __init__(self, settings: Settings, client: Any) -> None:
        self._settings, self._client = settings, client

    def names(self, run_id: str, folder: str | None = None) -> list[str]:
        """Return the paths of a run's artifacts at its root or in a folder, if it exists."""
        with registry_errors(self._settings):
            return [item.path for item in self._client.list_artifacts(run_id, folder)]

    def write(self, run_id: str, path: str, text: str) -> None:
        """Write a text as an artifact of a run, replacing one with the same path."""
        with registry_errors(self._settings):
            self._client.log_text(run_id, text, path)

    def write_file(self, run_id: str, folder: str, name: str, content: bytes) -> None:
        """Write a file into a folder of a run, replacing one with the same name."""
        with tempfile.TemporaryDirectory(prefix="eagleray-") as local:
            (Path(local) / name).write_bytes(content)
            with registry_errors(self._settings):
                self._client.log_artifact(run_id, str(Path(local) / name), folder)

    def folder(self, run_id: str) -> str:
        """Return the URI of a run's artifacts."""
        with registry_errors(self._settings):
            return str(self._client.get_run(run_id).info.artifact_uri)

    def read(self, folder_uri: str, name: str, *, limit: int) -> bytes:
        """Read a file of a run.

        Args:
            folder_uri: URI of the file's folder.
            name: Name of the file.
            limit: Largest number of bytes.

        Raises:
            InputError: If the file is missing, not a regular file, or too large.
        """
        with self.accessible(f"{folder_uri}/{name}", max_bytes=limit) as location:
            folder = location.removesuffix(f"/{name}")
            try:
                with open_untrusted_folder(folder) as opened, opened.open(name) as file:
                    _require_size(location, file.size, limit)
                    return file.read(0, file.size)
            except OSError as error:
                raise InputError(
                    f"{location} cannot be read ({error.strerror or error})."
                ) from error

    def is_behind_server(self, uri: str) -> bool:
        """Whether an artifact must be downloaded before it can be read."""
        return uri.startswith(_BEHIND_A_SERVER)

    @contextlib.contextmanager
    def accessible(self, uri: str, *, max_bytes: int | None = None) -> Iterator[str]:
        """Yield a location that storage can read: the artifact's own, or that of a download.

        Args:
            uri: URI of a file or folder.
            max_bytes: Largest number of bytes of a file that is downloaded.

        Raises:
            InputError: If the file has more bytes.
        """
        if not self.is_behind_server(uri):
            yield storage.absolute(uri)
            return
        import mlflow.artifacts

        if max_bytes is not None:
            folder, _, name = uri.rpartition("/")
            sizes = self.sizes(folder, limit=_MAX_ENTRIES, recursive=False)
            _require_size(uri, sizes.get(name, 0), max_bytes)
        with tempfile.TemporaryDirectory(prefix="eagleray-") as folder:
            with registry_errors(self._settings):
                location = mlflow.artifacts.download_artifacts(
                    artifact_uri=uri, dst_path=folder, tracking_uri=self._settings.mlflow_uri
                )
            yield str(location)

    def sizes(self, uri: str, *, limit: int, recursive: bool = True) -> dict[str, int]:
        """Return the bytes of the files in a folder, by name.

        Args:
            uri: URI of the folder.
            limit: Largest number of files and folders.
            recursive: Whether files in subfolders are included.

        Raises:
            InputError: If there are more.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        found: dict[str, int] = {}
        folders: list[str | None] = [None]
        with registry_errors(self._settings):
            root = get_artifact_repository(uri, tracking_uri=self._settings.mlflow_uri)
            for num_listed, folder in enumerate(folders, start=1):
                for item in root.list_artifacts(folder):
                    if not item.is_dir:
                        found[item.path] = int(item.file_size or 0)
                    elif recursive:
                        folders.append(item.path)
                if len(found) + num_listed > limit:
                    raise InputError(f"{uri} holds more than {limit:,} files and folders.")
        return found

    def remove(self, folder_uri: str, name: str) -> None:
        """Remove a file or folder of a run; repeating it changes nothing."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with registry_errors(self._settings):
            root = get_artifact_repository(folder_uri, tracking_uri=self._settings.mlflow_uri)
            if name in [item.path for item in root.list_artifacts()]:
                root.delete_artifacts(name)


def _require_size(location: str, size: int, limit: int) -> None:
    if size > limit:
        raise InputError(f"{location} has {size:,} bytes, {limit:,} is the limit.")
