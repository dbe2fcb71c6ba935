"""The Terraform module: its format, its own tests, and two environments on moto's server."""

from __future__ import annotations

import json

import boto3
import pytest

from tests.support.terraform import ENVIRONMENTS, STATES, TerraformCopy


def test_it_is_formatted_and_valid(module: TerraformCopy) -> None:
    module.run("terraform", "fmt", "-check", "-recursive")
    module.run("terraform", "validate")


def test_nothing_is_public_all_is_encrypted_and_roles_are_small(module: TerraformCopy) -> None:
    done = module.run("terraform", "test", "-no-color")
    assert "14 passed, 0 failed" in done.stdout, done.stdout


def test_it_names_no_account_and_no_region(module: TerraformCopy) -> None:
    text = "".join(path.read_text() for path in module.folder.glob("[!m]*.tf"))
    for word in ("123456789012", "us-east-1", "eu-central-1", "arn:aws:"):
        assert word not in text


def test_an_environment_has_to_be_named(module: TerraformCopy) -> None:
    done = module.run("make", "plan", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Name the environment: make plan NAME=production STATE=bucket")


def test_a_second_environment_is_the_same_under_another_name(aws: boto3.Session) -> None:
    found = []
    for name in ENVIRONMENTS:
        state = aws.client("s3").get_object(Bucket=STATES, Key=f"eagleray/{name}/terraform.tfstate")
        resources = json.loads(state["Body"].read())["resources"]
        found.append({f"{x['type']}.{x['name']}": len(x["instances"]) for x in resources})
    assert found[0] == found[1]
    assert found[0]["aws_launch_template.ray"] == 3
    buckets = {bucket["Name"] for bucket in aws.client("s3").list_buckets()["Buckets"]}
    assert buckets == {STATES, *(f"{name}-123456789012-us-east-1" for name in ENVIRONMENTS)}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_bucket_is_closed_versioned_and_encrypted(aws: boto3.Session, name: str) -> None:
    s3, bucket = aws.client("s3"), f"{name}-123456789012-us-east-1"
    block = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert all(block.values())
    assert len(block) == 4
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    (rule,) = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    (statement,) = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_only_operators_reach_nodes_and_only_by_ssh(aws: boto3.Session, name: str) -> None:
    (group,) = aws.client("ec2").describe_security_groups(
        Filters=[{"Name": "group-name", "Values": [f"{name}-ray"]}]
    )["SecurityGroups"]
    outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in outside] == [(22, 22)]
    assert [one["CidrIp"] for one in outside[0]["IpRanges"]] == ["198.51.100.7/32"]
    inside = [
        pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]
    ]
    assert inside == [group["GroupId"]]


def test_a_worker_may_delete_results_and_no_package(aws: boto3.Session) -> None:
    policy = aws.client("iam").get_role_policy(
        RoleName="staging-pod-ray-worker", PolicyName="bucket"
    )
    statements = {one["Sid"]: one for one in policy["PolicyDocument"]["Statement"]}
    bucket = "arn:aws:s3:::staging-123456789012-us-east-1"
    assert statements["Delete"]["Action"] == "s3:DeleteObject"
    assert set(statements["Delete"]["Resource"]) == {f"{bucket}/runs/*", f"{bucket}/outputs/*"}
    assert set(statements) == {"List", "Read", "Write", "Delete", "Key"}
