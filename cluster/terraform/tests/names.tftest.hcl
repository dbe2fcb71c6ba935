# Environments of one account do not meet, and wrong variables are refused.

mock_provider "aws" {
  source = "./tests/mocks"
}

run "everything_is_named_after_the_environment" {
  variables {
    name           = "staging"
    operator_cidrs = ["198.51.100.7/32"]
  }

  assert {
    condition     = aws_s3_bucket.data.bucket == "staging-123456789012-eu-central-1"
    error_message = "The bucket must be named after the environment, the account and the region."
  }
  # All names that are unique in an account or a region.
  assert {
    condition = alltrue([
      for name in concat(
        [
          aws_db_instance.this.identifier,
          aws_db_subnet_group.this.name,
          trimsuffix(aws_db_parameter_group.this.name_prefix, "-"),
          aws_ecr_repository.image.name,
          aws_eks_cluster.this.name,
          aws_iam_role.control_plane.name,
          aws_iam_role.node.name,
          trimprefix(aws_kms_alias.this.name, "alias/"),
          aws_s3_bucket.data.bucket,
        ],
        values(aws_iam_instance_profile.ray)[*].name,
        values(aws_iam_role.ray)[*].name,
        values(aws_iam_role.workload)[*].name,
        values(aws_launch_template.eks)[*].name,
        values(aws_launch_template.ray)[*].name,
      ) : startswith(name, "staging")
    ])
    error_message = "Environments of one account must not share a name."
  }
}

run "another_environment_is_the_same_with_another_name" {
  variables {
    name           = "production"
    operator_cidrs = ["198.51.100.7/32"]
  }

  assert {
    condition     = aws_eks_cluster.this.name == "production" && aws_s3_bucket.data.bucket == "production-123456789012-eu-central-1"
    error_message = "The name must be the only difference."
  }
}

run "a_name_that_cannot_be_a_bucket" {
  command = plan

  variables {
    name = "Production_1"
  }

  expect_failures = [var.name]
}

run "the_internet_is_no_operator" {
  command = plan

  variables {
    name           = "production"
    operator_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.operator_cidrs]
}

run "heads_are_not_on_spot_instances" {
  command = plan

  variables {
    name        = "production"
    node_groups = { system = { instance_types = ["m7i.xlarge"], spot = true, min_size = 1, max_size = 1 } }
  }

  expect_failures = [var.node_groups]
}
