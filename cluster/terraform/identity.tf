# Roles. Each workload has its own, bound to one service account of this one cluster (EKS Pod
# Identity). Nodes have what they need to join and to pull the image, and no access to data.

locals {
  # Prefixes of the bucket that each workload reads, writes and deletes. The gateway of the service
  # reaches no storage. MLflow's server keeps the packages, and deletes none: they are immutable.
  access = {
    ray-head   = { read = ["*"], write = ["outputs/*", "runs/*"], delete = ["outputs/*", "runs/*"] }
    ray-worker = { read = ["*"], write = ["outputs/*", "runs/*"], delete = ["outputs/*", "runs/*"] }
    jobs       = { read = ["*"], write = ["outputs/*"], delete = [] }
    mlflow     = { read = ["artifacts/*"], write = ["artifacts/*"], delete = [] }
  }

  # The service accounts of ../kubernetes, and those of the cluster's own parts.
  service_accounts = merge(
    { for workload in keys(local.access) : workload => { namespace = var.workload_namespace, name = "eagleray-${workload}" } },
    {
      cluster-autoscaler = { namespace = "kube-system", name = "cluster-autoscaler" }
      vpc-cni            = { namespace = "kube-system", name = "aws-node" }
    },
  )
}

data "aws_iam_policy_document" "pod_identity" {
  for_each = local.service_accounts

  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]

    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/eks-cluster-arn"
      values   = ["arn:${local.partition}:eks:${local.region}:${local.account}:cluster/${var.name}"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-namespace"
      values   = [each.value.namespace]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-service-account"
      values   = [each.value.name]
    }
  }
}

resource "aws_iam_role" "workload" {
  for_each = local.service_accounts

  name               = "${var.name}-pod-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.pod_identity[each.key].json
}

# The add-on of the network makes its own association.
resource "aws_eks_pod_identity_association" "this" {
  for_each = { for workload, account in local.service_accounts : workload => account if workload != "vpc-cni" }

  cluster_name    = aws_eks_cluster.this.name
  namespace       = each.value.namespace
  service_account = each.value.name
  role_arn        = aws_iam_role.workload[each.key].arn
}

resource "aws_iam_role_policy_attachment" "network" {
  role       = aws_iam_role.workload["vpc-cni"].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/AmazonEKS_CNI_Policy"
}

data "aws_iam_policy_document" "bucket" {
  for_each = local.access

  statement {
    sid       = "List"
    actions   = ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.data.arn]
  }
  statement {
    sid       = "Read"
    actions   = ["s3:GetObject"]
    resources = [for prefix in each.value.read : "${aws_s3_bucket.data.arn}/${prefix}"]
  }
  statement {
    sid       = "Write"
    actions   = ["s3:AbortMultipartUpload", "s3:ListMultipartUploadParts", "s3:PutObject"]
    resources = [for prefix in each.value.write : "${aws_s3_bucket.data.arn}/${prefix}"]
  }
  dynamic "statement" {
    for_each = length(each.value.delete) > 0 ? [each.value.delete] : []

    content {
      sid       = "Delete"
      actions   = ["s3:DeleteObject"]
      resources = [for prefix in statement.value : "${aws_s3_bucket.data.arn}/${prefix}"]
    }
  }
  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.this.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${local.region}.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy" "bucket" {
  for_each = local.access

  name   = "bucket"
  role   = aws_iam_role.workload[each.key].id
  policy = data.aws_iam_policy_document.bucket[each.key].json
}

data "aws_iam_policy_document" "cluster_autoscaler" {
  statement {
    sid = "See"
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLaunchConfigurations",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:DescribeTags",
      "ec2:DescribeImages",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:GetInstanceTypesFromInstanceRequirements",
    ]
    resources = ["*"] # these cannot be limited
  }
  statement {
    sid       = "SeeNodeGroups"
    actions   = ["eks:DescribeNodegroup"]
    resources = ["arn:${local.partition}:eks:${local.region}:${local.account}:nodegroup/${var.name}/*/*"]
  }
  # EKS gives this tag to the groups of this cluster.
  statement {
    sid       = "Resize"
    actions   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.name}"
      values   = ["owned"]
    }
  }
}

resource "aws_iam_role_policy" "cluster_autoscaler" {
  name   = "resize"
  role   = aws_iam_role.workload["cluster-autoscaler"].id
  policy = data.aws_iam_policy_document.cluster_autoscaler.json
}

data "aws_iam_policy_document" "assumed_by" {
  for_each = toset(["eks", "ec2"])

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["${each.key}.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "control_plane" {
  name               = "${var.name}-control-plane"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["eks"].json
}

resource "aws_iam_role_policy_attachment" "control_plane" {
  role       = aws_iam_role.control_plane.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/AmazonEKSClusterPolicy"
}

# Kubernetes' secrets are encrypted with the environment's key.
data "aws_iam_policy_document" "secrets" {
  statement {
    actions   = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:ListGrants"]
    resources = [aws_kms_key.this.arn]
  }
}

resource "aws_iam_role_policy" "secrets" {
  name   = "secrets"
  role   = aws_iam_role.control_plane.id
  policy = data.aws_iam_policy_document.secrets.json
}

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["ec2"].json
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEC2ContainerRegistryPullOnly", "AmazonEKSWorkerNodePolicy"])

  role       = aws_iam_role.node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.key}"
}
