"""Where a request may come from: hosts, origins, kinds of bodies, and what is said to browsers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from eagleray.core.errors import InputError
from eagleray.registry.registry import Registry
from eagleray.serve.http.origins import (
    CrossSiteError,
    HostError,
    MisdirectedError,
    require_own_host,
    require_own_pages,
)
from eagleray.serving.callers.applications import Applications
from eagleray.serving.config import ServiceConfig
from tests.support.http_service import Served, http_service
from tests.support.models import golden_png
from tests.support.serving import RunningApp, registry_with, with_service

TEMPLATES = Path(__file__).parents[3] / "lib/eagleray/reports"
PREDICT, BATCHES = "/v1/models/digits/predict", "/v1/batches"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return registry_with(tmp_path, "digits")


def headers(**fields: str) -> Headers:
    return Headers({name.replace("_", "-"): value for name, value in fields.items()})


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "127.0.0.1:8000",
        "127.8.8.8",
        "[::1]:8000",
        "[::1]",
        "192.0.2.7:8000",
        "[2001:db8::7]",
        "0.0.0.0:80",
        "localhost:",
    ],
)
def test_addresses_and_localhost_are_always_the_service(host: str) -> None:
    require_own_host(headers(host=host), names=())


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:8000",
        "127.0.0.1.evil.test",
        "localhost.evil.test",
        "a.localhost",
        "localhost.localdomain",
        "notlocalhost",
        "127.1",
        "0x7f000001",
        "2130706433",
        "vision",
    ],
)
def test_other_names_are_not(host: str) -> None:
    with pytest.raises(MisdirectedError, match="--allow-hosts"):
        require_own_host(headers(host=host), names=())
    require_own_host(headers(host=host), names=None)


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "a b",
        "a:b",
        "localhost:80:80",
        "localhost:99999",
        "a/b",
        "user@localhost",
        "[::1",
        "[localhost]",
        "http://localhost",
        "localhost,evil.test",
        "é",
        "..",
        "a..b",
        "." + "a" * 300,
    ],
)
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(HostError):
        require_own_host(headers(host=host), names=None)


def test_a_request_has_one_host() -> None:
    twice = Headers(raw=[(b"host", b"localhost"), (b"host", b"localhost")])
    for none_or_two in (Headers({}), twice):
        with pytest.raises(HostError, match="one Host header"):
            require_own_host(none_or_two, names=None)
    require_own_host(Headers({}), names=(), may_lack=True)


@pytest.mark.parametrize(
    ("pattern", "host", "covered"),
    [
        ("vision.example.com", "Vision.Example.COM:8443", True),
        ("vision.example.com", "a.vision.example.com", False),
        ("*.example.com", "vision.example.com", True),
        ("*.example.com", "a.b.example.com.", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "evilexample.com", False),
        ("Vision", "vision", True),
    ],
)
def test_names_that_are_allowed(pattern: str, host: str, covered: bool) -> None:
    if covered:
        require_own_host(headers(host=host), names=(pattern,))
    else:
        with pytest.raises(MisdirectedError):
            require_own_host(headers(host=host), names=(pattern,))


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "*", "a b", "a/b", "*.*.b"])
def test_a_name_that_is_none_is_no_setting(name: str) -> None:
    with pytest.raises(InputError, match="allow_hosts"):
        ServiceConfig.make({"allow_hosts": name})


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("LOCALHOST:8000", "http://localhost:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("vision.example.com", "https://vision.example.com"),  # a proxy ends TLS
        ("vision.example.com:443", "https://vision.example.com"),
        ("vision.example.com", "https://vision.example.com:443"),
        ("vision.example.com", "http://vision.example.com"),
        ("vision.example.com:8443", "https://vision.example.com:8443"),
    ],
)
def test_a_page_of_the_service_may_do_everything(host: str, origin: str) -> None:
    require_own_pages("POST", BATCHES, headers(host=host, origin=origin))
    require_own_pages(
        "DELETE", BATCHES, headers(host=host, origin=origin, sec_fetch_site="same-origin")
    )


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://localhost",
        "http://localhost:8001",
        "http://127.0.0.1:8000",
        "file://",
        "https://evil.test",
        "http://localhost:8000.evil.test",
        "http://evil.test:8000",
        "chrome-extension://abc",
        "ws://localhost:8000",
        "http://x@localhost:8000",
        "http://localhost:8000/",
        "http://localhost:8000, http://evil.test",
        "//localhost:8000",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "FOO"])
def test_a_page_of_another_origin_may_do_nothing(method: str, origin: str) -> None:
    with pytest.raises(CrossSiteError, match="another origin"):
        require_own_pages(method, "/", headers(host="localhost:8000", origin=origin))


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "None", "same-origin, none"])
def test_cross_site_requests_of_a_browser_are_refused(site: str) -> None:
    opened = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    ways: list[tuple[str, str, dict[str, str]]] = [
        ("GET", "/", {}),
        ("POST", "/", opened),
        ("GET", "/", {**opened, "sec_fetch_dest": "iframe"}),
        ("GET", "/", {**opened, "sec_fetch_mode": "no-cors"}),
        ("GET", "/v1/models/digits/labels", opened),  # it may load a model
        ("GET", "/docs/docs.js", {"sec_fetch_mode": "no-cors", "sec_fetch_dest": "script"}),
    ]
    for method, path, fields in ways:
        with pytest.raises(CrossSiteError):
            require_own_pages(
                method, path, headers(host="localhost", sec_fetch_site=site, **fields)
            )
    for path in ("/", "/docs", "/v1/batches/1/report"):  # a link
        require_own_pages("GET", path, headers(host="localhost", sec_fetch_site=site, **opened))


def test_programs_need_no_origin(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        ways: list[dict[str, Any]] = [
            {"content": golden_png(1)},
            {"content": golden_png(1), "headers": {"content-type": "image/png"}},
            {"files": {"image": golden_png(1)}},
            {
                "content": golden_png(1),
                "headers": {"content-type": "application/x-www-form-urlencoded"},
            },
        ]
        for way in ways:
            response = await running.client.post(PREDICT, **way)
            assert response.status_code == 200, response.text

    with_service(registry, test)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "TEXT/plain;a"]
)
def test_a_batch_is_started_and_ended_by_no_simple_body(
    tmp_path: Path, registry: Registry, kind: str
) -> None:
    async def test(running: RunningApp) -> None:
        given = {"inputs": f"{tmp_path}", "output": f"{tmp_path}/out/x", "model": "digits"}
        began = (await running.client.post(BATCHES, json=given)).json()
        one = f"{BATCHES}/{began['id']}"
        simple = {"content-type": kind}
        for method, path in (("POST", BATCHES), ("POST", f"{one}/cancel"), ("DELETE", one)):
            refused = await running.client.request(method, path, content=b"{}", headers=simple)
            assert (refused.status_code, refused.json()["title"]) == (415, "Unsupported content")
        untyped = await running.client.post(BATCHES, content=b"{}")
        assert untyped.status_code == 415
        assert "application/json" in untyped.json()["detail"]
        assert (await running.client.post(f"{one}/cancel")).status_code == 202  # as curl does it

    places: dict[str, Any] = {
        "batch_inputs": (f"{tmp_path}",),
        "batch_outputs": (f"{tmp_path}/out",),
    }
    with_service(registry, test, **places)


def test_a_service_with_keys_accepts_every_host_name_unless_names_are_configured(
    registry: Registry,
) -> None:
    key = Applications(registry.history.database, actor="tester").create("shop").key
    given = {"authorization": f"Bearer {key}", "host": "vision.example.com"}

    async def any_name(running: RunningApp) -> None:
        assert (await running.client.get("/v1/models", headers=given)).status_code == 200

    async def one_name(running: RunningApp) -> None:
        assert (await running.client.get("/v1/models", headers=given)).status_code == 200
        other = {**given, "host": "evil.test"}
        assert (await running.client.get("/v1/models", headers=other)).status_code == 421

    with_service(registry, any_name)
    with_service(registry, one_name, allow_hosts=("vision.example.com",))


def test_only_browsers_are_prompted_for_a_password(registry: Registry) -> None:
    key = Applications(registry.history.database, actor="tester").create("shop").key

    async def test(running: RunningApp) -> None:
        html = {"accept": "text/html"}
        opened = {**html, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
        part = {**html, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
        frame = {**opened, "sec-fetch-dest": "iframe"}
        for given, asks in (
            (html, True),
            (opened, True),
            (part, False),
            (frame, False),
            ({}, False),
        ):
            refused = await running.client.get("/", headers=given)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic") is asks, given
        posted = await running.client.post(PREDICT, headers=html)
        assert posted.headers["www-authenticate"] == "Bearer"
        foreign = await running.client.get(
            "/v1/models", auth=("any", key), headers={"sec-fetch-site": "cross-site"}
        )
        assert (foreign.status_code, foreign.json()["type"]) == (403, "/problems/crosssite")

    with_service(registry, test)


SAFE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def test_every_response_has_the_security_headers(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        foreign = {"origin": "https://evil.test", "access-control-request-method": "POST"}
        ways: list[tuple[str, str, dict[str, str]]] = [
            *(("GET", path, {}) for path in ("/", "/docs", "/live", "/metrics", "/v1/models")),
            ("GET", "/docs/swagger-ui.css", {}),
            ("GET", "/nothing", {}),
            ("GET", "/v1/models", {"host": "evil.test"}),
            ("OPTIONS", "/v1/batches", {}),
            ("OPTIONS", "/v1/batches", foreign),
            ("PATCH", "/v1/batches", {}),
        ]
        for method, path, given in ways:
            response = await running.client.request(method, path, headers=given)
            for name, value in SAFE.items():
                assert response.headers.get_list(name) == [value], (path, name)
            (policy,) = response.headers.get_list("content-security-policy")
            assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy.split("; ")), path
            assert not [name for name in response.headers if name.startswith("access-control")]
            (kept,) = response.headers.get_list("cache-control")
            assert (kept == "no-store") is (path != "/docs/swagger-ui.css")
        shipped = await running.client.get("/docs/swagger-ui.css")
        assert "sec-fetch-site" in shipped.headers["vary"]
        assert (await running.client.options("/v1/batches", headers=foreign)).status_code == 403

    with_service(registry, test)


def test_other_ways_to_speak_http_reach_nothing(registry: Registry) -> None:
    upgrade = (
        b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
    )
    with http_service(registry) as served:
        assert _status(served, b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n" + upgrade) == 403
        assert (
            _status(served, b"TRACE /v1/models HTTP/1.1\r\nhost: localhost\r\nx: secret\r\n") == 405
        )
        assert _status(served, b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n") in (
            400,
            404,
        )
        assert _status(served, b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: localhost\r\n") == 400
        assert _status(served, b"GET /v1/models HTTP/1.0\r\n") == 400
        assert _status(served, b"GET /live HTTP/1.0\r\n") == 200


def _status(served: Served, head: bytes) -> int:
    response = served.say(head + b"\r\n")
    assert b"secret" not in response
    return int(response.split()[1])


class _Loaded(HTMLParser):
    """Collects what a page names in attributes that load, open or send."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "href", "srcset", "action", "formaction", "data", "poster", "background"}
        self.found += [value or "" for name, value in attrs if name in names | {"xlink:href"}]


def _foreign(html: str) -> list[str]:
    loaded = _Loaded()
    loaded.feed(html)
    named = loaded.found + re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", html)
    return [one for one in named if re.match(r"\s*([a-z][a-z0-9+.-]*:)?//", one, re.IGNORECASE)]


def test_no_page_names_anything_elsewhere(registry: Registry) -> None:
    assert _foreign("<script src='https://a.example/x.js'></script>") == ["https://a.example/x.js"]
    assert _foreign("<style>a { background: url(//a.example/x) }</style>") == ["//a.example/x"]
    files = [*TEMPLATES.rglob("*.j2"), *TEMPLATES.rglob("*.js")]
    assert len(files) >= 9
    for file in files:
        assert _foreign(file.read_text()) == [], file
        assert not re.search(r"['\"](https?:)?//\w", file.read_text()), file

    async def test(running: RunningApp) -> None:
        for path in ("/", "/docs"):
            page = await running.client.get(path)
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert _foreign(page.text) == [], path

    with_service(registry, test)
