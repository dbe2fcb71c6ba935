"""The archive of local inputs that travels with a job, and its copy that outlives the head.

An archive has a name that is made of its content, so the same inputs are kept once. Ray unpacks it
in a folder of the head's session, which another head does not have: a job whose inputs were there
could not be resumed. So folders of inputs are put where jobs keep their logs, if that is storage
that all nodes reach, and the job reads them there.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

_COMPLETE: Final = "_complete"
_PARALLEL: Final = 16

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the same content makes the same archive


def make_package(files: Mapping[str, Path]) -> tuple[str, bytes]:
    """Return the name and the content of an archive.

    Args:
        files: Files by their place in the archive.

    Raises:
        InputError: If a file cannot be read.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            try:
                content = files[name].read_bytes()
            except OSError as error:
                raise InputError(
                    f"{files[name]} cannot be read ({error.strerror}); it travels with the job, "
                    "so make it readable."
                ) from None
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    content = buffer.getvalue()
    return f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip", content


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
    files = {str(file.relative_to(folder)): file for file in _files(folder, INPUTS, MODELS)}
    name, content = make_package(files)
    if name == row.package:
        storage.put_atomic(_copy(row), content)


def place_inputs(row: JobRow, folder: Path, root: str) -> dict[str, str]:
    """Put the folders of a job's inputs into storage, unless they are there already.

    Args:
        row: The job.
        folder: Folder in which the archive was unpacked.
        root: Where jobs keep their logs.

    Returns:
        The location of each folder, by its name in the archive.

    Raises:
        OSError: If the storage refuses.
    """
    from eagleray.io import storage

    if not row.package or not storage.is_remote(root):
        return {}
    place = storage.join(root, "_inputs", row.package.removesuffix(".zip"))
    names = [str(one.relative_to(folder)) for one in (folder / INPUTS).glob("*/*") if one.is_dir()]
    if names and not storage.exists(storage.join(place, _COMPLETE)):

        def put(file: Path) -> None:
            location = storage.join(place, *file.relative_to(folder).parts)
            storage.put_atomic(location, file.read_bytes())

        with ThreadPoolExecutor(_PARALLEL) as threads:
            for _ in threads.map(put, _files(folder, *names)):
                pass
        storage.put_atomic(storage.join(place, _COMPLETE), b"")
    return {name: storage.join(place, *Path(name).parts) for name in names}


def _files(folder: Path, *names: str) -> Iterator[Path]:
    for name in names:
        yield from (file for file in (folder / name).rglob("*") if file.is_file())


def read_package(row: JobRow) -> bytes:
    """Return the copy of a job's archive.

    Raises:
        InputError: If there is none, or the storage does not answer.
    """
    from eagleray.io import storage

    try:
        with storage.using_s3(storage.S3Options(**row.s3)):
            return storage.read_bytes(_copy(row))
    except OSError as error:
        raise InputError(
            f"The local inputs of job {row.id} are gone with the head, and their copy cannot be "
            f"read ({error}); submit its command again."
        ) from None


def _copy(row: JobRow) -> str:
    from eagleray.io import storage

    return storage.join(row.logs, row.package)


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
