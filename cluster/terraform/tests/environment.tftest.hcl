# What an environment is, without an account: providers are mocked, and plans are looked at.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  name = "production"
}

run "nothing_is_public" {
  command = apply

  assert {
    condition     = !aws_db_instance.this.publicly_accessible
    error_message = "The database has a public address."
  }
  assert {
    condition     = !aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].endpoint_private_access
    error_message = "Without operators, the Kubernetes API must be reached from the VPC only."
  }
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.data.block_public_acls,
      aws_s3_bucket_public_access_block.data.block_public_policy,
      aws_s3_bucket_public_access_block.data.ignore_public_acls,
      aws_s3_bucket_public_access_block.data.restrict_public_buckets,
    ])
    error_message = "The bucket must block public access in all four ways."
  }
  assert {
    condition     = aws_s3_bucket_ownership_controls.data.rule[0].object_ownership == "BucketOwnerEnforced"
    error_message = "The bucket must not have access control lists."
  }
  assert {
    condition = alltrue([
      for subnet in concat(values(aws_subnet.private), values(aws_subnet.public)) : !coalesce(subnet.map_public_ip_on_launch, false)
    ])
    error_message = "Without operators, no subnet gives public addresses."
  }
  assert {
    condition = alltrue([
      for group in values(aws_eks_node_group.this) : length(setsubtract(group.subnet_ids, values(aws_subnet.private)[*].id)) == 0
    ])
    error_message = "Nodes must be in the private subnets."
  }
  assert {
    condition     = length(setsubtract(aws_db_subnet_group.this.subnet_ids, values(aws_subnet.private)[*].id)) == 0
    error_message = "The database must be in the private subnets."
  }
  assert {
    condition = alltrue([
      for rule in values(aws_vpc_security_group_ingress_rule.database) : rule.from_port == 5432 && rule.cidr_ipv4 == null
    ])
    error_message = "The database must admit security groups of nodes, on one port."
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.endpoints.cidr_ipv4 == "10.20.0.0/16"
    error_message = "Endpoints must admit the VPC only."
  }
  assert {
    condition     = length(aws_default_security_group.closed.ingress) == 0
    error_message = "The default security group must admit nothing."
  }
  assert {
    condition     = length(aws_security_group.ray) == 0 && length(aws_launch_template.ray) == 0 && length(aws_iam_role.ray) == 0
    error_message = "Without operators, nothing for `ray up` is created."
  }
}

run "everything_is_encrypted" {
  command = apply

  assert {
    condition     = aws_db_instance.this.storage_encrypted && aws_db_instance.this.kms_key_id == aws_kms_key.this.arn
    error_message = "The database must be encrypted with the environment's key."
  }
  assert {
    condition = contains([
      for parameter in aws_db_parameter_group.this.parameter : "${parameter.name}=${parameter.value}"
    ], "rds.force_ssl=1")
    error_message = "The database must refuse connections without TLS."
  }
  assert {
    condition = alltrue([
      for rule in aws_s3_bucket_server_side_encryption_configuration.data.rule :
      rule.apply_server_side_encryption_by_default[0].kms_master_key_id == aws_kms_key.this.arn
    ])
    error_message = "The bucket must be encrypted with the environment's key."
  }
  assert {
    condition     = aws_kms_key.this.enable_key_rotation
    error_message = "The key must be rotated."
  }
  assert {
    condition     = aws_eks_cluster.this.encryption_config[0].resources == toset(["secrets"])
    error_message = "Kubernetes' secrets must be encrypted."
  }
  assert {
    condition     = aws_ecr_repository.image.encryption_configuration[0].encryption_type == "KMS"
    error_message = "Images must be encrypted."
  }
  assert {
    condition = alltrue([
      for template in values(aws_launch_template.eks) : template.block_device_mappings[0].ebs[0].encrypted == "true"
    ])
    error_message = "Disks of nodes must be encrypted."
  }
  assert {
    condition     = one(data.aws_iam_policy_document.tls_only.statement).effect == "Deny" && one(one(data.aws_iam_policy_document.tls_only.statement).condition).variable == "aws:SecureTransport"
    error_message = "The bucket must refuse requests without TLS."
  }
}

run "data_survives" {
  command = apply

  assert {
    condition     = aws_s3_bucket_versioning.data.versioning_configuration[0].status == "Enabled"
    error_message = "The bucket must keep versions."
  }
  assert {
    condition     = !aws_s3_bucket.data.force_destroy && aws_db_instance.this.deletion_protection && !aws_ecr_repository.image.force_delete
    error_message = "A protected environment must not be destroyed with its data."
  }
  assert {
    condition     = aws_db_instance.this.backup_retention_period == 14 && aws_db_instance.this.multi_az && !aws_db_instance.this.skip_final_snapshot
    error_message = "The database must have backups, a standby and a final snapshot."
  }
  # Expiration is for what is no longer current.
  assert {
    condition = alltrue(flatten([
      for rule in aws_s3_bucket_lifecycle_configuration.data.rule : [for expiration in rule.expiration : expiration.expired_object_delete_marker]
    ]))
    error_message = "No rule may expire current objects."
  }
  assert {
    condition     = aws_ecr_repository.image.image_tag_mutability == "IMMUTABLE" && aws_ecr_repository.image.image_scanning_configuration[0].scan_on_push
    error_message = "Tags of images must be immutable, and images scanned."
  }
}

