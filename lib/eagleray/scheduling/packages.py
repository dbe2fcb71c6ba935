"""The archive of local inputs that travels with a job, and its copy that outlives the head.

An archive has a name that is made of its content, so the same inputs are kept once. Ray unpacks it
in a folder of the head's session, which another head does not have: a job whose inputs were there
could not be resumed. So its files are put where jobs keep their logs, if that is storage that all
nodes reach: the job reads its folders of inputs there, and a further attempt makes the archive of
them. Otherwise a copy of the archive is kept beside the job's log.

Jobs share such files only with others of the same month, so that those of an earlier one can be
removed by their age.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from eagleray.core.errors import InputError

if TYPE_CHECKING:
    from eagleray.database.tables import JobRow

__all__ = [
    "INPUTS",
    "MODELS",
    "keep_package",
    "make_package",
    "place_inputs",
    "read_package",
    "replace_words",
]

INPUTS: Final = "inputs"
"""Folder of local inputs in an archive, and where a job runs."""
MODELS: Final = "models"
"""Folder of local model packages beside it."""

_COMPLETE: Final = "_all_files"
_PARALLEL: Final = 16

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the same content makes the same archive


def make_package(files: Mapping[str, Path]) -> tuple[str, bytes]:
    """Return the name and the content of an archive.

    Args:
        files: Files by their place in the archive.

    Raises:
        InputError: If a file cannot be read.
    """
    contents = {}
    for name, file in files.items():
        try:
            contents[name] = file.read_bytes()
        except OSError as error:
            raise InputError(
                f"{file} cannot be read ({error.strerror}); it travels with the job, so make it "
                "readable."
            ) from None
    content = _archive(contents)
    return f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip", content


def _archive(contents: Mapping[str, bytes]) -> bytes:
    """Return an archive of files, which the same files always give."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(contents):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), contents[name])
    return buffer.getvalue()


def keep_package(row: JobRow, folder: Path) -> None:
    """Keep a copy of a job's archive beside its log, unless it is there already.

    Args:
        row: The job.
        folder: Folder in which the archive was unpacked.

    Raises:
        OSError: If the storage refuses.
    """
    from eagleray.io import storage

    if not row.package or storage.exists(_copy(row)):
        return
    name, content = make_package({one: folder / one for one in _names(folder)})
    if name == row.package:
        storage.put_atomic(_copy(row), content)


def place_inputs(row: JobRow, folder: Path, root: str) -> dict[str, str]:
    """Put the files of a job's archive into storage, unless they are there already.

    Args:
        row: The job.
        folder: Folder in which the archive was unpacked.
        root: Storage that all nodes reach, where jobs keep their logs.

    Returns:
        The location of each folder of inputs, by its name in the archive.

    Raises:
        OSError: If the storage refuses.
    """
    from eagleray.io import storage

    month = f"{datetime.now(UTC):%Y-%m}"
    place = storage.join(root, "_inputs", month, row.package.removesuffix(".zip"))
    names = _names(folder)
    if not storage.exists(storage.join(place, _COMPLETE)):

        def put(name: str) -> None:
            storage.put_atomic(_location(place, name), (folder / name).read_bytes())

        with ThreadPoolExecutor(_PARALLEL) as threads:
            for _ in threads.map(put, names):
                pass
        storage.put_atomic(storage.join(place, _COMPLETE), b"")
    storage.put_atomic(_list(row), json.dumps({"place": place, "files": names}).encode())
    folders = [one for one in (folder / INPUTS).glob("*/*") if one.is_dir()]
    return {
        str(one.relative_to(folder)): _location(place, str(one.relative_to(folder)))
        for one in folders
    }


def read_package(row: JobRow) -> bytes:
    """Return a job's archive, from the files that were put into storage or from its copy.

    Raises:
        InputError: If there is neither, or the storage does not answer.
    """
    from eagleray.io import storage

    try:
        with storage.using_s3(storage.S3Options(**row.s3)):
            try:
                placed = json.loads(storage.read_bytes(_list(row)))
            except FileNotFoundError:
                return storage.read_bytes(_copy(row))
            place, names = placed["place"], placed["files"]
            with ThreadPoolExecutor(_PARALLEL) as threads:
                found = threads.map(lambda one: storage.read_bytes(_location(place, one)), names)
                return _archive(dict(zip(names, found, strict=True)))
    except OSError as error:
        raise InputError(
            f"The local inputs of job {row.id} are gone with the head, and their copy cannot be "
            f"read ({error}); submit its command again."
        ) from None


def _names(folder: Path) -> list[str]:
    """Return the names of an unpacked archive's files."""
    files = (file for name in (INPUTS, MODELS) for file in (folder / name).rglob("*"))
    return sorted(str(file.relative_to(folder)) for file in files if file.is_file())


def _location(place: str, name: str) -> str:
    from eagleray.io import storage

    return storage.join(place, *Path(name).parts)


def _copy(row: JobRow) -> str:
    from eagleray.io import storage

    return storage.join(row.logs, row.package)


def _list(row: JobRow) -> str:
    """Return the location of the list of a job's files in storage."""
    from eagleray.io import storage

    return storage.join(row.logs, f"{row.package}.json")


def replace_words(words: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return a command line in which inputs have other names."""

    def replaced(word: str) -> str:
        if word in names:
            return names[word]
        option, equals, value = word.partition("=")
        if equals and option.startswith("--") and value in names:
            return f"{option}={names[value]}"
        return word

    return [replaced(word) for word in words]
