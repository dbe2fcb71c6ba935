"""From the URI of a packed image to the place of its bytes, and whether that may be read."""

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
from eagleray.io.storage import PathPolicy
from eagleray.io.tables import open_parquet

__all__ = ["Locator", "may_read", "parse_packed_uri"]

_MAX_CONTAINERS = 8
_FETCHED = ("http://", "https://")
_ANY = PathPolicy()


def may_read(source: ImageSource, policy: PathPolicy) -> bool:
    """Whether a policy allows to read what an image's bytes are in; nothing is opened to tell.

    Of a packed image that is its container, the innermost one of its URI. http(s) addresses are the
    URL policy's to judge.

    Args:
        source: Whoever made it may have written anything into it.
        policy: Of the job.
    """
    if source.packing is not None:
        return policy.allows(source.container or "")
    if packing_of(source.uri) is not None:
        return policy.allows(_first_reading(source.uri, storage.absolute)[1])
    # Without a location nothing is read.
    return not source.uri or source.uri.lower().startswith(_FETCHED) or policy.allows(source.uri)


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a container holds, or why that cannot be told.

    Attributes:
        version: Of the container.
        members: Of an archive, by name; of a name that is there twice, the last, as tar has it.
        rows: Of a table.
        columns: Of a table: those that hold images.
        error: What the storage or the file itself answered.
    """

    version: str = ""
    members: Mapping[str, Member] | None = None
    rows: int = 0
    columns: frozenset[str] = frozenset()
    error: OSError | InputError | None = None


class Locator:
    """Finds packed images by their URIs; lists each container once, and remembers the last few.

    Threads may share it.

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
            uri: As `packed_uri` makes it.
            resolve: Makes the container's location absolute.

        Returns:
            The source, and the version of its container.

        Raises:
            FileNotFoundError: The container is not there, or has no such member.
            OSError: The storage does not answer.
            InputError: The container is damaged, or the policy does not allow to read it.
        """
        packing, name, container = parse_packed_uri(uri, resolve, self.policy)
        if not self.policy.allows(container):
            raise InputError("it is not where this job may read")
        contents = self._contents(packing, container)
        if contents.error is not None:
            raise contents.error.with_traceback(None)  # it is raised again and again
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
                self._known[key] = _list(packing, container, key[2])
            self._known.move_to_end(key)
            if len(self._known) > _MAX_CONTAINERS:
                self._known.popitem(last=False)
            return self._known[key]


def parse_packed_uri(
    uri: str, resolve: Callable[[str], str], policy: PathPolicy = _ANY
) -> tuple[Packing, str, str]:
    """Take a packed URI apart; where it has several readings, by the container that is there.

    Containers that the policy does not allow are not looked for, and where the likeliest reading
    has one, no other is.

    Returns:
        Packing, name, and the container's absolute location.
    """
    packing = packing_of(uri)
    assert packing is not None
    first = _first_reading(uri, resolve)
    if not policy.allows(first[1]):
        return packing, *first
    readings = [(name, resolve(container)) for name, container in parse_candidates(uri)]
    existing = (
        reading
        for reading in readings
        if len(readings) == 1 or (policy.allows(reading[1]) and _exists(reading[1]))
    )
    return packing, *next(existing, first)


def _first_reading(uri: str, resolve: Callable[[str], str]) -> tuple[str, str]:
    name, container = next(parse_candidates(uri))
    return name, resolve(container)


def _exists(location: str) -> bool:
    try:
        return storage.exists(location)
    except InputError:
        return False


def _list(packing: Packing, container: str, version: str) -> _Contents:
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
