"""A copy of the Terraform module, applied with this machine's AWS provider to moto."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["ENVIRONMENTS", "STATES", "TerraformCopy", "copy_module"]

MODULE = Path(__file__).parents[2] / "cluster/terraform"
ENVIRONMENTS = ("eagleray", "staging")
"""The environments that are applied: that of `ray-cluster.yaml`, and another one."""

STATES = "states"
"""Bucket of the states."""

# What is applied to moto, which has neither add-ons nor pod identities of EKS.
TARGETS = (
    *("aws_s3_bucket_policy.data", "aws_s3_bucket_versioning.data"),
    *("aws_s3_bucket_public_access_block.data", "aws_ecr_repository.image"),
    *("aws_s3_bucket_server_side_encryption_configuration.data", "aws_launch_template.ray"),
    *("aws_iam_role_policy.ray_head", "aws_iam_role_policy.ray_bucket", "aws_subnet.public"),
    *("aws_vpc_security_group_ingress_rule.ray_ssh", "aws_vpc_security_group_egress_rule.ray"),
    *("aws_vpc_security_group_ingress_rule.ray_nodes", "aws_iam_role_policy.bucket"),
)
MOTO = """
provider "aws" {
  s3_use_path_style           = true
  skip_credentials_validation = true
}
terraform {
  backend "s3" {
    encrypt        = true
    use_lockfile   = true
    use_path_style = true
  }
}
"""


class TerraformCopy:
    """A copy of the module, whose commands leave nothing in the checkout."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder; a failure shows what it printed."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=540,
        )
        assert done.returncode == 0 or not check, done.stdout[-4000:] + done.stderr[-4000:]
        return done

    def apply(self, name: str, endpoint: str) -> None:
        """Apply the parts that moto has, as an operator would, under the name of an environment."""
        (self.folder / "moto_override.tf").write_text(MOTO)
        (self.folder / "terraform.tfvars").write_text(
            'operator_cidrs = ["198.51.100.7/32"]\n'
            'ray_images     = { cpu = "/images/cpu", gpu = "/images/gpu" }\n'
        )
        self.environment |= {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
        words = [
            "-auto-approve",
            "-no-color",
            "-parallelism=20",
            *(f"-target={x}" for x in TARGETS),
        ]
        self.run("make", "apply", f"NAME={name}", f"STATE={STATES}", f"ARGS={' '.join(words)}")


def copy_module(folder: Path) -> TerraformCopy:
    """Copy the module; skip the test if there is no Terraform, or no AWS provider."""
    if not shutil.which("terraform"):
        pytest.skip("terraform is not installed")
    leave = shutil.ignore_patterns(".terraform*", "*.tfvars", "environments")
    shutil.copytree(MODULE, folder / "module", ignore=leave)
    copy = TerraformCopy(folder / "module", _environment(folder))
    if copy.run("terraform", "init", "-backend=false", "-input=false", check=False).returncode:
        pytest.skip("terraform does not find the AWS provider")
    return copy


def _environment(folder: Path) -> dict[str, str]:
    """Have Terraform take the provider from a folder below /opt, unless the user configured it."""
    environment = {**os.environ, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
    if Path(environment.get("TF_CLI_CONFIG_FILE", "-")).is_file():
        return environment
    environment.pop("TF_CLI_CONFIG_FILE", None)
    for provider in Path("/opt").glob("*/*/hashicorp/aws"):
        configuration = folder / "terraform.rc"
        mirror = f'filesystem_mirror {{\n    path = "{provider.parents[2]}"\n  }}'
        configuration.write_text(f"provider_installation {{\n  {mirror}\n}}\n")
        environment["TF_CLI_CONFIG_FILE"] = str(configuration)
    return environment
