"""Refuses files that are a table, a list or an archive of a kind that is not read.

Such a file would otherwise be one image that fails as "not an image". A file that the user names is
checked by its name and its first bytes. Files in folders are taken for images, except archives,
whose images would be lost.
"""

from __future__ import annotations

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.file_kinds import NUM_SNIFFED_BYTES, describe_file_kind, is_image_name, is_text
from eagleray.io.tables import TABLE_EXTENSIONS

__all__ = [
    "UNREAD_ARCHIVES",
    "UNREAD_EXTENSIONS",
    "is_unread_name",
    "refuse_unread_archive",
    "refuse_unread_content",
    "refuse_unread_name",
]

_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".z")
UNREAD_ARCHIVES = (
    *(f".tar{compression}" for compression in _COMPRESSIONS),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".7z", ".rar"),
)
"""Extensions of archives that are compressed as a whole: no member of theirs can be reached."""

_LIST_ADVICE = (
    "for a list of images put a line `path` above their locations, and name the file .csv"
)
_FAULTS = {
    (".xlsx", ".xlsm", ".xls", ".ods", ".numbers"): (
        "is a spreadsheet, which is not read; save its table as CSV in UTF-8, or as Parquet"
    ),
    (".txt", ".text", ".lst", ".list", ".log", ".md"): (
        f"is a text, and no table that is read; {_LIST_ADVICE}"
    ),
    (".json", ".geojson", ".manifest"): (
        "is JSON, which is not read as a whole; write one object in each line into a file that is "
        "named .jsonl, and name the column of locations with --column"
    ),
    (".arrow", ".feather", ".ipc", ".orc", ".avro", ".pkl", ".pickle", ".npy", ".npz", ".mat"): (
        "is a table or an array of a kind that is not read; write it as Parquet"
    ),
    (".db", ".sqlite", ".sqlite3", ".duckdb", ".h5", ".hdf5", ".lmdb", ".mdb"): (
        "is a database, which is not read; write its table as Parquet"
    ),
    (".tfrecord", ".tfrecords", ".rec", ".beton", ".msgpack"): (
        "packs records in a way that is not read; write the images into a tar, a zip or Parquet"
    ),
    (".xml", ".yaml", ".yml", ".html", ".htm", ".pdf"): (
        f"is a document, and no table that is read; {_LIST_ADVICE}"
    ),
    _COMPRESSIONS: "is compressed as a whole, and not read so; decompress it",
    tuple(f"{table}.zip" for table in TABLE_EXTENSIONS): (
        "is a table in a zip archive, and not read so; unpack it"
    ),
}

UNREAD_EXTENSIONS = (*UNREAD_ARCHIVES, *(name for names in _FAULTS for name in names))
"""Extensions of all files that are plainly no images, and nothing else that is read."""


def refuse_unread_archive(location: str) -> None:
    """Raise the sentence for an archive that is compressed as a whole.

    Raises:
        InputError: If it is one, by its name.
    """
    if location.lower().endswith(UNREAD_ARCHIVES):
        raise InputError(
            f"{storage.name_of(location)} is compressed as a whole, so that no image in it can be "
            f"reached ({location}); decompress it to a .tar, or unpack it into a folder."
        )


def is_unread_name(name: str) -> bool:
    """Whether a name is that of a table, a list or an archive of a kind that is not read."""
    return name.lower().endswith(UNREAD_EXTENSIONS)


def refuse_unread_name(location: str) -> None:
    """Raise the sentence for a table, a list or an archive of a kind that is not read.

    Raises:
        InputError: If it is one, by its name.
    """
    refuse_unread_archive(location)
    fault = _fault_of_name(location)
    if fault is not None:
        raise InputError(f"{location} {fault}.")


def _fault_of_name(name: str) -> str | None:
    lower = name.lower()
    return next((fault for names, fault in _FAULTS.items() if lower.endswith(names)), None)


def refuse_unread_content(location: str) -> None:
    """Raise the sentence for a file that is not an image by its name nor by its first bytes.

    Args:
        location: Location of an existing file that is no table and no archive by its name.

    Raises:
        InputError: If it begins like a text, an archive or a database.
    """
    if is_image_name(location):
        return
    try:
        start = storage.read_range(location, 0, NUM_SNIFFED_BYTES)
    except OSError:  # its row says so when it is read as an image
        return
    kind = describe_file_kind(start)
    if kind is not None:
        raise InputError(
            f"{location} is {kind} under another name; give it the extension of what it is."
        )
    if is_text(start) and not start.lstrip().startswith((b"<svg", b"<?xml")):
        raise InputError(
            f"{location} is a text, and neither an image nor a table that is read; {_LIST_ADVICE}."
        )
