"""Which URLs, hosts and addresses a policy allows."""

from __future__ import annotations

import ipaddress
import pickle
from typing import Any

import pytest

from eagleray.core.errors import InputError
from eagleray.io.http import UrlPolicy
from tests.support.http_site import (
    LOOPBACK,
    Site,
    fetch,
    policy,
)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"hosts": "images.example.com"}, "hosts: 'images.example.com' is not a list of strings"),
        ({"hosts": None}, "hosts: None is not a list"),
        ({"hosts": (b"a",)}, "hosts: "),
        ({"hosts": ("",)}, "hosts: '' is not a pattern"),
        ({"hosts": ("https://images.example.com",)}, "hosts: 'https://images.example.com' is no"),
        ({"hosts": ("images.example.com/a",)}, "hosts: "),
        ({"hosts": ("user@images.example.com",)}, "hosts: "),
        ({"hosts": ("images.*.com",)}, "hosts: "),
        ({"hosts": ("*images.example.com",)}, "hosts: "),
        ({"hosts": ("*.*",)}, "hosts: "),
        ({"hosts": ("*.[::1]",)}, "hosts: "),
        ({"hosts": ("127.1",)}, "hosts: "),
        ({"hosts": ("::1",)}, "hosts: "),
        ({"hosts": ("a.com:0",)}, "hosts: "),
        ({"hosts": ("a.com:65536",)}, "hosts: "),
        ({"hosts": ("a.com\n",)}, "hosts: "),
        ({"private_networks": ("10.0.0.0/33",)}, "private_networks: '10.0.0.0/33'"),
        ({"private_networks": ("10.1.0.0/8",)}, "private_networks: 10.1.0.0/8 has host bits set"),
        ({"private_networks": ("intranet",)}, "private_networks: "),
        ({"private_networks": ("0.0.0.0/0",)}, "private_networks: 0.0.0.0/0 is wider"),
        ({"private_networks": ("::/0",)}, "private_networks: ::/0 is wider"),
        ({"schemes": ("ftp",)}, "schemes: 'ftp' is neither"),
        ({"schemes": ()}, "schemes: "),
        ({"max_redirects": -1}, "max_redirects: "),
        ({"max_redirects": 21}, "max_redirects: "),
        ({"max_redirects": True}, "max_redirects: "),
        ({"max_redirects": 2.0}, "max_redirects: "),
        ({"connect_seconds": 0}, "connect_seconds: "),
        ({"read_seconds": float("nan")}, "read_seconds: "),
        ({"total_seconds": float("inf")}, "total_seconds: "),
        ({"total_seconds": "60"}, "total_seconds: "),
    ],
)
def test_a_wrong_policy_names_its_field(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as caught:
        UrlPolicy(**fields)
    assert str(caught.value).startswith(f"URL policy, {error}")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_equivalent_policies_are_equal() -> None:
    one = UrlPolicy(
        hosts=("B.example.com.", "*.Faß.de", "b.example.com", "[::FFFF:8.8.8.8]:080"),
        private_networks=("fc00::/7", "10.0.0.0/8", "10.0.0.0/8"),
        schemes=("https", "http"),
        total_seconds=60,
    )
    other = UrlPolicy(
        hosts=("*.xn--fa-hia.de", "8.8.8.8:80", "b.example.com"),
        private_networks=("10.0.0.0/8", "fc00::/7"),
        total_seconds=60.0,
    )
    assert one == other
    assert hash(one) == hash(other)
    assert one.hosts == ("*.xn--fa-hia.de", "8.8.8.8:80", "b.example.com")
    assert one.allows("http://8.8.8.8/")
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        ((), "https://images.example.com/", False),
        (("images.example.com",), "https://images.example.com/a.jpg?b", True),
        (("images.example.com",), "http://images.example.com/", True),
        (("images.example.com",), "HTTPS://IMAGES.Example.COM./", True),
        (("images.example.com",), "https://images.example.com:443/", True),
        (("images.example.com",), "https://images.example.com:80/", False),
        (("images.example.com",), "https://images.example.com:8443/", False),
        (("images.example.com",), "https://example.com/", False),
        (("images.example.com",), "https://images.example.com.evil.com/", False),
        (("images.example.com",), "https://evil.com/images.example.com", False),
        (("images.example.com",), "https://evil.com#images.example.com", False),
        (("images.example.com",), "https://evil.com?@images.example.com", False),
        (("images.example.com:8443",), "https://images.example.com:8443/", True),
        (("images.example.com:8443",), "https://images.example.com/", False),
        (("images.example.com:*",), "https://images.example.com:1/", True),
        (("*.example.com",), "https://a.example.com/", True),
        (("*.example.com",), "https://a.b.example.com/", True),
        (("*.example.com",), "https://example.com/", False),
        (("*.example.com",), "https://badexample.com/", False),
        (("*.example.com:81",), "http://a.example.com:81/", True),
        (("*.faß.de",), "https://a.xn--fa-hia.de/", True),
        (("xn--fa-hia.de",), "https://faß.de/", True),
        (("fass.de",), "https://faß.de/", False),
        (("*",), "https://anything.example/", True),
        (("*",), "https://8.8.8.8/", True),
        (("*",), "https://anything.example:22/", False),
        (("8.8.8.8",), "http://[::ffff:808:808]/", True),
        (("[2001:db8::1]",), "http://[2001:0DB8:0::1]/", True),
        (("*",), "ftp://a.example.com/", False),
        (("*",), "file:///etc/passwd", False),
        (("*",), "//a.example.com/", False),
        (("*",), "a.example.com", False),
        (("*",), "", False),
    ],
)
def test_hosts_that_a_policy_allows(hosts: tuple[str, ...], url: str, allowed: bool) -> None:
    assert UrlPolicy(hosts=hosts).allows(url) is allowed


