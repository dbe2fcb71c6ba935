"""Images at remote locations, requested over HTTP: nothing outside the policy is reached."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eagleray.io.http import connections
from eagleray.registry.registry import Registry
from tests.support.http_site import FakeDns, Site, SixSite, running, status
from tests.support.serving import IMAGE, RunningApp, registry_with, with_service

PREDICT, INFER = "/v1/models/digits/predict", "/v2/models/digits/infer"
MLFLOW = ("/invocations", "/v1/models/digits/invocations")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registry_with(tmp_path_factory.mktemp("hostile"), "digits")


@pytest.fixture
def canary() -> Iterator[Site]:
    """A server on every address of this machine, with an image; nobody is to reach it."""
    with running(Site("0.0.0.0")) as site:
        site.serves("/a.png", IMAGE)
        if not socket.has_ipv6:
            yield site
            return
        with running(SixSite("::", site.port)) as six:
            six.serves("/a.png", IMAGE)
            yield site
            assert six.num_connections == 0
    assert site.num_connections == 0


@pytest.fixture(autouse=True)
def _fresh_connections() -> Iterator[None]:
    connections._pools.cache_clear()
    yield
    connections._pools.cache_clear()


PLACES = [
    *("127.0.0.1", "127.1", "127.255.255.254", "localhost", "localhost.", "0.0.0.0", "0"),
    *("2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1", "127.0.0.1."),
    *(
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[::127.0.0.1]",
    ),
    *("[fe80::1]", "[fe80::1%25lo]", "[fc00::1]", "[fd00:ec2::254]", "[2002:7f00:1::]"),
    *("169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.100.100.200"),
    *("images.example.com@127.0.0.1", "127.0.0.1#@images.example.com", "127.0.0.1\\@8.8.8.8"),
    *("a:b@127.0.0.1", "%31%32%37.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "inner.example.com"),
]


def ways(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Return every request that could make a service fetch something."""
    several = {"images": [{"url": url}, {"url": url}]}
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [url]}
    return [
        (PREDICT, {"json": {"image": {"url": url}}}),
        (PREDICT, {"json": {"image": {"uri": url}}}),
        (PREDICT, {"json": several}),
        (PREDICT, {"content": url.encode()}),
        (INFER, {"json": {"inputs": [tensor]}}),
        *[(path, {"json": {"inputs": [url]}}) for path in MLFLOW],
        *[(path, {"json": {"dataframe_split": {"data": [[url]]}}}) for path in MLFLOW],
    ]


def check(response: Any) -> None:
    """Expect no image to have been read: a refusal, or failed results."""
    assert response.status_code < 500, response.text
    if response.status_code == 200:
        found = response.json()
        results = found.get("results") or found["predictions"]
        assert {result["status"] for result in results} == {"failed"}
    else:
        assert response.headers["content-type"] == "application/problem+json"


def test_no_url_is_fetched_where_the_operator_names_no_host(
    registry: Registry, canary: Site
) -> None:
    async def test(running: RunningApp) -> None:
        for place in ("127.0.0.1", "localhost", "8.8.8.8"):
            url = f"http://{place}:{canary.port}/a.png"
            for path, request in ways(url):
                check(await running.client.post(path, **request))
            response = await running.client.post(PREDICT, json={"image": {"url": url}})
            assert response.status_code == 403
            assert "fetches no URLs" in response.json()["detail"]

    with_service(registry, test)


