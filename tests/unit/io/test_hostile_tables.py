"""Tables, archives and earlier outputs whose locations lead out of where a job may read.

Each is checked by its text and by where its links lead, before anything is requested: so the
refusal is the same whether or not something is there, and nothing is connected to.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagleray.core.errors import BadImageError, Reason, UserError
from eagleray.io import storage
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.io.storage import PathPolicy, S3Options
from eagleray.sources import LISTING_SCHEMA
from tests.support.batch import output, s3_fields
from tests.support.containers import hugging_face_images, write_parquet, write_tar, write_zip
from tests.support.http_site import Site, running
from tests.support.images import encode, photo
from tests.support.job_folder import JobFolder

IMAGE = encode(photo(8, 8))


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that S3 clients of this process would reach; nothing may connect to it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with running(Site()) as site:
        yield site
    assert site.asked == {}
    assert site.num_connections == 0


@pytest.fixture
def place(tmp_path: Path) -> JobFolder:
    place = JobFolder(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(IMAGE)
    write_zip(outside / "a.zip", {"m.png": IMAGE})
    write_tar(outside / "a.tar", {"m.png": IMAGE})
    write_parquet(outside / "a.parquet", {"image": [IMAGE]})
    return place


def refusal(place: JobFolder, *inputs: str, site: Site | None = None, **overrides: Any) -> str:
    """Open a job that may read one folder, and return why it is refused."""
    s3 = S3Options(endpoint=site.url("", "127.0.0.1")) if site else S3Options()
    out = place.folder / "out"
    within = (str(place.folder / "images"), "s3://bucket/data/")
    with pytest.raises(UserError) as caught, storage.using_s3(S3Options()):
        place.open(**{"inputs": inputs, "allow_path": within, **s3_fields(s3), **overrides})
    assert not out.exists(), "a refused job leaves nothing behind"
    return str(caught.value)


def refusal_of_row(place: JobFolder, row: str, *, site: Site | None = None) -> str:
    """Return why a job is refused whose table names a location."""
    table = place.folder / "images" / "list.csv"
    table.write_text(f'path\n"{row}"\n')
    return refusal(place, str(table), site=site)


OUTSIDE = "which is outside the locations that this job may read"

REMOTE = [
    "zip://a.jpg::webhdfs://127.0.0.1:{port}/x.zip",
    "tar://a.jpg::webhdfs://127.0.0.1:{port}/x.tar",
    "parquet://image/0::webhdfs://127.0.0.1:{port}/x.parquet",
    "zip://a::zip://b::webhdfs://127.0.0.1:{port}/x.zip",
    "webhdfs://127.0.0.1:{port}/a.png",
    "zip://a::s3://elsewhere/x.zip",
    "tar://a::s3://elsewhere/x.tar",
    "parquet://image/0::s3://elsewhere/x.parquet",
    "zip://a::zip://b::s3://elsewhere/x.zip",
    "zip://a::s3://bucket/database/x.zip",
    "zip://a::s3://bucket/data/../other/x.zip",
    "zip://a::s3://bucket/data/%2e%2e/other/x.zip",
    "zip://a::s3://bucket/data/%252E%252E/x.zip",
    "zip://a::s3://bucket/data/..\\other/x.zip",
    "zip://a::s3://key:secret@bucket/data/x.zip",
    "zip://a::S3://bucket/data/x.zip",
    "zip://a::s3://bucket/data/x.zip::s3://elsewhere/x.zip",
    "zip://a::s3:///elsewhere/x.zip",
    "zip://a::simplecache::s3://elsewhere/x.zip",
    "zip://a::filecache://s3://elsewhere/x.zip",
    "zip://a::http://127.0.0.1:{port}/x.zip",
    "parquet://image/0::https://127.0.0.1:{port}/x.parquet",
    "zip://a::ftp://127.0.0.1:{port}/x.zip",
    "zip://a::github://a:b@main/x.zip",
    "zip://a::dask://x.zip",
    "zip://a::reference://x.zip",
    "zip://a::libarchive://x.zip::file:///etc/passwd",
    "zip://a::jupyter://127.0.0.1:{port}/x.zip",
    "zip://a::sftp://127.0.0.1:{port}/x.zip",
    "zip://a::smb://127.0.0.1:{port}/x.zip",
    "zip://a::memory://x.zip",
    "simplecache::s3://bucket/data/a.png",
    "s3://elsewhere/a.png",
    "s3://bucket/database/a.png",
    "s3://key:secret@bucket/data/a.png",
]


@pytest.mark.parametrize("row", REMOTE)
def test_a_row_that_is_elsewhere_is_refused_before_any_request(
    place: JobFolder, canary: Site, row: str
) -> None:
    row = row.format(port=canary.port)
    assert refusal_of_row(place, row, site=canary).startswith(f"Input 0 is {row}, {OUTSIDE}: ")


LOCAL = [
    "{}/outside/{}.png",
    "file://{}/outside/{}.png",
    "local://{}/outside/{}.png",
    "FILE://{}/outside/{}.png",
    "{}/images/../outside/{}.png",
    "../outside/{}.png",
    "zip://m.png::{}/outside/{}.zip",
    "zip://b.png::{}/outside/{}.zip",
    "tar://m.png::{}/outside/{}.tar",
    "tar://b.png::file://{}/outside/{}.tar",
    "parquet://image/0::{}/outside/{}.parquet",
    "parquet://image/7::{}/outside/{}.parquet",
    "parquet://label/0::{}/outside/{}.parquet",
    "zip://m.png::../outside/{}.zip",
    "zip://m.png::{}/images/../outside/{}.zip",
    "zip://m.png::zip://b::{}/outside/{}.zip",
    "zip://m.png::{}/images/000.png::{}/outside/{}.zip",
    "zip://m.png::{}/images/way-out/{}.zip",
    "{}/images/way-out/{}.png",
    "{}/images/way-out-{}",
    "zip://m.png::{}/images/way-out-{}.zip",
]


@pytest.mark.parametrize("row", LOCAL)
def test_a_refusal_is_the_same_whether_or_not_something_is_there(
    place: JobFolder, row: str
) -> None:
    folder = place.folder
    (folder / "images" / "way-out").symlink_to(folder / "outside")
    for name in ("a", "none"):
        (folder / "images" / f"way-out-{name}").symlink_to(folder / "outside" / f"{name}.png")
        (folder / "images" / f"way-out-{name}.zip").symlink_to(folder / "outside" / f"{name}.zip")
    said = []
    for name in ("a", "none"):
        words = row.replace("{}.", f"{name}.").replace("-{}", f"-{name}").replace("{}", str(folder))
        said.append(re.sub(rf"(?<=[/-]){name}\b", "?", refusal_of_row(place, words)))
    assert said[0] == said[1]
    assert OUTSIDE in said[0]


@pytest.mark.parametrize("kind", ["input", "since", "failed_only"])
@pytest.mark.parametrize(
    "location",
    [
        "zip://a.jpg::webhdfs://127.0.0.1:{port}/x.zip",
        "webhdfs://127.0.0.1:{port}/x/",
        "s3://elsewhere/x/",
        "s3://elsewhere/**/*.png",
        "zip://a::s3://elsewhere/x.zip",
        "tar://a.png::{folder}/outside/a.tar",
        "tar://a.png::{folder}/outside/none.tar",
        "{folder}/outside",
        "{folder}/images/../outside/*.png",
    ],
)
def test_what_a_command_names_itself_is_checked_too(
    place: JobFolder, canary: Site, kind: str, location: str
) -> None:
    location = location.format(port=canary.port, folder=place.folder)
    fields: dict[str, dict[str, Any]] = {
        "input": {"inputs": (location,)},
        "since": {"inputs": (str(place.folder / "images"),), "since": (location,)},
        "failed_only": {"inputs": (), "failed_only": location},
    }
    assert OUTSIDE in refusal(place, site=canary, **fields[kind])


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", ["link.zip", "link.tar", "link.parquet", "link.png", "link"])
@pytest.mark.parametrize("pattern", ["", "/**/*", "/l*", "/*/*", "/l*/a*", "/[l]ink/a.png"])
def test_a_link_in_a_folder_leads_nowhere_else(
    place: JobFolder, name: str, pattern: str, there: bool
) -> None:
    """It is refused by its own name, and nothing of what it leads to is listed or opened."""
    folder, target = place.folder, place.folder / "outside"
    if name != "link":
        target = (target / "a.png").with_suffix(Path(name).suffix)
    (folder / "images" / name).symlink_to(target)
    if not there:
        shutil.rmtree(folder / "outside")
        if name == "link":  # a folder is told from a file by what it is
            (folder / "outside").mkdir()
    said = refusal(place, f"{folder}/images{pattern}")
    if name != "link" and "ink/" in pattern:
        assert "No file matches the pattern" in said
    else:
        assert f"is {folder}/images/{name}, {OUTSIDE}" in said


def test_tables_behind_links_are_not_opened(place: JobFolder) -> None:
    shutil.rmtree(place.folder / "images")
    (place.folder / "images").mkdir()
    for there in ("a.parquet", "none.parquet"):
        link = place.folder / "images" / "t.parquet"
        link.unlink(missing_ok=True)
        link.symlink_to(place.folder / "outside" / there)
        for given in (place.folder / "images", link, place.folder / "images" / "*"):
            assert OUTSIDE in refusal(place, str(given))


def test_paths_in_cells_of_images_are_checked_too(place: JobFolder, canary: Site) -> None:
    for path in ("zip://a::webhdfs://127.0.0.1:{}/x.zip", "../outside/a.png", "/etc/passwd"):
        kind = hugging_face_images([]).type
        cell = {"bytes": None, "path": path.format(canary.port)}
        table = write_parquet(
            place.folder / "images" / "t.parquet", {"image": pa.array([cell], kind)}
        )
        assert OUTSIDE in refusal(place, table, site=canary)


def test_members_are_never_paths(place: JobFolder) -> None:
    """Whatever a member is called, its bytes are those in the archive."""
    names = ["../../outside/a.png", "/etc/passwd", "file:///etc/passwd", "s3://elsewhere/a.png"]
    location = write_zip(place.folder / "images" / "a.zip", dict.fromkeys(names, IMAGE))
    policy = PathPolicy((str(place.folder / "images"),))
    reader = ImageReader(2**20, path_policy=policy)
    job = place.open(inputs=(location,), allow_path=policy.prefixes)
    rows = pa.concat_tables(job.manifest.tables()).to_pylist()
    assert len(rows) == len(names)
    for row in rows:
        source = {name: row[name] for name in ("uri", "size", "packing", "container", "offset")}
        assert reader.read(ImageSource(**source)) == IMAGE


def test_links_in_a_tar_lead_to_its_own_members_alone(place: JobFolder) -> None:
    import tarfile

    path = place.folder / "images" / "links.tar"
    with tarfile.open(path, "w") as archive:
        for number, target in enumerate(["/etc/passwd", "../outside/a.png"]):
            entry = tarfile.TarInfo(f"{number}.png")
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    job = place.open(inputs=(str(path),), allow_path=(str(place.folder / "images"),))
    offsets = pa.concat_tables(job.manifest.tables()).column("offset").to_pylist()
    assert offsets == [None, None]


def test_names_with_colons_inside_of_what_is_allowed_are_read(place: JobFolder) -> None:
    images = place.folder / "images"
    write_zip(images / "b::c.zip", {"a.png": IMAGE, "d::e.png": IMAGE})
    (images / "list.csv").write_text("path\nzip://a.png::b::c.zip\nzip://d::e.png::b::c.zip\n")
    job = place.open(inputs=(str(images / "list.csv"),), allow_path=(str(images),))
    rows = pa.concat_tables(job.manifest.tables()).to_pylist()
    assert [row["container"] for row in rows] == [f"{images}/b::c.zip"] * 2


# --- where images are read --------------------------------------------------------------------


SOURCES: list[Callable[[str], ImageSource]] = [
    lambda outside: ImageSource(f"{outside}/a.png"),
    lambda outside: ImageSource(f"{outside}/none.png"),
    lambda outside: ImageSource(f"{outside}/a.png", container=f"{outside}/../images/a.zip"),
    lambda outside: ImageSource(f"{outside}/a.png", container="http://127.0.0.1/a.zip"),
    lambda outside: ImageSource(f"zip://a.png::{outside}/a.zip"),
    lambda outside: ImageSource(f"zip://a.png::{outside}/none.zip"),
    lambda outside: ImageSource("a.png", 10, "zip", f"{outside}/a.zip", 0),
    lambda outside: ImageSource(f"{outside}/../images/a.png", 10, "tar", f"{outside}/a.tar", 512),
    lambda outside: ImageSource(
        f"parquet://image/0::{outside}/a.parquet", None, "parquet", f"{outside}/a.parquet", 0
    ),
    lambda outside: ImageSource("s3://elsewhere/a.png"),
    lambda outside: ImageSource("zip://a::webhdfs://127.0.0.1:7999/x.zip"),
    lambda outside: ImageSource("a", 10, "zip", "webhdfs://127.0.0.1:7999/x.zip", 0),
    lambda outside: ImageSource("a", 10, "zip", "https://127.0.0.1:7999/x.zip", 0),
]


@pytest.mark.parametrize("make", SOURCES)
def test_a_reader_refuses_what_is_elsewhere_despite_a_manifest(
    place: JobFolder, make: Callable[[str], ImageSource]
) -> None:
    reader = ImageReader(2**20, path_policy=PathPolicy((str(place.folder / "images"),)))
    with pytest.raises(BadImageError) as caught:
        reader.read(make(str(place.folder / "outside")))
    assert caught.value.reason is Reason.UNREADABLE
    assert caught.value.message == "this job may not read that location"


# --- forged earlier outputs -------------------------------------------------------------------


def forged(folder: Path, **columns: Any) -> str:
    """Make an earlier output whose only input failed, and say of that input what one likes."""
    made = output(folder, rows=1, failed={0})
    made.commit()
    (file,) = (made.folder / "_eagleray" / made.plan.manifest).glob("part-*")
    rows = pq.read_table(file)
    for name, value in columns.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(place), pa.array([value], rows[name].type))
    pq.write_table(rows, file)
    return str(made.folder)


@pytest.mark.parametrize(
    "columns",
    [
        {"uri": "{}/outside/a.png"},
        {"uri": "{}/outside/a.png", "container": "{}/images/a.zip"},
        {"uri": "{}/outside/a.png", "container": "http://a/a.zip"},
        {"uri": "http://a/a.png", "container": "{}/outside/a.zip", "packing": "zip"},
        {"uri": "zip://a.png::{}/outside/a.zip", "container": "{}/images/a.zip"},
        {"uri": "{}/images/000.png", "container": "{}/outside/a.tar", "packing": "tar"},
    ],
)
def test_failures_of_a_forged_output_are_checked_by_what_would_be_read(
    place: JobFolder, columns: dict[str, str]
) -> None:
    columns = {name: value.replace("{}", str(place.folder)) for name, value in columns.items()}
    earlier = forged(place.folder / "images" / "earlier", **columns)
    assert OUTSIDE in refusal(place, inputs=(), failed_only=earlier)


@pytest.mark.parametrize("file", ["_eagleray/plan.json", "_manifest.json"])
def test_names_in_an_earlier_output_are_names(place: JobFolder, file: str) -> None:
    """Else its owner could have the files of others read, with all that their rows say."""
    earlier = forged(place.folder / "images" / "earlier")
    path = Path(earlier) / file
    content = json.loads(path.read_text())
    for way in ("../../../outside/x", "/etc", "..", "", "a/b", "s3://elsewhere/x"):
        if file == "_manifest.json":
            content["files"][0]["name"] = way
        else:
            content["manifest"] = way
        path.write_text(json.dumps(content))
        said = refusal(place, inputs=(), failed_only=earlier)
        assert "of Eagleray" in said, said


def test_the_schema_that_these_tests_forge_is_the_one_in_use() -> None:
    assert LISTING_SCHEMA.names == ["uri", "size", "version", "packing", "container", "offset"]
