"""Reads the regular files of an untrusted folder: no links, no devices.

    with open_untrusted_folder("packages/digits") as folder:
        folder.names(max_files=100)             # ["a.json", "below/b.png"]
        with folder.open("below/b.png") as file:
            file.size, file.read(0, 100)

A local file is opened without following links or blocking, checked once it is open, and read from
that very descriptor, so it cannot be exchanged between check and read. Of a remote file the size is
requested first, and no more than that is ever fetched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from eagleray.core.file_names import escape_file_name
from eagleray.io.storage.errors import wrap_as_os_error
from eagleray.io.storage.listing import list_files
from eagleray.io.storage.locations import absolute, is_remote, join, local_path
from eagleray.io.storage.reading import read_range
from eagleray.io.storage.retry import retry_local
from eagleray.io.storage.stat import size_of

__all__ = [
    "NotRegularFileError",
    "TooManyFilesError",
    "UntrustedFile",
    "UntrustedFolder",
    "open_untrusted_folder",
]

# Opening something else than a regular file must have no side effects.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MAX_SHOWN = 100  # characters of a name


class NotRegularFileError(OSError):
    """An entry of the folder is not a regular file or folder."""


class TooManyFilesError(OSError):
    """The folder has more files and folders than the limit."""


class UntrustedFile(Protocol):
    """An open file.

    Attributes:
        size: Size in bytes.
    """

    size: int

    def read(self, start: int, length: int) -> bytes:
        """Read `length` bytes from byte `start` on.

        Raises:
            OSError: If they cannot be read, or the file has been truncated.
        """


class UntrustedFolder(Protocol):
    """An open folder."""

    def names(self, *, max_files: int) -> list[str]:
        """Return the sorted relative paths of all files in the folder, at any depth.

        Args:
            max_files: Maximum number of files and folders.

        Raises:
            TooManyFilesError: If there are more.
            NotRegularFileError: If a subfolder is a link.
            OSError: If the folder cannot be listed.
        """

    def open(self, name: str) -> contextlib.AbstractContextManager[UntrustedFile]:
        """Open a file by its relative path.

        Raises:
            NotRegularFileError: If it is a link, a folder, a named pipe, a socket or a device.
            FileNotFoundError: If it does not exist.
            OSError: If it cannot be opened.
        """


@contextlib.contextmanager
def open_untrusted_folder(location: str) -> Iterator[UntrustedFolder]:
    """Open a local folder or a remote prefix. The folder itself may be a link.

    Raises:
        OSError: If it cannot be opened; `FileNotFoundError` or `NotADirectoryError` if it is not a
            folder.
    """
    if is_remote(location):
        yield _RemoteFolder(location)
        return
    path = local_path(location)
    descriptor = retry_local(lambda: os.open(path, _OPEN | os.O_DIRECTORY))
    try:
        yield _LocalFolder(descriptor)
    finally:
        os.close(descriptor)


# --- local ------------------------------------------------------------------------------------


class _LocalFolder:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def names(self, *, max_files: int) -> list[str]:
        found = list(islice(_walk(self._descriptor, ""), max_files + 1))
        if len(found) > max_files:
            raise TooManyFilesError(f"it holds more than {max_files:,} files and folders")
        return sorted(name for name in found if not name.endswith("/"))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[UntrustedFile]:
        *folders, last = name.split("/")
        with contextlib.ExitStack() as stack:
            parent = self._descriptor
            for folder in folders:
                parent = stack.enter_context(_open_entry(folder, parent, stat.S_IFDIR))
            yield _LocalFile(stack.enter_context(_open_entry(last, parent, stat.S_IFREG)))


class _LocalFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, start: int, length: int) -> bytes:
        content = retry_local(lambda: _read_descriptor(self._descriptor, start, length))
        if len(content) < length:
            raise OSError(errno.EIO, "it was truncated while it was read")
        return content


def _read_descriptor(descriptor: int, start: int, length: int) -> bytes:
    """Read a whole range: a single system call returns 2 GiB at most."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(start)
        return file.read(length)


def _walk(descriptor: int, prefix: str) -> Iterator[str]:
    """Yield the relative paths in an open folder, those of folders with a trailing slash.

    Links and devices are included; opening them fails.
    """
    with os.scandir(descriptor) as entries:
        for entry in entries:
            name = prefix + escape_file_name(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                yield name
                continue
            yield f"{name}/"
            with _open_entry(entry.name, descriptor, stat.S_IFDIR) as below:
                yield from _walk(below, f"{name}/")


@contextlib.contextmanager
def _open_entry(name: str, parent: int, kind: int) -> Iterator[int]:
    """Open a regular file or a folder in an open folder.

    Raises:
        NotRegularFileError: If it is something else.
    """
    try:
        descriptor = retry_local(lambda: os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=parent))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_regular(name, "is a link") from None
        if error.errno == errno.ENXIO:
            raise _not_regular(name, "is a socket or a device") from None
        raise
    try:
        if stat.S_IFMT(os.fstat(descriptor).st_mode) != kind:
            wanted = "folder" if kind == stat.S_IFDIR else "regular file"
            raise _not_regular(name, f"is not a {wanted}")
        yield descriptor
    finally:
        os.close(descriptor)


def _not_regular(name: str, problem: str) -> NotRegularFileError:
    return NotRegularFileError(f"{name[:_MAX_SHOWN]!r} {problem}")


# --- remote -----------------------------------------------------------------------------------


class _RemoteFolder:
    def __init__(self, location: str) -> None:
        self._location = absolute(location)

    def names(self, *, max_files: int) -> list[str]:
        prefix = self._location.rstrip("/") + "/"
        found = [info.uri for info in islice(list_files(self._location), max_files + 1)]
        if len(found) > max_files:
            raise TooManyFilesError(f"it holds more than {max_files:,} files and folders")
        return sorted(uri.removeprefix(prefix) for uri in found)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[UntrustedFile]:
        yield _RemoteFile(join(self._location, name))


class _RemoteFile:
    def __init__(self, location: str) -> None:
        self._location = location
        with wrap_as_os_error(location):
            self.size = size_of(location)

    def read(self, start: int, length: int) -> bytes:
        content = read_range(self._location, start, length)
        if len(content) < length:
            raise OSError(errno.EIO, "it was truncated while it was read")
        return content
