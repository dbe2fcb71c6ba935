"""Ambiguous spellings of a URL are rejected, and others reach the server as meant."""

from __future__ import annotations

import pytest

from eagleray.core.errors import InputError
from eagleray.io.http.urls import parse_url
from tests.support.http_site import (
    Site,
    fetch,
    policy,
)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0X7F.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.01",
        "0",
        "0.0.0.0",
        "00.0.0.0",
        "localhost",
        "LOCALHOST.",
        "localhos%74",
        "127%2e0%2e0%2e1",
        "127.0.0.1%00",
        "127.0.0.1%20",
        "%31%32%37.0.0.1",
        "①②⑦.0.0.1",
        "127。0。0。1",
        "\uff11\uff12\uff17.0.0.1",
        "ⓛocalhost",
        "localho\u017ft",
        "127.0.0.1\t",
        "127.0\n.0.1",
        "127.0.0.1\\",
        "8.8.8.8\\@127.0.0.1",
        "8.8.8.8@127.0.0.1",
        "user:pass@127.0.0.1",
        "a:b@c@127.0.0.1",
        "@127.0.0.1",
        " 127.0.0.1",
        "127.0.0.1 ",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[::1%25lo]",
        "[::1%lo]",
        "[fe80::1%25lo]",
        "[127.0.0.1]",
        "[::1",
        "::1",
        "[v1.fe80::a]",
        "",
        ".",
        "..127.0.0.1",
        "127.0.0.1..",
        "-127.0.0.1",
        "127.0.0.1:80",
        "127.0.0.1#@8.8.8.8",
    ],
)
def test_no_spelling_of_loopback_gets_through(everywhere: list[Site], host: str) -> None:
    for scheme in ("http", "https"):
        url = f"{scheme}://{host}:{everywhere[0].port}/"
        with pytest.raises(InputError):
            fetch(url, policy(private_networks=()))
    assert [site.num_connections for site in everywhere] == [0] * len(everywhere)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1.", "127%2e0%2e0%2e1", "[::ffff:127.0.0.1]", "localhost", "LocalHost."],
)
def test_spellings_with_one_meaning_are_read(site: Site, host: str) -> None:
    assert fetch(site.url(host=host), policy()) == b"image"
    assert site.headers[0]["Host"] in (f"127.0.0.1:{site.port}", f"localhost:{site.port}")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/a b.jpg", "/a%20b.jpg"),
        ("/a%20b.jpg", "/a%20b.jpg"),
        ("/100%.jpg", "/100%25.jpg"),
        ("/grün/猫.jpg", "/gr%C3%BCn/%E7%8C%AB.jpg"),
        ("/a.jpg?x=1&y=ä#part", "/a.jpg?x=1&y=%C3%A4"),
        ("?x=/../", "/?x=/../"),
        ("", "/"),
        ("/a/../b", "/b"),
        ("//evil.example/a", "//evil.example/a"),
        ("/\ud800", "/%ED%A0%80"),
    ],
)
def test_names_arrive_at_the_server(site: Site, path: str, asked: str) -> None:
    with pytest.raises(FileNotFoundError):
        fetch(site.url(path).replace("a.jpg", "b.jpg"), policy())
    assert list(site.asked) == [asked.replace("a.jpg", "b.jpg")]


@pytest.mark.parametrize("url", ["http:///a", "https://", "https://:8443/a"])
def test_a_url_without_a_host_says_so(url: str) -> None:
    with pytest.raises(InputError, match=r"The URL has no host; write it behind https?://"):
        parse_url(url)
