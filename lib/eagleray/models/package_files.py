"""The files of a model package, each read only once it is known to be of a modest size.

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
    MAX_MANIFEST_BYTES,
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
    "MANIFEST_FILE",
    "WEIGHTS_FILE",
    "PackageFiles",
    "open_package",
    "require_sizes",
]

MANIFEST_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
GOLDEN_FILE = "golden.json"

_MAX_BYTES = {MANIFEST_FILE: MAX_MANIFEST_BYTES, GOLDEN_FILE: MAX_GOLDEN_JSON_BYTES}


@contextlib.contextmanager
def open_package(folder: str) -> Iterator[PackageFiles]:
    """Open a folder or URI that may hold a package.

    Raises:
        PackageError: It is no folder.
        InputError: A remote storage does not answer.
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
    """Refuse a package by the sizes of its files, before any of them is copied.

    Args:
        location: For messages.
        sizes: Bytes of the files by name.
        architecture: Of the network.

    Raises:
        PackageError: A file is larger than it can be.
        UserError: The architecture is not known here.
    """
    for name, size in sizes.items():
        if name != WEIGHTS_FILE:
            _require_size(location, name, size)
        elif size > MAX_UNCHECKED_WEIGHT_BYTES:
            _require_size(location, name, size, max_weights_bytes(architecture))


def _require_size(location: str, name: str, size: int, most: int | None = None) -> None:
    most = most or _MAX_BYTES.get(name, MAX_GOLDEN_BYTES)
    if size > most:
        raise PackageError(f"{location}: {name[:100]!r} has {size:,} bytes, {most:,} is the limit.")


class PackageFiles:
    """The files of a package that is open.

    Args:
        location: As the user named it, for messages.
        folder: Which it is.
    """

    def __init__(self, location: str, folder: UntrustedFolder) -> None:
        self._location, self._folder = location, folder
        self._weights = f"{location}: {WEIGHTS_FILE}"
        self._golden: dict[str, int] = {}  # bytes of the golden images that were read

    def names(self) -> list[str]:
        """Return the names of all files, sorted.

        Raises:
            PackageError: There are more than any package has.
            InputError: The folder cannot be listed.
        """
        try:
            return self._folder.names(max_files=MAX_FILES + 2)  # with the manifest and golden/
        except TooManyFilesError as error:
            raise PackageError(
                f"{self._location} is refused: {error}, and no package does."
            ) from None
        except OSError as error:
            raise PackageError(f"{self._location} is refused: {_reason(error)}.") from error

    def read(self, name: str, *, digest: str | None = None) -> bytes:
        """Read a file other than the weights.

        Args:
            name: Of the file.
            digest: Its SHA-256, where the manifest has told.

        Raises:
            PackageError: It is not there, no regular file, too large, or another one.
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
        """Read the weights, large ones only if they are those of their network.

        Small ones are read without PyTorch; their network is asked when it is built.

        Raises:
            PackageError: As for `read`; or they are no safetensors, or another network's.
            UserError: The architecture is not known here.
        """
        with self._open(WEIGHTS_FILE) as file:
            if file.size > MAX_UNCHECKED_WEIGHT_BYTES:
                check_weights(self._weights, file.read, file.size, architecture)
            content = file.read(0, file.size)
        self._require_digest(WEIGHTS_FILE, content, digest)
        check_weights(self._weights, view_reader(content), len(content))
        return content

    def check_weights(self, architecture: Architecture) -> int:
        """Compare the weights with their network, by their header alone.

        Returns:
            Bytes of the file.

        Raises:
            PackageError: They are no safetensors, or another network's.
            UserError: The architecture is not known here.
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
    return PackageError(f"{location} is no model package: it has no {MANIFEST_FILE}.")


def _reason(error: OSError) -> str:
    return str(error.strerror or error)
