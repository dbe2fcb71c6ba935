"""The specification of a packing job."""

from __future__ import annotations

import pytest

from eagleray.core.errors import InputError
from eagleray.packing.spec import PackSpec
from tests.support.packing import MIB


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MB", 256 * 10**6),
        ("1.5 gb", 15 * 10**8),
        ("64MiB", 64 * MIB),
        ("64M", 64 * 10**6),
        ("1000000", 10**6),
        *((text, None) for text in ("999KB", "5GB", "MB", "-1MB", "256 bytes", "1e9", "")),
    ],
)
def test_sizes_are_read_as_they_are_written(text: str, size: int | None) -> None:
    fields = {"inputs": ["a"], "output": "b", "file_size": text}
    if size is not None:
        assert PackSpec.make(fields).file_bytes == size
        return
    with pytest.raises(InputError, match="file_size: write a size such as 256MB, from 1MB to 4GB"):
        PackSpec.make(fields)
