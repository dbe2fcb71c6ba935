"""Packed images are found by their URIs."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.core.errors import Reason
from eagleray.imaging import named_contract
from eagleray.io.fetch import ImageSource, fetch_image, packed_uri
from tests.support.containers import (
    cell_source,
    write_parquet,
    write_tar,
    write_zip,
)
from tests.support.image_sources import CONTENTS, failure, reader


def test_packed_images_are_found_by_their_uris(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a::b.tar", CONTENTS)
    archive = write_zip(tmp_path / "a.zip", CONTENTS)
    table = write_parquet(tmp_path / "a.parquet", {"my/image::x": [b"0", b"1"]})
    contract = named_contract("fast")
    for name, content in CONTENTS.items():
        assert fetch_image(packed_uri("tar", name, tar), contract) == content
        assert fetch_image(packed_uri("zip", name, archive), contract) == content
    assert fetch_image(packed_uri("parquet", "my/image::x/1", table), contract) == b"1"
    assert fetch_image(cell_source(table, "my/image::x", 0), contract) == b"0"


@pytest.mark.parametrize(
    "uri",
    [
        "tar://none.jpg::{tmp}/a.tar",
        "parquet://image/7::{tmp}/a.parquet",
        "parquet://image/-1::{tmp}/a.parquet",
        "parquet://image/::{tmp}/a.parquet",
        "parquet://label/0::{tmp}/a.parquet",
    ],
)
def test_a_packed_image_that_is_not_there_is_missing(tmp_path: Path, uri: str) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": b"a"})
    write_parquet(tmp_path / "a.parquet", {"image": [b"a"], "label": ["x"]})
    reason, message = failure(ImageSource(uri.format(tmp=tmp_path)))
    assert reason == Reason.MISSING
    assert message == "there is no such archive or table, or no such image in it"


def test_a_uri_finds_the_container_as_it_is_now(tmp_path: Path) -> None:
    shared = reader()
    source = ImageSource(f"tar://b.jpg::{tmp_path}/a.tar")
    write_tar(tmp_path / "a.tar", {"a.jpg": b"a"})
    assert failure(source, shared)[0] == Reason.MISSING
    write_tar(tmp_path / "a.tar", {"a.jpg": b"a", "b.jpg": b"b"})
    assert shared.read(source) == b"b"