run "passwords_are_kept_by_aws" {
  command = apply

  assert {
    condition     = aws_db_instance.this.manage_master_user_password && aws_db_instance.this.password == null
    error_message = "Terraform must not know the password."
  }
}

run "nodes_start_from_zero_and_fall_back" {
  command = apply

  assert {
    condition = alltrue([
      for name, group in aws_eks_node_group.this : group.scaling_config[0].min_size == (name == "system" ? 2 : 0)
    ])
    error_message = "All node groups but `system` must start with no node."
  }
  assert {
    condition     = { for name, group in aws_eks_node_group.this : name => group.capacity_type } == { system = "ON_DEMAND", cpu-spot = "SPOT", cpu-demand = "ON_DEMAND", gpu-spot = "SPOT", gpu-demand = "ON_DEMAND" }
    error_message = "CPUs and GPUs must be had as spot instances and on demand."
  }
  assert {
    condition     = length(aws_eks_node_group.this["cpu-spot"].instance_types) >= 3
    error_message = "Spot groups must have several instance types to choose from."
  }
  assert {
    condition = alltrue([
      for name, group in aws_eks_node_group.this :
      length(group.taint) == (startswith(name, "gpu") ? 1 : 0) && (startswith(name, "gpu") == (group.ami_type == "AL2023_x86_64_NVIDIA"))
    ])
    error_message = "GPU nodes must have the driver, and repel pods that need no GPU."
  }
  assert {
    condition = alltrue([
      for template in values(aws_launch_template.eks) :
      template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1
    ])
    error_message = "Pods must not reach the credentials of their node."
  }
  assert {
    condition     = jsondecode(aws_eks_addon.network.configuration_values).enableNetworkPolicy == "true"
    error_message = "Network policies must be enforced."
  }
}

run "roles_have_least_privilege" {
  command = apply

  assert {
    condition     = toset(keys(aws_iam_role.workload)) == toset(["ray-head", "ray-worker", "jobs", "mlflow", "cluster-autoscaler", "vpc-cni"])
    error_message = "Each workload must have its own role."
  }
  # No statement allows every action, or every action of a service.
  assert {
    condition = alltrue(flatten([
      for document in concat(values(data.aws_iam_policy_document.bucket), [data.aws_iam_policy_document.cluster_autoscaler]) : [
        for statement in document.statement : [for action in statement.actions : !strcontains(action, "*")]
      ]
    ]))
    error_message = "Policies must name their actions."
  }
  # Data is reached in the environment's bucket and key alone.
  assert {
    condition = alltrue(flatten([
      for document in values(data.aws_iam_policy_document.bucket) : [
        for statement in document.statement : [
          for resource in statement.resources : startswith(resource, aws_s3_bucket.data.arn) || resource == aws_kms_key.this.arn
        ]
      ]
    ]))
    error_message = "Workloads must reach the bucket and the key of their environment only."
  }
  assert {
    condition = alltrue([
      for document in values(data.aws_iam_policy_document.bucket) : alltrue(flatten([
        for statement in document.statement : [for resource in statement.resources : !strcontains(resource, "/artifacts/")] if statement.sid == "Delete"
      ]))
    ])
    error_message = "No pod may delete registered packages."
  }
  assert {
    condition = alltrue([
      for statement in data.aws_iam_policy_document.bucket["mlflow"].statement :
      statement.resources == toset(["${aws_s3_bucket.data.arn}/artifacts/*"]) if contains(["Read", "Write"], statement.sid)
    ])
    error_message = "MLflow must reach packages only."
  }
  # A role is for one service account of one cluster.
  assert {
    condition = alltrue([
      for name, document in data.aws_iam_policy_document.pod_identity : toset([
        for condition in document.statement[0].condition : condition.variable
      ]) == toset(["aws:RequestTag/eks-cluster-arn", "aws:RequestTag/kubernetes-namespace", "aws:RequestTag/kubernetes-service-account"])
    ])
    error_message = "Roles must be bound to a service account of this cluster."
  }
  assert {
    condition     = toset([for attachment in values(aws_iam_role_policy_attachment.node) : element(split("/", attachment.policy_arn), 1)]) == toset(["AmazonEC2ContainerRegistryPullOnly", "AmazonEKSWorkerNodePolicy"])
    error_message = "Nodes must only join and pull images."
  }
}
