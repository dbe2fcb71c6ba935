"""Files and addresses are read up to the limit, or fail with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.core.errors import Reason
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.io.http import UrlPolicy
from tests.support.image_sources import MAX_BYTES, failure


def test_a_file_is_read_up_to_one_byte_more_than_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"0123456789")
    source = ImageSource(str(tmp_path / "a.png"))
    assert ImageReader(10).read(source) == b"0123456789"
    assert ImageReader(4).read(source) == b"01234"


def test_a_file_known_to_be_too_large_is_not_read(tmp_path: Path) -> None:
    source = ImageSource(str(tmp_path / "not-even-there.png"), size=MAX_BYTES + 1)
    assert failure(source) == (
        Reason.TOO_MANY_BYTES,
        "the file has 1,048,577 bytes, the limit is 1,048,576",
    )


@pytest.mark.parametrize(
    ("uri", "reason", "message"),
    [
        ("{tmp}/none.png", Reason.MISSING, "there is no file at this location"),
        ("{tmp}", Reason.MISSING, "there is no file at this location"),
        ("", Reason.MISSING, "the table has no location in this row"),
        ("memory:///none.png", Reason.MISSING, "there is no file at this location"),
        ("nonsense://a", Reason.UNREADABLE, "nonsense://a is not opened: supported"),
        ("https://example.org/a.png", Reason.UNREADABLE, "is not fetched: a table of"),
        ("tar://a::{tmp}/none.tar", Reason.MISSING, "there is no such archive or table"),
        ("zip://a::nonsense://b", Reason.UNREADABLE, "nonsense://b is not opened: supported"),
    ],
)
def test_what_is_not_there_has_a_reason(
    tmp_path: Path, uri: str, reason: Reason, message: str
) -> None:
    found = failure(ImageSource(uri.format(tmp=tmp_path)))
    assert found[0] == reason
    assert message in found[1]


def test_addresses_are_left_to_the_policy() -> None:
    with_policy = ImageReader(MAX_BYTES, UrlPolicy(hosts=("images.example.org",)))
    reason, message = failure(ImageSource("HTTPS://other.example.org/a.png"), with_policy)
    assert reason == Reason.UNREADABLE
    assert "other.example.org" in message
