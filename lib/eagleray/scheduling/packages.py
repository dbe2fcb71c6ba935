"""The archive of local inputs that travels with a job, and its copy that outlives the head.

An archive has a name that is made of its content, so the same inputs are kept once.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from eagleray.core.errors import InputError

if TYPE_CHECKING:
    from eagleray.database.tables import JobRow

__all__ = ["INPUTS", "keep_package", "make_package", "read_package"]

INPUTS: Final = "inputs"
"""Folder of local inputs in an archive, and where a job runs."""

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
    found = [file for file in (folder / INPUTS).rglob("*") if file.is_file()]
    name, content = make_package({str(file.relative_to(folder)): file for file in found})
    if name == row.package:
        storage.put_atomic(_copy(row), content)


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
