"""Finds the bytes of an image in an archive or table by its URI, if they may be read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.fetch.archives import Member, list_members
from eagleray.io.fetch.parquet import is_image_type
from eagleray.io.fetch.source import ImageSource, Packing, packed_uri, packing_of, parse_candidates
from eagleray.io.parquet_table import open_parquet
from eagleray.io.storage import PathPolicy

__all__ = ["Locator", "may_read", "parse_packed_uri"]

_MAX_CONTAINERS = 8
_HTTP = ("http://", "https://")
_ANY = PathPolicy()


def may_read(source: ImageSource, policy: PathPolicy) -> bool:
    """Whether a policy allows an image's file to be read; nothing is opened.

    The file of a packed image is its container, the innermost one of its URI. http(s) addresses are
    left to the URL policy.

    Args:
        source: The image; its fields are untrusted.
        policy: The job's path policy.
    """
    if source.packing is not None:
        return policy.allows(source.container or "")
    if packing_of(source.uri) is not None:
        return policy.allows(_first_candidate(source.uri, storage.absolute)[1])
    # An empty location is never read.
    return not source.uri or source.uri.lower().startswith(_HTTP) or policy.allows(source.uri)


@dataclass(frozen=True, slots=True)
class _Contents:
    """The contents of a container, or the error of listing it.

    Attributes:
        version: Version of the container.
        members: Members of an archive by name; the last one of duplicates, as in tar.
        rows: Number of rows of a table.
        columns: Columns of a table that contain images.
        error: Error of the storage or of the file.
    """

    version: str = ""
    members: Mapping[str, Member] | None = None
    rows: int = 0
    columns: frozenset[str] = frozenset()
    error: OSError | InputError | None = None


class Locator:
    """Finds packed images by their URIs, and caches the last containers' contents; thread-safe.

    Args:
        policy: Which containers may be read.
    """

    def __init__(self, policy: PathPolicy = _ANY) -> None:
        self.policy = policy
        self._known: OrderedDict[tuple[str, str, str], _Contents] = OrderedDict()
        self._lock = threading.Lock()

    def find(
        self, uri: str, resolve: Callable[[str], str] = storage.absolute
    ) -> tuple[ImageSource, str]:
        """Find a packed image.

        Args:
            uri: A URI in the form of `packed_uri`.
            resolve: Makes the container's location absolute.

        Returns:
            The source, and the version of its container.

        Raises:
            FileNotFoundError: If the container does not exist or has no such member.
            OSError: If the storage does not respond.
            InputError: If the container is damaged, or the policy does not allow it.
        """
        packing, name, container = parse_packed_uri(uri, resolve, self.policy)
        if not self.policy.allows(container):
            raise InputError("this job may not read that location")
        contents = self._contents(packing, container)
        if contents.error is not None:
            raise contents.error.with_traceback(None)  # as it is raised repeatedly
        if packing == "parquet":
            source = _find_cell(contents, name, container)
        else:
            source = _find_member(contents, packing, name, container)
        if source is None:
            raise FileNotFoundError(f"{container} holds no image of this name")
        return source, contents.version

    def _contents(self, packing: Packing, container: str) -> _Contents:
        key = (packing, container, storage.file_info(container).version)
        with self._lock:
            if key not in self._known:
                self._known[key] = _list_contents(packing, container, key[2])
            self._known.move_to_end(key)
            if len(self._known) > _MAX_CONTAINERS:
                self._known.popitem(last=False)
            return self._known[key]


def parse_packed_uri(
    uri: str, resolve: Callable[[str], str], policy: PathPolicy = _ANY
) -> tuple[Packing, str, str]:
    """Split a packed URI; if it is ambiguous, by which of its possible containers exists.

    Containers that the policy does not allow are not looked up; if the likeliest one is not
    allowed, no other is.

    Returns:
        Packing, name, and the container's absolute location.
    """
    packing = packing_of(uri)
    assert packing is not None
    first = _first_candidate(uri, resolve)
    if not policy.allows(first[1]):
        return packing, *first
    candidates = [(name, resolve(container)) for name, container in parse_candidates(uri)]
    existing = (
        candidate
        for candidate in candidates
        if len(candidates) == 1 or (policy.allows(candidate[1]) and _exists(candidate[1]))
    )
    return packing, *next(existing, first)


def _first_candidate(uri: str, resolve: Callable[[str], str]) -> tuple[str, str]:
    name, container = next(parse_candidates(uri))
    return name, resolve(container)


def _exists(location: str) -> bool:
    try:
        return storage.exists(location)
    except InputError:
        return False


def _list_contents(packing: Packing, container: str, version: str) -> _Contents:
    try:
        if packing == "parquet":
            with open_parquet(container) as file:
                columns = [field.name for field in file.schema_arrow if is_image_type(field.type)]
                return _Contents(version, rows=file.metadata.num_rows, columns=frozenset(columns))
        members = {member.name: member for member in list_members(container, packing)}
        return _Contents(version, members=members)
    except (OSError, InputError) as error:
        return _Contents(version, error=error)


def _find_member(
    contents: _Contents, packing: Packing, name: str, container: str
) -> ImageSource | None:
    assert contents.members is not None
    member = contents.members.get(name)
    if member is None:
        return None
    return ImageSource(
        packed_uri(packing, name, container), member.size, packing, container, member.offset
    )


def _find_cell(contents: _Contents, name: str, container: str) -> ImageSource | None:
    column, _, row = name.rpartition("/")
    known = row.isascii() and row.isdigit() and int(row) < contents.rows
    if not known or column not in contents.columns:
        return None
    return ImageSource(packed_uri("parquet", name, container), None, "parquet", container, int(row))
