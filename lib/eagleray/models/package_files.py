"""Reads the files of a model package, after checking that each has a possible size.

with open_package(folder) as files:
    files.names()
    files.read("golden.json")
    files.read_weights(architecture)
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping

from eagleray.core.errors import PackageError
from eagleray.core.limits import (
    MAX_FILES,
    MAX_GOLDEN_BYTES,
    MAX_GOLDEN_JSON_BYTES,
    MAX_GRAPH_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_OUTLIERS_BYTES,
    MAX_UNCHECKED_WEIGHT_BYTES,
)
from eagleray.io.storage.untrusted import (
    TooManyFilesError,
    UntrustedFile,
    UntrustedFolder,
    open_untrusted_folder,
)
from eagleray.models.architectures import Architecture
from eagleray.models.weights import check_weights, max_weights_bytes, view_reader

__all__ = [
    "GOLDEN_FILE",
    "GRAPH_FILE",
    "MANIFEST_FILE",
    "OUTLIERS_FILE",
    "WEIGHTS_FILE",
    "PackageFiles",
    "open_package",
    "require_sizes",
]

MANIFEST_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
GRAPH_FILE = "model.onnx"
GOLDEN_FILE = "golden.json"
OUTLIERS_FILE = "outliers.safetensors"

_MAX_BYTES = {
    MANIFEST_FILE: MAX_MANIFEST_BYTES,
    GOLDEN_FILE: MAX_GOLDEN_JSON_BYTES,
    OUTLIERS_FILE: MAX_OUTLIERS_BYTES,
}


@contextlib.contextmanager
def open_package(folder: str) -> Iterator[PackageFiles]:
    """Open a folder or URI that may contain a package.

    Raises:
        PackageError: If it is not a folder, or cannot be read.
        InputError: If a remote storage does not answer.
    """
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_untrusted_folder(folder))
        except (FileNotFoundError, NotADirectoryError):
            raise _no_package(folder) from None
        except OSError as error:
            raise PackageError(f"{folder} cannot be read ({_reason(error)}).") from error
        yield PackageFiles(folder, opened)


def require_sizes(location: str, sizes: Mapping[str, int], architecture: Architecture) -> None:
    """Refuse a package by the sizes of its files, before any of them is downloaded.

    Args:
        location: The package's location, for messages.
        sizes: Number of bytes of each file by name.
        architecture: The architecture of the network.

    Raises:
        PackageError: If a file is larger than possible.
        UserError: If the architecture is not known.
    """
    for name, size in sizes.items():
        if name not in (WEIGHTS_FILE, GRAPH_FILE):
            _require_size(location, name, size)
        elif size > MAX_UNCHECKED_WEIGHT_BYTES:
            _require_size(location, name, size, max_weights_bytes(architecture))


def _require_size(location: str, name: str, size: int, limit: int | None = None) -> None:
    limit = limit or _MAX_BYTES.get(name, MAX_GOLDEN_BYTES)
    if size > limit:
        raise PackageError(
            f"{location}: {name[:100]!r} has {size:,} bytes, {limit:,} is the limit."
        )


class PackageFiles:
    """The files of an open package.

    Args:
        location: The package's location, for messages.
        folder: The open folder.
    """

    def __init__(self, location: str, folder: UntrustedFolder) -> None:
        self._location, self._folder = location, folder
        self._weights = f"{location}: {WEIGHTS_FILE}"
        self._golden: dict[str, int] = {}  # number of bytes by name, of the images read so far

    def names(self) -> list[str]:
        """Return the names of all files, sorted.

        Raises:
            PackageError: If there are more files than a package may have, or they cannot be listed.
            InputError: If a remote storage does not answer.
        """
        try:
            return self._folder.names(max_files=MAX_FILES + 2)  # with the manifest and golden/
        except TooManyFilesError as error:
            raise PackageError(
                f"{self._location} is refused: {error}, which is too many for a package."
            ) from None
        except OSError as error:
            raise PackageError(f"{self._location} is refused: {_reason(error)}.") from error

    def read(self, name: str, *, digest: str | None = None) -> bytes:
        """Read a file other than the weights.

        Args:
            name: Name of the file.
            digest: Its SHA-256 from the manifest; None for the manifest itself.

        Raises:
            PackageError: If it is missing, not a regular file, too large, or altered.
        """
        with self._open(name) as file:
            _require_size(self._location, name, file.size)
            if name not in _MAX_BYTES:
                self._golden[name] = file.size
                _require_size(self._location, "golden/", sum(self._golden.values()))
            content = file.read(0, file.size)
        if digest is not None:
            self._require_digest(name, content, digest)
        return content

    def read_weights(self, architecture: Architecture, *, digest: str) -> bytes:
        """Read the weights; large weights only if their header fits the network.

        Small weights are read without PyTorch, and compared when the network is built.

        Raises:
            PackageError: If the file is missing or altered, or the weights are not safetensors or
                do not fit the network.
            UserError: If the architecture is not known.
        """
        with self._open(WEIGHTS_FILE) as file:
            if file.size > MAX_UNCHECKED_WEIGHT_BYTES:
                check_weights(self._weights, file.read, file.size, architecture)
            content = file.read(0, file.size)
        self._require_digest(WEIGHTS_FILE, content, digest)
        check_weights(self._weights, view_reader(content), len(content))
        return content

    def read_graph(self, architecture: Architecture | None, *, digest: str) -> bytes:
        """Read a graph. That of a quantized network cannot be larger than its weights.

        Args:
            architecture: The network that was quantized; None for an imported graph.
            digest: SHA-256 of the graph.

        Raises:
            PackageError: If the file is missing, altered or too large.
            UserError: If the architecture is not known.
        """
        with self._open(GRAPH_FILE) as file:
            if file.size > MAX_UNCHECKED_WEIGHT_BYTES:
                limit = MAX_GRAPH_BYTES if architecture is None else max_weights_bytes(architecture)
                _require_size(self._location, GRAPH_FILE, file.size, limit)
            content = file.read(0, file.size)
        self._require_digest(GRAPH_FILE, content, digest)
        return content

    def check_weights(self, architecture: Architecture) -> int:
        """Compare the header of the weights with the network.

        Returns:
            Number of bytes of the file.

        Raises:
            PackageError: If the weights are not safetensors, or do not fit the network.
            UserError: If the architecture is not known.
        """
        with self._open(WEIGHTS_FILE) as file:
            check_weights(self._weights, file.read, file.size, architecture)
            return file.size

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[UntrustedFile]:
        try:
            with self._folder.open(name) as file:
                yield file
        except (FileNotFoundError, NotADirectoryError):
            if name == MANIFEST_FILE:
                raise _no_package(self._location) from None
            raise PackageError(
                f"{self._location}: {name} is missing; fetch the package again."
            ) from None
        except OSError as error:
            raise PackageError(
                f"{self._location}: {name} cannot be read ({_reason(error)})."
            ) from error

    def _require_digest(self, name: str, content: bytes, digest: str) -> None:
        if hashlib.sha256(content).hexdigest() != digest:
            raise PackageError(
                f"{self._location}: {name} is not the file that {MANIFEST_FILE} describes (its "
                "SHA-256 differs); fetch the package again."
            )


def _no_package(location: str) -> PackageError:
    return PackageError(f"{location} is not a model package: it has no {MANIFEST_FILE}.")


def _reason(error: OSError) -> str:
    return str(error.strerror or error)
