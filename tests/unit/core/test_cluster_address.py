"""Addresses of clusters: each form, and one sentence for everything else."""

from __future__ import annotations

import pytest

from eagleray.core.cluster_address import (
    job_server_url,
    require_cluster_address,
    require_node_address,
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
    require_cluster_address(address)


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("ray://head:10001", "Ray Client does not carry Ray Data"),
        ("http://head:8265", "the scheme does not say what answers there"),
        ("https://head", "the scheme does not say what answers there"),
        ("grpc://head", "there is no scheme grpc"),
        ("ray-jobs+ftp://head", "is not the address of a job server"),
        ("ray-jobs+https://", "is not the address of a job server"),
        ("ray-jobs+https://head:99999", "is not the address of a job server"),
        ("ray-jobs+https://me:secret@head", "holds more than a host and a port"),
        ("ray-jobs+https://head/jobs", "holds more than a host and a port"),
        ("ray-jobs+http://10.0.0.7:8265", "would send the cluster's token over the network"),
    ],
)
def test_everything_else_is_refused_in_a_sentence(address: str, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        require_cluster_address(address)
    assert fault in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_process_joins_no_job_server() -> None:
    require_node_address("head:6379")
    with pytest.raises(InputError, match=r"takes commands and no processes; run `eagleray"):
        require_node_address("ray-jobs+https://head")


def test_plain_http_is_refused_with_the_tunnel_that_helps() -> None:
    with pytest.raises(InputError, match=r"ssh -L 8265:127\.0\.0\.1:8265 head"):
        require_cluster_address("ray-jobs+http://head:8265")
