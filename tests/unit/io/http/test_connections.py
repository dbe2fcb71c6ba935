"""Connections go to checked addresses only, are reused, and verify certificates."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from eagleray.core.errors import InputError
from eagleray.io.http import connections
from tests.support.http_site import (
    LIMIT,
    FakeDns,
    Handler,
    Site,
    drip,
    fetch,
    in_turn,
    on_one_port,
    policy,
    raw,
    running,
    status,
)

BODY = bytes(range(256)) * 1000


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["8.8.8.8", "127.0.0.1"],
        ["8.8.8.8", "2606:4700::1111", "::ffff:127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["0.0.0.0"],
    ],
)
def test_one_forbidden_address_behind_a_name_is_enough(site: Site, answer: list[str]) -> None:
    dns = FakeDns(answer)
    with pytest.raises(InputError, match=r"^images\.test resolves to an address outside") as caught:
        fetch(site.url(host="images.test"), policy(private_networks=()), dns)
    assert "EAGLERAY_URL_PRIVATE_NETWORKS" in str(caught.value)
    assert site.num_connections == 0


def test_a_name_that_changes_its_address_gains_nothing() -> None:
    with on_one_port() as (allowed, secret):
        allowed.serves("/once", raw(b"HTTP/1.0 200 OK\r\n\r\npublic"))
        only_one = policy(private_networks=("127.0.0.1/32",))
        dns = FakeDns(["127.0.0.1"], ["127.0.0.2"])
        url = allowed.url("/once", host="images.test")
        assert fetch(url, only_one, dns) == b"public"
        assert dns.asked == ["images.test"]  # one resolution for one connection
        with pytest.raises(InputError):
            fetch(url, only_one, dns)
        assert dns.asked == ["images.test"] * 2
        assert secret.num_connections == 0


def test_the_next_address_is_tried_when_one_does_not_respond(site: Site) -> None:
    dns = FakeDns(["127.0.0.9", "127.0.0.1"])
    assert fetch(site.url(host="images.test"), policy(), dns) == b"image"
    assert site.headers[0]["Host"] == f"images.test:{site.port}"


def test_an_open_connection_of_one_policy_is_closed_to_another(site: Site) -> None:
    assert fetch(site.url(), policy()) == b"image"
    with pytest.raises(InputError):
        fetch(site.url(), policy(private_networks=()))
    assert site.num_connections == 1
    assert sum(site.asked.values()) == 1


def test_nothing_connects_outside_of_a_fetch(site: Site) -> None:
    pool = connections._CheckedPool("127.0.0.1", site.port)
    with pytest.raises(LookupError):
        pool.urlopen("GET", "/a.jpg", retries=False)
    assert site.num_connections == 0


@pytest.mark.parametrize("scheme", ["http", "https", "all"])
def test_proxies_of_the_environment_are_not_used(
    site: Site, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with running(Site()) as proxy:
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            monkeypatch.setenv(name, proxy.url(""))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert fetch(site.url(), policy()) == b"image"
        assert proxy.num_connections == 0


def test_one_connection_serves_many_images_also_those_that_are_not_there(site: Site) -> None:
    site.serves("/busy", in_turn(status(503, b"busy"), status(200, b"image")))
    site.serves("/from", status(302, b"moved", Location="/a.jpg"))
    for _ in range(20):
        assert fetch(site.url(), policy()) == b"image"
        assert fetch(site.url("/from"), policy()) == b"image"
        assert fetch(site.url("/busy"), policy()) == b"image"
        with pytest.raises(FileNotFoundError):
            fetch(site.url("/not-there"), policy())
    assert site.num_connections == 1


def test_connections_are_bounded_and_threads_wait_for_them(site: Site) -> None:
    num_threads = 3 * connections._MAX_CONNECTIONS
    gathered = threading.Barrier(connections._MAX_CONNECTIONS)

    def together(handler: Handler) -> None:
        gathered.wait(10)  # as many as there may be are here at once
        handler.answer(200, b"image")

    site.serves("/together", together)
    with ThreadPoolExecutor(num_threads) as threads:
        found = threads.map(lambda _: fetch(site.url("/together"), policy()), range(num_threads))
        assert list(found) == [b"image"] * num_threads
    assert site.max_open == connections._MAX_CONNECTIONS


def test_failures_give_their_connections_back(site: Site) -> None:
    site.serves("/long", status(200, BODY))
    site.serves("/broken", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", reset=True))
    site.serves("/garbage", raw(b"garbage\r\n\r\n"))
    site.serves("/out", status(302, Location="ftp://elsewhere.test/"))
    hasty = policy(total_seconds=0.01)
    for _ in range(2 * connections._MAX_CONNECTIONS):
        assert fetch(site.url("/long"), policy(), limit=10) == BODY[:10]
        for path in ("/garbage", "/out"):
            with pytest.raises((OSError, InputError)):
                fetch(site.url(path), policy())
        with suppress(OSError):
            fetch(site.url("/broken"), hasty)
    assert fetch(site.url(), policy()) == b"image"


def test_a_connection_that_the_server_has_closed_is_opened_again(site: Site) -> None:
    site.serves("/last", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"))
    for _ in range(5):
        assert fetch(site.url("/last"), policy()) == b"image"
    assert site.num_connections == 5


def test_a_forked_process_has_connections_of_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(site.url(), policy())
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    fetch(site.url(), policy())
    assert site.num_connections == 2


class Authority:
    """A certificate authority of a test."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        certificate = self._sign(self.name, self.key.public_key(), [], 1, is_authority=True)
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self,
        name: x509.Name,
        key: Any,
        hosts: list[x509.GeneralName],
        days: int,
        is_authority: bool,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def context(self, *hosts: str, days: int = 1) -> ssl.SSLContext:
        """A server's side of TLS with a certificate for names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        general: list[x509.GeneralName] = []
        for host in hosts:
            try:
                general.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                general.append(x509.DNSName(host))
        certificate = self._sign(x509.Name([]), key.public_key(), general, days, is_authority=False)
        file = self.folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


@contextmanager
def tls_site(context: ssl.SSLContext) -> Iterator[Site]:
    site = Site()
    site.socket = context.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
    with running(site):
        site.serves("/a.jpg", b"image")
        yield site


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that this process trusts."""
    trusted = Authority(tmp_path, "trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.file))
    return trusted


def test_tls_requests_the_name_and_connects_to_the_checked_address(authority: Authority) -> None:
    context = authority.context("images.test")
    indicated: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: indicated.append(name)
    dns = FakeDns(["127.0.0.1"])
    with tls_site(context) as site:
        url = site.url(host="Images.test.", scheme="https")
        assert [fetch(url, policy(), dns) for _ in range(3)] == [b"image"] * 3
        assert site.num_connections == 1
        assert site.headers[0]["Host"] == f"images.test:{site.port}"
    assert indicated == ["images.test"]
    assert dns.asked == ["images.test"]


def test_tls_to_an_address(authority: Authority) -> None:
    with tls_site(authority.context("127.0.0.1")) as site:
        assert fetch(site.url(scheme="https"), policy()) == b"image"


@pytest.mark.parametrize(
    ("hosts", "days", "fault"),
    [
        (("other.test",), 1, "Hostname mismatch"),
        (("127.0.0.1",), 1, "Hostname mismatch"),  # for the address, not for the name
        (("*.images.test",), 1, "Hostname mismatch"),
        (("images.test",), -1, "expired"),
    ],
)
def test_a_certificate_that_is_not_the_hosts_is_refused(
    authority: Authority,
    hosts: tuple[str, ...],
    days: int,
    fault: str,
) -> None:
    dns = FakeDns(["127.0.0.1"])
    with tls_site(authority.context(*hosts, days=days)) as site:
        with pytest.raises(OSError, match=rf"^images\.test has a certificate.*{fault}"):
            fetch(site.url(host="images.test", scheme="https"), policy(), dns)
        assert site.num_connections == 1
        assert not site.asked


def test_a_certificate_of_an_unknown_authority_is_refused(authority: Authority) -> None:
    dns = FakeDns(["127.0.0.1"])
    unknown = Authority(authority.folder, "unknown")
    with tls_site(unknown.context("images.test")) as site:
        with pytest.raises(OSError, match="has a certificate that is not accepted"):
            fetch(site.url(host="images.test", scheme="https"), policy(), dns)
        assert not site.asked


def test_a_redirect_from_tls_is_checked_too(authority: Authority) -> None:
    with tls_site(authority.context("127.0.0.1")) as site, running(Site("127.0.0.2")) as secret:
        site.serves("/from", status(302, Location=secret.url(host="127.0.0.2")))
        only_one = policy(private_networks=("127.0.0.1/32",))
        with pytest.raises(InputError):
            fetch(site.url("/from", scheme="https"), only_one)
        assert secret.num_connections == 0


def test_a_slow_tls_server_costs_no_more_than_the_time_of_the_fetch(authority: Authority) -> None:
    with tls_site(authority.context("127.0.0.1")) as site:
        site.serves("/slow", drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"))
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            fetch(
                site.url("/slow", scheme="https"),
                policy(read_seconds=5, total_seconds=0.6),
                limit=LIMIT,
            )
        assert time.monotonic() - start < 4


def test_plain_http_where_tls_is_expected(site: Site) -> None:
    with pytest.raises(OSError, match=r"^127\.0\.0\.1 cannot be read"):
        fetch(site.url(scheme="https"), policy())