@pytest.mark.parametrize("hosts", [("*:*",), ("images.example.com:*", "127.0.0.1:*")], ids=str)
def test_no_spelling_of_a_private_address_reaches_the_canary(
    registry: Registry, canary: Site, hosts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", FakeDns(["127.0.0.1", "::1"]))

    async def test(running: RunningApp) -> None:
        for place in PLACES:
            url = f"http://{place}:{canary.port}/a.png"
            for path, request in ways(url):
                check(await running.client.post(path, **request))

    with_service(registry, test, allow_urls=hosts)


@pytest.mark.parametrize("answers", [[["8.8.8.8"], ["127.0.0.1"]], [["8.8.8.8", "127.0.0.1"]]])
def test_a_name_that_turns_private_reaches_nothing(
    registry: Registry,
    canary: Site,
    answers: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection uses the checked addresses of the first look-up; there is no second."""
    monkeypatch.setattr(socket, "getaddrinfo", FakeDns(*answers))

    async def test(running: RunningApp) -> None:
        url = f"http://rebinding.example.com:{canary.port}/a.png"
        for _ in range(3):
            body = {"image": {"url": url}, "timeout_ms": 1000}
            response = await running.client.post(PREDICT, json=body)
            assert response.status_code in (400, 504), response.text

    with_service(registry, test, allow_urls=("*:*",), timeout_s=2)


def test_no_redirect_leads_to_a_private_address(registry: Registry, canary: Site) -> None:
    """The first server is one that the operator names, in a network of its own."""
    inner = f":{canary.port}/a.png"
    with running(Site("127.0.0.5")) as outer:
        targets = ["127.0.0.2", "localhost", "[::1]", "0.0.0.0", "2130706434", "0x7f.2"]
        for number, host in enumerate(targets):
            outer.serves(f"/{number}", status(302, Location=f"http://{host}{inner}"))
        outer.serves("/good.png", IMAGE)

        async def test(running: RunningApp) -> None:
            base = f"http://127.0.0.5:{outer.port}"
            good = await running.client.post(PREDICT, json={"image": {"url": base + "/good.png"}})
            assert good.status_code == 200, good.text
            for number in range(len(targets)):
                body = {"image": {"url": f"{base}/{number}"}}
                check(await running.client.post(PREDICT, json=body))

        hosts = (f"127.0.0.5:{outer.port}", f"*:{canary.port}")
        with_service(registry, test, allow_urls=hosts, private_networks=("127.0.0.5/32",))
        assert sum(outer.asked.values()) == len(targets) + 1


def test_only_storage_that_the_operator_allows_is_read(registry: Registry, tmp_path: Path) -> None:
    allowed, secret = tmp_path / "pictures", tmp_path / "pictures-secret"
    for folder in (allowed, secret):
        folder.mkdir()
        (folder / "a.png").write_bytes(IMAGE)
    (allowed / "link.png").symlink_to(secret / "a.png")
    (allowed / "folder").symlink_to(secret)
    (allowed / "inner.png").symlink_to(allowed / "a.png")
    forbidden = [
        *("/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd", "memory://a.png", "a.png", ""),
        *(f"{secret}/a.png", f"{allowed}/../pictures-secret/a.png", f"file://{secret}/a.png"),
        *(f"{allowed}/link.png", f"file://{allowed}/link.png", f"{allowed}/folder/a.png"),
        *(f"zip://a.png::{allowed}/a.zip", f"zip://a.png::{secret}/a.zip"),
        *("zip://a.png::webhdfs://127.0.0.1:1/a.zip", "zip://a::s3://other/a.zip"),
        *("s3://other/a.png", "s3://bucket-of-others/a.png", "s3://bucket/images-secret/a.png"),
        *("s3://bucket/images/../a.png", "s3://bucket", "simplecache::s3://bucket/images/a.png"),
        f"s3://bucket/images/a.png::file://{secret}/a.png",
    ]
    unreadable = [
        f"{allowed}/no.png",
        f"{allowed}/%2e%2e/pictures-secret/a.png",
        f"{allowed}/\0",
        f"{allowed}/\ud800",
        f"{allowed}",
        f"{allowed}/",
    ]
    readable = [f"{allowed}/a.png", f"{allowed}/inner.png", f"file://{allowed}/a.png"]

    async def test(running: RunningApp) -> None:
        async def ask(uri: str, kind: str = "uri") -> Any:
            content = json.dumps({"image": {kind: uri}}).encode()
            headers = {"content-type": "application/json"}
            return await running.client.post(PREDICT, content=content, headers=headers)

        for uri in forbidden:
            for kind in ("uri", "url"):
                response = await ask(uri, kind)
                assert response.status_code == 403, (uri, response.text)
                assert "does not read images from that location" in response.json()["detail"]
            mixed = {"images": [{"uri": f"{allowed}/a.png"}, {"uri": uri}]}
            assert (await running.client.post(PREDICT, json=mixed)).status_code == 403, uri
        for uri in unreadable:
            response = await ask(uri)
            assert response.status_code in (400, 403, 404), (uri, response.text)
        for uri in readable:
            assert (await ask(uri)).status_code == 200, uri

    prefixes = (str(allowed), f"file://{allowed}", "s3://bucket/images")
    with_service(registry, test, allow_storage=prefixes)
