"""Fixtures for deployments: the Terraform module, and what it makes on moto's server."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest

from cluster.hosts import missing_requirement
from tests.support.hosted import Hosted, hosted_cluster
from tests.support.postgres import find_postgres
from tests.support.ray_head import head
from tests.support.s3_server import moto_server
from tests.support.terraform import ENVIRONMENTS, STATES, TerraformCopy, copy_module

__all__ = ["head"]


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> TerraformCopy:
    return copy_module(tmp_path_factory.mktemp("terraform"))


@pytest.fixture(scope="session")
def applied(tmp_path_factory: pytest.TempPathFactory) -> TerraformCopy:
    """Another copy, whose settings would change the module's own tests."""
    return copy_module(tmp_path_factory.mktemp("applied"))


@pytest.fixture(scope="session")
def aws(applied: TerraformCopy) -> Iterator[boto3.Session]:
    """Apply two environments, each by its one command; the process' AWS is moto's meanwhile."""
    with moto_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in (
            *(("AWS_ENDPOINT_URL", endpoint), ("AWS_DEFAULT_REGION", "us-east-1")),
            *(("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")),
        ):
            patch.setenv(name, value)
        session = boto3.Session(region_name="us-east-1")
        session.client("s3").create_bucket(Bucket=STATES)
        image = session.client("ec2").describe_images()["Images"][0]["ImageId"]
        for kind in ("cpu", "gpu"):
            session.client("ssm").put_parameter(Name=f"/images/{kind}", Value=image, Type="String")
        for name in ENVIRONMENTS:
            applied.apply(name, endpoint)
        yield session


@pytest.fixture(scope="session")
def hosted() -> Iterator[Hosted]:
    """A cluster of four hosts, or why this machine can have none."""
    reason = missing_requirement()
    if reason is None and find_postgres() is None:
        reason = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if reason is not None:
        pytest.skip(reason)
    with hosted_cluster() as running:
        yield running
