"""Archives and tables for tests, made of names and bytes."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.io.fetch import ImageSource
from eagleray.io.fetch.archives import list_members
from eagleray.io.fetch.source import Packing, packed_uri


def write_tar(path: Path, members: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> str:
    """Write a tar of files; returns its location."""
    items = members.items() if isinstance(members, Mapping) else members
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for name, content in items:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return str(path)


class _Unseekable(io.BytesIO):
    """Makes `zipfile` write sizes and checksums behind the data, as streaming writers do."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def write_zip(
    path: Path,
    members: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    *,
    compression: int = zipfile.ZIP_DEFLATED,
    streamed: bool = False,
) -> str:
    """Write a zip of files; returns its location."""
    items = members.items() if isinstance(members, Mapping) else members
    buffer = _Unseekable() if streamed else io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in items:
            archive.writestr(name, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return str(path)


def write_parquet(path: Path, columns: Mapping[str, Any] | pa.Table, **options: Any) -> str:
    """Write a Parquet file; `options` go to the writer; returns its location."""
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def hugging_face_images(contents: Iterable[bytes | None]) -> pa.Array:
    """Make a column as that library writes it: structs of bytes and path."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": content, "path": None} for content in contents], kind)


def member_source(container: str, packing: Packing, name: str) -> ImageSource:
    """Return where a member of an archive is."""
    member = next(each for each in list_members(container, packing) if each.name == name)
    uri = packed_uri(packing, name, container)
    return ImageSource(uri, member.size, packing, container, member.offset)


def cell_source(container: str, column: str, row: int) -> ImageSource:
    """Return where a cell of a Parquet column is."""
    uri = packed_uri("parquet", f"{column}/{row}", container)
    return ImageSource(uri, None, "parquet", container, row)
