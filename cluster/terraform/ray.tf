# What `ray up` needs, if operators are named: a security group, and a launch template for each
# kind of node, which ../../ray-cluster.yaml refers to by name. Ray itself would open SSH to every
# address and give the head full access to EC2 and S3.

locals {
  ray_up = length(var.operator_cidrs) > 0
  # The head launches nodes; nodes only work.
  ray_nodes = local.ray_up ? {
    head = { image = var.ray_images.cpu, role = "head", disk_gb = 100 }
    cpu  = { image = var.ray_images.cpu, role = "worker", disk_gb = 100 }
    gpu  = { image = var.ray_images.gpu, role = "worker", disk_gb = 200 }
  } : {}
  ray_roles = toset(values(local.ray_nodes)[*].role)
}

resource "aws_security_group" "ray" {
  count = local.ray_up ? 1 : 0

  name        = "${var.name}-ray"
  description = "Nodes of ray up: SSH from the operators, everything among themselves"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.name}-ray" }
}

resource "aws_vpc_security_group_ingress_rule" "ray_ssh" {
  for_each = toset(var.operator_cidrs)

  security_group_id = aws_security_group.ray[0].id
  description       = "SSH from an operator"
  cidr_ipv4         = each.key
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
}

resource "aws_vpc_security_group_ingress_rule" "ray_nodes" {
  count = local.ray_up ? 1 : 0

  security_group_id            = aws_security_group.ray[0].id
  description                  = "Ray among its nodes"
  referenced_security_group_id = aws_security_group.ray[0].id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "ray" {
  count = local.ray_up ? 1 : 0

  security_group_id = aws_security_group.ray[0].id
  description       = "Packages, storage and the database"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

data "aws_ssm_parameter" "ray_image" {
  for_each = local.ray_nodes

  name = each.value.image
}

resource "aws_launch_template" "ray" {
  for_each = local.ray_nodes

  name                   = "${var.name}-ray-${each.key}"
  update_default_version = true
  image_id               = nonsensitive(data.aws_ssm_parameter.ray_image[each.key].value)
  vpc_security_group_ids = [aws_security_group.ray[0].id]

  iam_instance_profile {
    name = aws_iam_instance_profile.ray[each.value.role].name
  }

  block_device_mappings {
    device_name = "/dev/sda1"

    ebs {
      volume_size           = each.value.disk_gb
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]

    content {
      resource_type = tag_specifications.value
      tags          = { Environment = var.name }
    }
  }
}

resource "aws_iam_role" "ray" {
  for_each = local.ray_roles

  name               = "${var.name}-ray-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["ec2"].json
}

resource "aws_iam_instance_profile" "ray" {
  for_each = local.ray_roles

  name = "${var.name}-ray-${each.key}"
  role = aws_iam_role.ray[each.key].name
}

# There is no MLflow server before the bucket here: whoever trains registers packages in it.
data "aws_iam_policy_document" "ray_bucket" {
  source_policy_documents = [data.aws_iam_policy_document.bucket["ray-worker"].json]

  statement {
    sid       = "Register"
    actions   = ["s3:PutObject"]
    resources = ["${aws_s3_bucket.data.arn}/artifacts/*"]
  }
}

resource "aws_iam_role_policy" "ray_bucket" {
  for_each = local.ray_roles

  name   = "bucket"
  role   = aws_iam_role.ray[each.key].id
  policy = data.aws_iam_policy_document.ray_bucket.json
}

data "aws_iam_policy_document" "ray_head" {
  count = local.ray_up ? 1 : 0

  statement {
    sid       = "See"
    actions   = ["ec2:DescribeInstances", "ec2:DescribeInstanceTypes"]
    resources = ["*"] # these cannot be limited
  }
  statement {
    sid     = "Launch"
    actions = ["ec2:RunInstances"]
    resources = concat(
      [aws_security_group.ray[0].arn],
      values(aws_subnet.public)[*].arn,
      values(aws_subnet.private)[*].arn,
      [for kind, template in aws_launch_template.ray : template.arn if kind != "head"],
      ["arn:${local.partition}:ec2:${local.region}::image/*"],
      [for type in ["key-pair", "network-interface", "spot-instances-request", "volume"] :
      "arn:${local.partition}:ec2:${local.region}:${local.account}:${type}/*"],
    )
  }
  # Instances have the workers' role and this environment's cluster, or are not launched.
  statement {
    sid       = "LaunchWorkers"
    actions   = ["ec2:RunInstances"]
    resources = ["arn:${local.partition}:ec2:${local.region}:${local.account}:instance/*"]

    condition {
      test     = "ArnEquals"
      variable = "ec2:InstanceProfile"
      values   = [aws_iam_instance_profile.ray["worker"].arn]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/ray-cluster-name"
      values   = [var.name]
    }
  }
  statement {
    sid       = "TagAtLaunch"
    actions   = ["ec2:CreateTags"]
    resources = ["arn:${local.partition}:ec2:${local.region}:${local.account}:*/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances"]
    }
  }
  statement {
    sid       = "OwnNodes"
    actions   = ["ec2:CreateTags", "ec2:TerminateInstances"]
    resources = ["arn:${local.partition}:ec2:${local.region}:${local.account}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/ray-cluster-name"
      values   = [var.name]
    }
  }
  statement {
    sid       = "GiveWorkersTheirRole"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.ray["worker"].arn]

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ec2.amazonaws.com"]
    }
  }
  # The account's first spot instance needs it.
  statement {
    sid       = "SpotServiceRole"
    actions   = ["iam:CreateServiceLinkedRole"]
    resources = ["arn:${local.partition}:iam::${local.account}:role/aws-service-role/spot.amazonaws.com/*"]

    condition {
      test     = "StringEquals"
      variable = "iam:AWSServiceName"
      values   = ["spot.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy" "ray_head" {
  count = local.ray_up ? 1 : 0

  name   = "launch"
  role   = aws_iam_role.ray["head"].id
  policy = data.aws_iam_policy_document.ray_head[0].json
}
