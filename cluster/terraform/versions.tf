terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }

  # The Makefile names the bucket, and one key for each environment.
  backend "s3" {
    encrypt      = true
    use_lockfile = true
  }
}

# The region comes from AWS_REGION, the account from the credentials.
provider "aws" {
  default_tags {
    tags = {
      Environment = var.name
      ManagedBy   = "terraform"
      Project     = "eagleray"
    }
  }
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  region    = data.aws_region.current.name
}
