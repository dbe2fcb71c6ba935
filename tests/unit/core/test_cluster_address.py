"""Addresses of clusters: each form, and one sentence for everything else."""

from __future__ import annotations

import pytest

from eagleray.core.cluster_address import (
    job_server_url,
    require_cluster_address,
    require_node_address,
    service_url,
)
from eagleray.core.errors import InputError


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("auto", None),
        ("head:6379", None),
        ("ray-jobs+https://head", "https://head:443"),
        ("ray-jobs+https://head:8265/", "https://head:8265"),
        ("ray-jobs+http://127.0.0.1", "http://127.0.0.1:8265"),
        ("ray-jobs+http://[::1]:9", "http://[::1]:9"),
        ("ray-jobs+http://localhost", "http://localhost:8265"),
    ],
)
def test_each_form_has_its_door(address: str, url: str | None) -> None:
    assert job_server_url(address) == url
    assert service_url(address) is None
    require_cluster_address(address)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("https://images.example.com", "https://images.example.com"),
        ("https://images.example.com:8443/gate/", "https://images.example.com:8443/gate"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_service_has_a_door_of_its_own(address: str, url: str) -> None:
    assert service_url(address) == url
    assert job_server_url(address) is None
    require_cluster_address(address)


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("ray://head:10001", "Ray Client does not carry Ray Data"),
        ("http://head:8265", "would send the application's key over the network"),
        ("http://a.localhost:8000", "would send the application's key over the network"),
        ("http://0.0.0.0:8000", "would send the application's key over the network"),
        ("https://", "is not the address of a service"),
        ("https://me:secret@images", "more than a host, a port and a path"),
        ("https://images?key=secret", "more than a host, a port and a path"),
        ("grpc://head", "there is no scheme grpc"),
        ("ray-jobs+ftp://head", "is not the address of a job server"),
        ("ray-jobs+https://", "is not the address of a job server"),
        ("ray-jobs+https://head:99999", "is not the address of a job server"),
        ("ray-jobs+https://me:secret@head", "more than a host, a port and a path"),
        ("ray-jobs+https://head/jobs", "holds more than a host and a port"),
        ("ray-jobs+http://10.0.0.7:8265", "would send the cluster's token over the network"),
    ],
)
def test_everything_else_is_refused_in_a_sentence(address: str, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        require_cluster_address(address)
    assert fault in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["ray-jobs+https://head", "https://images.example.com"])
def test_a_process_joins_what_a_node_reaches(address: str) -> None:
    require_node_address("head:6379")
    with pytest.raises(InputError, match=r"takes commands and no processes; run `eagleray"):
        require_node_address(address)


def test_plain_http_is_refused_with_the_tunnel_that_helps() -> None:
    with pytest.raises(InputError, match=r"ssh -L 8265:127\.0\.0\.1:8265 head"):
        require_cluster_address("ray-jobs+http://head:8265")
