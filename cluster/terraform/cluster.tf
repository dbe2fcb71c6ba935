# EKS: the control plane, its add-ons, and node groups that the cluster autoscaler sizes.

resource "aws_kms_key" "this" {
  description             = "Data of the environment ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

resource "aws_kms_alias" "this" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.this.key_id
}

resource "aws_eks_cluster" "this" {
  name     = var.name
  version  = var.kubernetes_version
  role_arn = aws_iam_role.control_plane.arn

  enabled_cluster_log_types     = ["api", "audit", "authenticator"]
  bootstrap_self_managed_addons = false

  access_config {
    authentication_mode                         = "API"
    bootstrap_cluster_creator_admin_permissions = true
  }

  encryption_config {
    resources = ["secrets"]

    provider {
      key_arn = aws_kms_key.this.arn
    }
  }

  vpc_config {
    subnet_ids              = values(aws_subnet.private)[*].id
    endpoint_private_access = true
    endpoint_public_access  = length(var.operator_cidrs) > 0
    public_access_cidrs     = length(var.operator_cidrs) > 0 ? var.operator_cidrs : null
  }

  depends_on = [
    aws_iam_role_policy_attachment.control_plane,
    aws_iam_role_policy.secrets,
  ]
}

# Add-ons that a node needs before it is ready.
resource "aws_eks_addon" "network" {
  cluster_name = aws_eks_cluster.this.name
  addon_name   = "vpc-cni"
  # Without this the network policies of the manifests would have no effect.
  configuration_values = jsonencode({ enableNetworkPolicy = "true" })

  pod_identity_association {
    service_account = "aws-node"
    role_arn        = aws_iam_role.workload["vpc-cni"].arn
  }
}

resource "aws_eks_addon" "early" {
  for_each = toset(["eks-pod-identity-agent", "kube-proxy"])

  cluster_name = aws_eks_cluster.this.name
  addon_name   = each.key
}

resource "aws_eks_addon" "late" {
  for_each = toset(["coredns", "metrics-server"])

  cluster_name = aws_eks_cluster.this.name
  addon_name   = each.key

  depends_on = [aws_eks_node_group.this]
}

resource "aws_launch_template" "eks" {
  for_each = var.node_groups

  name                   = "${var.name}-eks-${each.key}"
  update_default_version = true

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = each.value.disk_gb
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  # One hop: pods cannot take the credentials of their node.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${var.name}-${each.key}", Environment = var.name }
  }
}

resource "aws_eks_node_group" "this" {
  for_each = var.node_groups

  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = values(aws_subnet.private)[*].id

  ami_type       = each.value.gpu ? "AL2023_x86_64_NVIDIA" : "AL2023_x86_64_STANDARD"
  capacity_type  = each.value.spot ? "SPOT" : "ON_DEMAND"
  instance_types = each.value.instance_types

  launch_template {
    id      = aws_launch_template.eks[each.key].id
    version = aws_launch_template.eks[each.key].latest_version
  }

  scaling_config {
    min_size     = each.value.min_size
    max_size     = each.value.max_size
    desired_size = each.value.min_size
  }

  labels = {
    "eagleray/node"     = each.value.gpu ? "gpu" : each.key == "system" ? "system" : "cpu"
    "eagleray/capacity" = each.value.spot ? "spot" : "on-demand"
  }

  dynamic "taint" {
    for_each = each.value.gpu ? ["nvidia.com/gpu"] : []

    content {
      key    = taint.value
      value  = "present"
      effect = "NO_SCHEDULE"
    }
  }

  # The autoscaler sets the size.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [
    aws_iam_role_policy_attachment.node,
    aws_eks_addon.network,
    aws_eks_addon.early,
  ]
}
