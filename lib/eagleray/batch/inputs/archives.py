"""The members of archives that are inputs."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator

import pyarrow as pa

from eagleray import storage
from eagleray.batch.inputs.listing import ROWS_AT_ONCE, listing_of_sources, packed_version
from eagleray.errors import InputError
from eagleray.fetch import ImageSource, Packing, packed_uri
from eagleray.fetch.archives import Member, list_members

__all__ = [
    "ARCHIVES",
    "COMPRESSED_ARCHIVES",
    "archive_packing",
    "archive_tables",
    "input_members",
    "refuse_compressed",
]

ARCHIVES: dict[str, Packing] = {".tar": "tar", ".zip": "zip"}
"""Packings by extension."""

COMPRESSED_ARCHIVES = tuple(
    f".{name}" for name in ("tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz", "tar.zst", "tzst")
)
"""Extensions of archives that are compressed as a whole: no member of theirs can be reached."""

_IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".tif", ".tiff"),
    *(".webp", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".ico", ".tga"),
)


def archive_packing(location: str) -> Packing | None:
    """Return the kind of an archive by its extension; None for other files."""
    lower = location.lower()
    return next((kind for extension, kind in ARCHIVES.items() if lower.endswith(extension)), None)


def archive_tables(container: str, version: str, packing: Packing) -> Iterator[pa.Table]:
    """Yield the rows of an archive's images, in its order.

    Args:
        container: Absolute location of the archive.
        version: Of the archive; empty where nobody says.
        packing: Of the archive.

    Raises:
        InputError: It is not there, cannot be read, or is damaged.
    """
    try:
        members = input_members(list_members(container, packing))
    except FileNotFoundError:
        raise InputError(f"There is no archive {container}; check the path.") from None
    except OSError as error:
        raise InputError(f"Cannot read {container}: {error.strerror or error}.") from error
    for start in range(0, len(members), ROWS_AT_ONCE):
        part = members[start : start + ROWS_AT_ONCE]
        yield listing_of_sources(
            [
                ImageSource(
                    uri=packed_uri(packing, member.name, container),
                    size=member.size,
                    packing=packing,
                    container=container,
                    offset=member.offset,
                )
                for member in part
            ],
            [packed_version(version, member.offset) for member in part],
        )


def input_members(members: Iterable[Member]) -> list[Member]:
    """Leave out hidden members, and those that only describe an image.

    In a WebDataset the files of one sample share their name up to the first dot of the last part:
    `7.cls` and `7.json` belong to `7.jpg`, and are no inputs; so does `7.json` to a `7.bin` whose
    format nobody knew. What belongs to nothing stays, so that nothing is lost without a word.
    """
    visible = [member for member in members if not _is_hidden(member.name)]
    samples = {_sample(member.name) for member in visible if _is_image(member.name)}
    described = {_sample(member.name) for member in visible if not _is_json(member.name)}

    def is_input(name: str) -> bool:
        if _is_image(name) or not posixpath.splitext(name)[1]:
            return True
        return _sample(name) not in (described if _is_json(name) else samples)

    return [member for member in visible if is_input(member.name)]


def _is_json(name: str) -> bool:
    return name.lower().endswith(".json")


def _is_image(name: str) -> bool:
    return name.lower().endswith(_IMAGES)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) and part not in (".", "..") for part in name.split("/"))


def _sample(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def refuse_compressed(location: str) -> None:
    """Raise the sentence for an archive that is compressed as a whole.

    Raises:
        InputError: Always, if it is one.
    """
    if location.lower().endswith(COMPRESSED_ARCHIVES):
        raise InputError(
            f"{storage.name_of(location)} is compressed as a whole, so that no image in it can be "
            f"reached ({location}); decompress it to a .tar, or unpack it into a folder."
        )
