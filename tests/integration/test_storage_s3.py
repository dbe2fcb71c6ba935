"""Storage on an S3 server: exact names, waited-out faults, one winner, bounded listings."""

from __future__ import annotations

import itertools
import multiprocessing
import re
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import pytest
import s3fs

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.storage import S3Options, StorageUnavailableError, listing, retry, s3_keys
from eagleray.io.storage.remote import open_remote
from eagleray.io.storage.retry import RetryPolicy
from tests.support.s3_faults import FaultProxy, Faults
from tests.support.s3_listing import LAYOUTS, listing_server
from tests.support.s3_server import moto_server

ODD_KEYS = [
    " leading",
    "/lead",
    "//lead",
    "100%.png",
    "[ab].png",
    "a b.png",
    "a#b.png",
    "a%20b.png",
    "a&b<c>\"'.png",
    "a*b.png",
    "a+b.png",
    "a::b.png",
    "a?b.png",
    "back\\slash",
    "control\x01.png",
    "dot/./a.png",
    "dots/../a.png",
    "dots/..",
    "cr\rlf.png",
    "dots/../x.png",
    "grün 猫 🐈.png",
    "tab\t.png",
    "x//y.png",
    "é.png",
    "e\u0301.png",
]
EVERY_FAULT = Faults(slow_down=0.025, reset=0.025, hang=0.025, truncate=0.025)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server with a bucket, `pictures`."""
    with moto_server() as url:
        s3fs.S3FileSystem(endpoint_url=url, key="test", secret="test").mkdir("pictures")
        yield url


@pytest.fixture(autouse=True)
def _use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage of this process, and of those that a test starts, speaks to the server."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    storage.use_s3(S3Options(endpoint=endpoint))


@pytest.fixture
def server(endpoint: str) -> s3fs.S3FileSystem:
    """The server as another process sees it: no proxy, no code of ours."""
    return s3fs.S3FileSystem(
        endpoint_url=endpoint, key="test", secret="test", use_listings_cache=False
    )


@pytest.fixture
def proxy(endpoint: str) -> Iterator[FaultProxy]:
    """A proxy that storage goes through, without faults yet; silence is noticed soon."""
    with FaultProxy(endpoint) as running:
        fsspec.config.conf["s3"] = {"config_kwargs": {"read_timeout": 1}}
        storage.use_s3(S3Options(endpoint=running.endpoint))
        yield running


@pytest.fixture
def place() -> str:
    """An empty prefix."""
    return f"s3://pictures/{uuid.uuid4().hex}"


def fill(server: s3fs.S3FileSystem, place: str, names: list[str], content: bytes = b"1") -> None:
    bucket, prefix = place.removeprefix("s3://").split("/")
    for name in names:
        server.call_s3("put_object", Bucket=bucket, Key=f"{prefix}/{name}", Body=content)


def listed(place: str) -> list[str]:
    return [info.uri.removeprefix(f"{place}/") for info in storage.list_files(place)]


# --- names ------------------------------------------------------------------------------------


def test_keys_are_listed_and_read_letter_by_letter(server: s3fs.S3FileSystem, place: str) -> None:
    fill(server, place, ODD_KEYS)
    assert listed(place) == sorted(ODD_KEYS)
    for name in ODD_KEYS:
        uri = f"{place}/{name}"
        assert storage.exists(uri)
        assert storage.read_bytes(uri) == storage.read_bytes(uri, limit=9) == b"1"
        assert storage.size_of(uri) == 1
    storage.remove_tree(place)
    assert listed(place) == []


@pytest.mark.parametrize("name", ODD_KEYS)
def test_what_is_written_under_an_odd_name_is_found_under_it(place: str, name: str) -> None:
    uri = f"{place}/{name}"
    assert storage.put_if_absent(uri, b"one")
    storage.put_atomic(uri, b"two")
    assert listed(place) == [name]
    assert storage.read_bytes(uri) == b"two"
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_a_listing_holds_the_prefix_and_nothing_beside_it(
    server: s3fs.S3FileSystem, place: str
) -> None:
    fill(server, place, ["a/b.png", "a-b.png", "a.png", "ab/c.png", "a/"], b"")
    fill(server, place, ["a/c/d.png", "odd/"], b"123")
    assert listed(place) == ["a-b.png", "a.png", "a/b.png", "a/c/d.png", "ab/c.png", "odd/"]
    (table,) = storage.list_tables(f"{place}/a")
    assert table.schema == storage.LISTING_SCHEMA
    assert table.column("uri").to_pylist() == [f"{place}/a/b.png", f"{place}/a/c/d.png"]
    assert table.column("size").to_pylist() == [0, 3]
    etags = [server.info(uri)["ETag"] for uri in table.column("uri").to_pylist()]
    assert table.column("version").to_pylist() == etags
    assert list(storage.list_tables(f"{place}/nothing")) == []


def test_buckets_without_an_order_of_names_are_listed_folder_by_folder(
    server: s3fs.S3FileSystem,
    proxy: FaultProxy,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing, "_DIRECTORY_BUCKET_SUFFIX", "pictures")
    fill(server, place, ["b/2.png", "b/1.png", "a/x/1.png", "c.png", "a-b.png"])
    proxy.inject("reset_after")
    assert listed(place) == ["a-b.png", "a/x/1.png", "b/1.png", "b/2.png", "c.png"]
    assert proxy.counts == {"reset_after": 1}
    fill(server, place, ["b/3.png"])
    assert "b/3.png" in listed(place)


@pytest.mark.parametrize(
    "pattern",
    ["*.png", "**/*.png", "**", "*/*.png", "a/*/c.png", "[ab]*/?.png", "a/**/c.png", "[!a]*.png"],
)
def test_patterns_find_what_s3fs_finds(server: s3fs.S3FileSystem, place: str, pattern: str) -> None:
    fill(
        server,
        place,
        ["a.png", "b.png", "b.jpg", "a/c.png", "a/b/c.png", "a/b/d/c.png", "bb/x.png"],
    )
    expected = [f"s3://{name}" for name in sorted(server.glob(f"{place}/{pattern}"))]
    files = [uri for uri in expected if not server.isdir(uri)]
    assert [info.uri for info in storage.glob_files(f"{place}/{pattern}")] == files
    assert files


def test_a_pattern_that_is_none_is_one_sentence(place: str) -> None:
    with pytest.raises(InputError, match=r"a\*\*b/x is not a valid pattern: .*'\*\*' can only be"):
        storage.glob_files(f"{place}/a**b/x")
    with pytest.raises(InputError, match="has a wildcard in its bucket's name"):
        storage.glob_files("s3://pic*/x")


# --- listing many -----------------------------------------------------------------------------


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    """A server with 30,001 keys, behind a proxy that counts calls; the parameter is the layout."""
    with listing_server(30_000, layout=request.param) as endpoint, FaultProxy(endpoint) as proxy:
        storage.use_s3(S3Options(endpoint=proxy.endpoint))
        yield proxy


def keys_of(layout: str) -> list[str]:
    return sorted(f"s3://bucket/{LAYOUTS[layout](number, 30_000)}" for number in range(30_000))


@pytest.mark.parametrize(
    ("fake", "layout"), [(layout, layout) for layout in LAYOUTS], indirect=["fake"]
)
def test_many_keys_come_once_and_in_order(fake: FaultProxy, layout: str) -> None:
    expected = keys_of(layout)
    for _ in range(3):  # cuts depend on who answers first, and the result must not
        tables = list(storage.list_tables("s3://bucket/photos"))
        uris = list(itertools.chain(*(table.column("uri").to_pylist() for table in tables)))
        assert uris == expected
        assert max(map(len, tables)) < 10_000
    assert fake.num_calls / 3 < 2 * 30 + 40  # pages, as many splits, and the first splits


@pytest.mark.parametrize("fake", ["tree"], indirect=True)
def test_many_keys_come_through_faults(fake: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.config.conf["s3"]["config_kwargs"] = {"read_timeout": 1}
    monkeypatch.setattr(retry, "REMOTE", RetryPolicy(max_wait=0.5))
    fake.faults = Faults(slow_down=0.1, reset=0.1, hang=0.02, truncate=0.1)
    assert [info.uri for info in storage.list_files("s3://bucket/photos")] == keys_of("tree")
    assert {"slow_down", "truncate"} < set(fake.counts)


@pytest.mark.parametrize("fake", ["flat"], indirect=True)
def test_a_reader_may_stop_early(fake: FaultProxy) -> None:
    assert next(storage.list_files("s3://bucket/photos")).uri == keys_of("flat")[0]
    tables = storage.list_tables("s3://bucket/photos")
    next(tables)
    next(tables)
    tables.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(tables)


@pytest.mark.parametrize("fake", ["flat"], indirect=True)
def test_a_slow_reader_is_waited_for(fake: FaultProxy) -> None:
    remote = open_remote("s3://bucket/photos")
    pages = s3_keys.iterate_pages(remote, "bucket", "photos/", num_workers=2, max_buffered=2000)
    assert [len(next(pages)) for _ in range(7)] == [1000] * 7
    before = -1
    while before < fake.num_calls:  # until the workers rest
        before = fake.num_calls
        time.sleep(0.5)
    num_first_splits = 10
    assert before <= 7 + 4 + 2 + num_first_splits
    assert 7000 + sum(map(len, pages)) == 30_000


@pytest.mark.parametrize("fake", ["tree"], indirect=True)
def test_folders_without_a_match_are_passed_over(fake: FaultProxy) -> None:
    assert [info.uri for info in storage.glob_files("s3://bucket/*")] == ["s3://bucket/photos0"]
    assert fake.num_calls < 15
    found = [info.uri for info in storage.glob_files("s3://bucket/photos/n00000007/*.jpg")]
    assert found == keys_of("tree")[210:240]
    assert storage.glob_files("s3://bucket/photos/*.jpg") == []


def test_a_folder_of_any_size_is_listed_for_one_key(
    server: s3fs.S3FileSystem, proxy: FaultProxy, place: str
) -> None:
    fill(server, place, [f"{number}.png" for number in range(20)])
    assert storage.is_folder(place)
    assert storage.exists(f"{place}/")
    (first, *_) = proxy.calls
    assert len(proxy.calls) <= 3
    assert all("max-keys=1&" in f"{call}&" for call in proxy.calls if call.startswith("GET"))
    assert first.startswith("GET")


# --- what others do meanwhile -----------------------------------------------------------------


def test_nothing_is_remembered(server: s3fs.S3FileSystem, place: str) -> None:
    fill(server, place, ["a.png"])
    assert listed(place) == ["a.png"]
    assert not storage.exists(f"{place}/b/c.png")
    assert not storage.is_folder(f"{place}/b")
    fill(server, place, ["b/c.png"], b"12")
    assert listed(place) == ["a.png", "b/c.png"]
    assert storage.exists(f"{place}/b/c.png")
    assert storage.is_folder(f"{place}/b")
    assert storage.size_of(f"{place}/b/c.png") == 2
    fill(server, place, ["b/c.png"], b"123")
    assert storage.size_of(f"{place}/b/c.png") == 3
    server.rm_file(f"{place}/b/c.png")
    assert not storage.exists(f"{place}/b")


def test_a_file_that_changes_while_it_is_read_is_not_mixed(
    server: s3fs.S3FileSystem, place: str
) -> None:
    fill(server, place, ["a.bin"], b"1" * 3_000_000)
    with storage.open_seekable(f"{place}/a.bin") as file:
        assert file.read(10) == b"1" * 10
        fill(server, place, ["a.bin"], b"2" * 3_000_000)
        file.seek(2_000_000)
        with pytest.raises(OSError, match="no longer exists"):
            file.read(10)


# --- faults -----------------------------------------------------------------------------------


def test_thousands_of_calls_survive_when_one_in_ten_fails(
    proxy: FaultProxy, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "REMOTE", RetryPolicy(max_wait=1.0))
    proxy.faults = EVERY_FAULT

    def work(number: int) -> None:
        uri, content = f"{place}/{number:04d}.bin", f"content {number}".encode() * 50
        assert storage.put_if_absent(uri, content)
        assert not storage.put_if_absent(uri, b"other")
        assert storage.read_bytes(uri) == content
        assert storage.read_range(uri, 5, 20) == content[5:25]
        assert storage.exists(uri)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(400)))
    assert listed(place) == [f"{number:04d}.bin" for number in range(400)]
    storage.remove_tree(place)
    assert not storage.exists(place)
    assert proxy.num_calls > 2000
    kinds = {"slow_down", "reset_before", "reset_after", "hang_before", "hang_after", "truncate"}
    assert set(proxy.counts) == kinds
    assert 0.08 < proxy.counts.total() / proxy.num_calls < 0.12


@pytest.mark.parametrize("fault", ["slow_down", "reset_after", "hang_before", "truncate"])
@pytest.mark.parametrize(
    "call",
    [
        lambda uri: storage.read_bytes(uri) == b"0123456789",
        lambda uri: storage.read_bytes(uri, limit=4) == b"0123",
        lambda uri: storage.read_range(uri, 2, 3) == b"234",
        lambda uri: storage.open_seekable(uri).read() == b"0123456789",
        lambda uri: [info.size for info in storage.list_files(uri.rsplit("/", 1)[0])] == [10],
    ],
    ids=["read", "limit", "range", "open", "list"],
)
def test_each_way_to_read_waits_a_fault_out(
    server: s3fs.S3FileSystem,
    proxy: FaultProxy,
    place: str,
    fault: str,
    call: Callable[[str], bool],
) -> None:
    fill(server, place, ["a.bin"], b"0123456789")
    proxy.inject(fault, "^GET ")
    assert call(f"{place}/a.bin")
    assert proxy.counts == {fault: 1}


@pytest.mark.parametrize("fault", ["reset_after", "hang_after"])
def test_a_put_whose_response_is_lost_was_ours(
    server: s3fs.S3FileSystem, proxy: FaultProxy, place: str, fault: str
) -> None:
    proxy.inject(fault, "^PUT ")
    assert storage.put_if_absent(f"{place}/plan.json", b"ours")
    assert proxy.counts == {fault: 1}
    assert server.cat_file(f"{place}/plan.json") == b"ours"


def test_a_put_that_failed_before_it_was_done_meets_the_file_of_another(
    server: s3fs.S3FileSystem, proxy: FaultProxy, place: str
) -> None:
    fill(server, place, ["plan.json"], b"theirs")
    proxy.inject("reset_before", "^PUT ")
    assert not storage.put_if_absent(f"{place}/plan.json", b"ours")
    assert server.cat_file(f"{place}/plan.json") == b"theirs"


def test_of_many_who_put_at_once_one_wins(server: s3fs.S3FileSystem, place: str) -> None:
    for round_number in range(10):
        uri = f"{place}/{round_number}.json"
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda me: storage.put_if_absent(uri, b"%d" % me), range(8)))  # noqa: B023
        assert sum(won) == 1
        assert server.cat_file(uri) == b"%d" % won.index(True)


def test_large_files_are_whole_or_not_there_too(
    server: s3fs.S3FileSystem, proxy: FaultProxy, place: str
) -> None:
    fsspec.config.conf["s3"]["config_kwargs"] = {"read_timeout": 30}
    content = bytes(1000) * 34_000 + uuid.uuid4().bytes
    proxy.inject("slow_down", r"^PUT .*partNumber=2")
    proxy.inject("reset_before", r"^POST .*uploads")
    assert storage.put_if_absent(f"{place}/a.bin", content)
    assert not storage.put_if_absent(f"{place}/a.bin", content[:-1] + b"x")
    assert storage.read_range(f"{place}/a.bin", len(content) - 16, 99) == content[-16:]
    assert storage.size_of(f"{place}/a.bin") == len(content)
    storage.put_atomic(f"{place}/a.bin", content[::-1])
    assert storage.read_range(f"{place}/a.bin", 0, 16) == content[:-17:-1]
    assert proxy.counts == {"slow_down": 1, "reset_before": 1}
    assert server.list_multipart_uploads("pictures") == []


def test_faults_that_do_not_pass_say_so(
    proxy: FaultProxy, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "REMOTE", RetryPolicy(max_attempts=3))
    proxy.faults = Faults(slow_down=1.0)
    with pytest.raises(StorageUnavailableError, match=r"reduce your request rate.*, 3 times in"):
        storage.read_bytes(f"{place}/a.bin")
    assert proxy.num_calls == 3


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (storage.read_bytes, FileNotFoundError),
        (storage.size_of, FileNotFoundError),
        (storage.open_seekable, FileNotFoundError),
        (lambda uri: storage.read_range(uri, 3, 4), FileNotFoundError),
    ],
)
def test_a_missing_key_is_requested_once(
    proxy: FaultProxy, place: str, call: Callable[[str], Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        call(f"{place}/missing.png")
    assert len(proxy.calls) == len(set(proxy.calls))


def test_denials_are_not_repeated(proxy: FaultProxy, place: str) -> None:
    proxy.inject("denied")
    with pytest.raises(PermissionError):
        storage.read_bytes(f"{place}/a.png")
    proxy.inject("denied")
    with pytest.raises(InputError) as caught:
        storage.is_folder(place)
    assert str(caught.value) == (
        f"Cannot access {place} (access is denied: AccessDenied); check its name, the credentials "
        "and the endpoint."
    )
    assert proxy.num_calls == 2


@pytest.mark.parametrize(
    "look",
    [
        storage.exists,
        storage.is_folder,
        storage.glob_files,
        lambda uri: list(storage.list_files(uri)),
    ],
)
def test_a_bucket_that_is_not_there_is_one_sentence(look: Callable[[str], Any]) -> None:
    with pytest.raises(InputError) as caught:
        look("s3://no-such-bucket/a/*")
    assert str(caught.value) == (
        "Cannot access s3://no-such-bucket/a/* (there is no such bucket); check its name, the "
        "credentials and the endpoint."
    )


def test_an_endpoint_out_of_reach_is_said_at_once() -> None:
    storage.use_s3(S3Options(endpoint="http://127.0.0.1:1"))
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        storage.exists("s3://bucket/a")
    assert time.monotonic() - started < 10
    assert re.fullmatch(
        r"Cannot access s3://bucket/a \(Could not connect to the endpoint URL: "
        r'"http://127\.0\.0\.1:1/bucket/a", 3 times in \d s\); check its name, the credentials and '
        r"the endpoint\.",
        str(caught.value),
    )


# --- reading inside -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 4, b"0123"), (8, 9, b"89"), (10, 1, b""), (99, 1, b""), (3, 0, b"")],
)
def test_ranges_end_where_the_file_does(
    server: s3fs.S3FileSystem, place: str, start: int, length: int, expected: bytes
) -> None:
    fill(server, place, ["a.bin"], b"0123456789")
    assert storage.read_range(f"{place}/a.bin", start, length) == expected
    fill(server, place, ["empty.bin"], b"")
    assert storage.read_range(f"{place}/empty.bin", start, length) == b""
    assert storage.read_bytes(f"{place}/empty.bin", limit=length) == b""
    assert storage.read_bytes(f"{place}/empty.bin") == b""


def test_an_archive_is_read_in_place_through_faults(
    proxy: FaultProxy, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "REMOTE", RetryPolicy(max_wait=0.5))
    members = {f"{number}.bin": bytes([number]) * 700_000 for number in range(8)}
    with fsspec.open(f"{place}/a.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    proxy.faults = EVERY_FAULT
    with storage.open_seekable(f"{place}/a.zip") as file, zipfile.ZipFile(file) as archive:
        for name in reversed(members):
            assert archive.read(name) == members[name]


# --- options ------------------------------------------------------------------------------------


def test_options_reach_the_requests(proxy: FaultProxy, place: str) -> None:
    assert not storage.exists(place)
    assert "authorization" in proxy.headers[-1]
    storage.use_s3(S3Options(requester_pays=True, region="eu-central-1"))
    storage.put_atomic(f"{place}/a", b"1")
    assert listed(place) == ["a"]
    storage.read_bytes(f"{place}/a")
    for headers in proxy.headers[-3:]:
        assert headers["x-amz-request-payer"] == "requester"
        assert "/eu-central-1/s3/" in headers["authorization"]
    storage.use_s3(S3Options(anonymous=True))
    with pytest.raises(PermissionError):
        storage.read_bytes(f"{place}/a")
    assert "authorization" not in proxy.headers[-1]


def test_a_profile_that_is_not_there_is_named() -> None:
    storage.use_s3(S3Options(profile="nobody"))
    with pytest.raises(InputError, match=r"profile \(nobody\) could not be found"):
        storage.exists("s3://pictures/a")


def test_a_whole_bucket_is_never_removed() -> None:
    for location in ("s3://pictures", "s3://pictures/", "s3://pictures//"):
        with pytest.raises(InputError, match="is a whole bucket"):
            storage.remove_tree(location)


def read_in_child(uri: str, answers: Any) -> None:
    answers.put(storage.read_bytes(uri))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_started_later_read_too(place: str, method: str) -> None:
    storage.put_atomic(f"{place}/a", b"1")
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=read_in_child, args=(f"{place}/a", answers))
    child.start()
    assert answers.get(timeout=60) == b"1"
    child.join()
    assert child.exitcode == 0
