"""Source of the images in a tar or zip archive."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator

import pyarrow as pa

from eagleray.core.errors import InputError
from eagleray.io.fetch import ImageSource, Packing, packed_uri
from eagleray.io.fetch.archives import Member, list_members
from eagleray.io.file_kinds import is_image_name
from eagleray.sources.listing import (
    ROWS_AT_ONCE,
    InputSpec,
    OpenedSource,
    describe_file,
    listing_of_sources,
    packed_version,
    require_file,
)
from eagleray.sources.skipped import ANNOTATION, SkippedFiles, skipped_kind
from eagleray.sources.source import Source
from eagleray.sources.unsupported import refuse_unread_name

__all__ = [
    "ARCHIVE",
    "ARCHIVES",
    "archive_packing",
    "archive_tables",
    "input_members",
]

ARCHIVES: dict[str, Packing] = {".tar": "tar", ".zip": "zip"}
"""Formats by extension."""


def archive_packing(location: str) -> Packing | None:
    """Return the format of an archive by its extension; None for other files."""
    lower = location.lower()
    return next((kind for extension, kind in ARCHIVES.items() if lower.endswith(extension)), None)


def archive_tables(
    container: str, version: str, packing: Packing, skipped: SkippedFiles
) -> Iterator[pa.Table]:
    """Yield the rows of an archive's images, in its order.

    Args:
        container: Absolute location of the archive.
        version: Version of the archive; empty if it is not known.
        packing: Format of the archive.
        skipped: Counts the members that are not inputs.

    Raises:
        InputError: If the archive is not there, cannot be read, or is damaged.
    """
    try:
        members = input_members(list_members(container, packing), skipped)
    except FileNotFoundError:
        raise InputError(f"There is no archive {container}; check the path.") from None
    except OSError as error:
        raise InputError(f"Cannot read {container}: {error.strerror or error}.") from error
    for start in range(0, len(members), ROWS_AT_ONCE):
        some = members[start : start + ROWS_AT_ONCE]
        yield listing_of_sources(
            [
                ImageSource(
                    uri=packed_uri(packing, member.name, container),
                    size=member.size,
                    packing=packing,
                    container=container,
                    offset=member.offset,
                )
                for member in some
            ],
            [packed_version(version, member.offset) for member in some],
        )


def input_members(members: Iterable[Member], skipped: SkippedFiles) -> list[Member]:
    """Return the members that are inputs: not hidden, and no annotations of an image.

    In a WebDataset the files of one sample share their name up to the first dot of the last part:
    `7.cls` and `7.json` belong to `7.jpg` and are not inputs, and neither is `7.json` beside a
    `7.bin`, whose format was not known when it was packed. Members without a sample stay, so that
    none is lost silently.

    Args:
        members: Members of the archive.
        skipped: Counts those that are not inputs.
    """
    visible = []
    for member in members:
        kind = skipped_kind(member.name)
        if kind is None:
            visible.append(member)
        else:
            skipped.add(kind, member.name)
    samples = {_sample(member.name) for member in visible if is_image_name(member.name)}
    described = {_sample(member.name) for member in visible if not _is_json(member.name)}

    def is_input(name: str) -> bool:
        if is_image_name(name) or not posixpath.splitext(name)[1]:
            return True
        return _sample(name) not in (described if _is_json(name) else samples)

    inputs = []
    for member in visible:
        if is_input(member.name):
            inputs.append(member)
        else:
            skipped.add(ANNOTATION, member.name)
    return inputs


def _is_json(name: str) -> bool:
    return name.lower().endswith(".json")


def _sample(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _open_archive(location: str, _spec: InputSpec, skipped: SkippedFiles) -> OpenedSource:
    require_file(location)
    refuse_unread_name(location)
    packing = archive_packing(location)
    assert packing is not None
    info = describe_file(location)
    tables = archive_tables(info.uri, info.version, packing, skipped)
    nothing = f"Archive {location} holds no images."
    return OpenedSource(location, pa.schema([]), tables, nothing, root=f"{packing}://")


ARCHIVE = Source("archive", lambda location: archive_packing(location) is not None, _open_archive)