def test_schemes_can_be_limited(site: Site) -> None:
    assert not UrlPolicy(hosts=("*",), schemes=("https",)).allows("http://a.example.com/")
    with pytest.raises(InputError, match="http URLs are not fetched; use https"):
        fetch(site.url(), policy(schemes=("https",)))
    assert site.num_connections == 0


def test_the_refusal_says_what_would_allow_it(site: Site) -> None:
    with pytest.raises(InputError) as caught:
        fetch(site.url(), UrlPolicy(private_networks=LOOPBACK))
    pattern = f"127.0.0.1:{site.port}"
    assert f"--allow-urls '{pattern}'" in str(caught.value)
    allowed = UrlPolicy(hosts=(pattern,), private_networks=LOOPBACK)
    assert fetch(site.url(), allowed) == b"image"


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("2002:808:808::1", True),  # 6to4 of 8.8.8.8
        ("64:ff9b::808:808", True),  # NAT64 of 8.8.8.8
        ("0.0.0.0", False),
        ("0.1.2.3", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),  # carrier-grade NAT
        ("100.100.100.200", False),  # metadata of Alibaba's cloud
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("168.63.129.16", False),
        ("169.254.169.254", False),  # metadata of most clouds
        ("172.16.0.1", False),
        ("192.0.0.9", False),
        ("192.0.0.192", False),
        ("192.0.2.1", False),
        ("192.88.99.1", False),
        ("192.168.0.1", False),
        ("198.18.0.1", False),
        ("203.0.113.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::808:808", False),
        ("100::1", False),
        ("2001::1", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),  # Teredo
        ("2001:db8::1", False),
        ("2002:7f00:1::", False),
        ("2002:a00:1::1", False),
        ("3fff::1", False),
        ("4000::1", False),
        ("5f00::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("fe80::1%1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
    ],
)
def test_addresses_that_are_connected_to(address: str, allowed: bool) -> None:
    assert UrlPolicy(hosts=("*",)).allows_address(ipaddress.ip_address(address)) is allowed


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.0.0.1", True),
        ("fd12::1", True),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("192.168.0.1", False),
        ("fe80::1", False),
    ],
)
def test_private_networks_are_allowed_by_name(address: str, allowed: bool) -> None:
    inside = UrlPolicy(hosts=("*",), private_networks=("10.0.0.0/8", "fc00::/7"))
    assert inside.allows_address(ipaddress.ip_address(address)) is allowed
