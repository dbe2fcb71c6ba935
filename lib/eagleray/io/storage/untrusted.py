"""The plain files of a folder that a stranger may have filled: no links, no devices.

    with open_untrusted_folder("packages/digits") as folder:
        folder.names(limit=100)                 # ["a.json", "below/b.png"]
        with folder.open("below/b.png") as file:
            file.size, file.read(0, 100)

A local file is opened without following a link or waiting for anybody, looked at once it is open,
and read from that very descriptor, so nothing can be exchanged between the look and the read. Of a
remote one the size is asked for first, and no more than that is ever fetched.
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
from eagleray.io.storage.faults import retry_local, wrap_as_os_error
from eagleray.io.storage.listing import list_files
from eagleray.io.storage.locations import absolute, is_remote, join, local_path
from eagleray.io.storage.reading import read_range
from eagleray.io.storage.stat import size_of

__all__ = [
    "NotRegularFileError",
    "TooManyFilesError",
    "UntrustedFile",
    "UntrustedFolder",
    "open_untrusted_folder",
]

# As little as possible happens when a file is opened that turns out to be something else.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MAX_SHOWN = 100  # characters of a name


class NotRegularFileError(OSError):
    """Something in the folder is no regular file, or is not in a regular folder."""


class TooManyFilesError(OSError):
    """The folder holds more files and folders than are wanted."""


class UntrustedFile(Protocol):
    """A file that is open.

    Attributes:
        size: Bytes.
    """

    size: int

    def read(self, start: int, length: int) -> bytes:
        """Read `length` bytes from byte `start` on.

        Raises:
            OSError: They cannot be read, or the file has become shorter.
        """


class UntrustedFolder(Protocol):
    """A folder that is open."""

    def names(self, *, limit: int) -> list[str]:
        """Return the names of all files below the folder, sorted, with slashes.

        Args:
            limit: The most files and folders that there may be.

        Raises:
            TooManyFilesError: There are more.
            NotRegularFileError: A folder below is a link.
            OSError: The folder cannot be listed.
        """

    def open(self, name: str) -> contextlib.AbstractContextManager[UntrustedFile]:
        """Open a file by its name below the folder.

        Raises:
            NotRegularFileError: It is a link, a folder, a named pipe, a socket or a device.
            FileNotFoundError: It is not there.
            OSError: It cannot be opened.
        """


@contextlib.contextmanager
def open_untrusted_folder(location: str) -> Iterator[UntrustedFolder]:
    """Open a local folder, or what is under a URI. The folder itself may be named by a link.

    Raises:
        OSError: It cannot be opened; `FileNotFoundError` and `NotADirectoryError` where no folder
            is.
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

    def names(self, *, limit: int) -> list[str]:
        found = list(islice(_walk(self._descriptor, ""), limit + 1))
        if len(found) > limit:
            raise TooManyFilesError(f"it holds more than {limit:,} files and folders")
        return sorted(name for name in found if not name.endswith("/"))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[UntrustedFile]:
        *folders, last = name.split("/")
        with contextlib.ExitStack() as stack:
            parent = self._descriptor
            for folder in folders:
                parent = stack.enter_context(_opened(folder, parent, stat.S_IFDIR))
            yield _LocalFile(stack.enter_context(_opened(last, parent, stat.S_IFREG)))


class _LocalFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, start: int, length: int) -> bytes:
        content = retry_local(lambda: _read(self._descriptor, start, length))
        if len(content) < length:
            raise OSError(errno.EIO, "it became shorter while it was read")
        return content


def _read(descriptor: int, start: int, length: int) -> bytes:
    """Read a range whole and into one place: one call of the system gives 2 GiB at most."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(start)
        return file.read(length)


def _walk(descriptor: int, prefix: str) -> Iterator[str]:
    """Yield the names below an open folder, those of folders with a slash at the end.

    Names of links and devices are among them; they do not open.
    """
    with os.scandir(descriptor) as entries:
        for entry in entries:
            name = prefix + escape_file_name(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                yield name
                continue
            yield f"{name}/"
            with _opened(entry.name, descriptor, stat.S_IFDIR) as below:
                yield from _walk(below, f"{name}/")


@contextlib.contextmanager
def _opened(name: str, parent: int, kind: int) -> Iterator[int]:
    """Open a regular file or a folder in an open folder.

    Raises:
        NotRegularFileError: It is something else.
    """
    try:
        descriptor = retry_local(lambda: os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=parent))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_plain(name, "is a link") from None
        if error.errno == errno.ENXIO:
            raise _not_plain(name, "is a socket or a device") from None
        raise
    try:
        if stat.S_IFMT(os.fstat(descriptor).st_mode) != kind:
            wanted = "folder" if kind == stat.S_IFDIR else "regular file"
            raise _not_plain(name, f"is no {wanted}")
        yield descriptor
    finally:
        os.close(descriptor)


def _not_plain(name: str, fault: str) -> NotRegularFileError:
    return NotRegularFileError(f"{name[:_MAX_SHOWN]!r} {fault}")


# --- remote -----------------------------------------------------------------------------------


class _RemoteFolder:
    def __init__(self, location: str) -> None:
        self._location = absolute(location)

    def names(self, *, limit: int) -> list[str]:
        prefix = self._location.rstrip("/") + "/"
        found = [info.uri for info in islice(list_files(self._location), limit + 1)]
        if len(found) > limit:
            raise TooManyFilesError(f"it holds more than {limit:,} files and folders")
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
            raise OSError(errno.EIO, "it became shorter while it was read")
        return content
