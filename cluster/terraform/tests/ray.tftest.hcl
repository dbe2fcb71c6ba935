# What `ray up` is given if operators are named.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  name           = "production"
  operator_cidrs = ["198.51.100.7/32"]
}

run "ssh_from_operators_only" {
  command = apply

  assert {
    condition     = keys(aws_vpc_security_group_ingress_rule.ray_ssh) == ["198.51.100.7/32"] && alltrue([for rule in values(aws_vpc_security_group_ingress_rule.ray_ssh) : rule.from_port == 22 && rule.to_port == 22])
    error_message = "Operators must reach SSH, and nothing else."
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.ray_nodes[0].referenced_security_group_id == aws_security_group.ray[0].id && aws_vpc_security_group_ingress_rule.ray_nodes[0].cidr_ipv4 == null
    error_message = "Nodes must reach each other, and nobody else them."
  }
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].public_access_cidrs == toset(["198.51.100.7/32"])
    error_message = "The Kubernetes API must admit the operators only."
  }
}

run "templates_are_safe" {
  command = apply

  assert {
    condition     = { for kind, template in aws_launch_template.ray : kind => template.name } == { head = "production-ray-head", cpu = "production-ray-cpu", gpu = "production-ray-gpu" }
    error_message = "The names must be those that ray-cluster.yaml refers to."
  }
  assert {
    condition = alltrue([
      for template in values(aws_launch_template.ray) :
      template.metadata_options[0].http_tokens == "required" && template.block_device_mappings[0].ebs[0].encrypted == "true" && template.vpc_security_group_ids == toset([aws_security_group.ray[0].id])
    ])
    error_message = "Nodes must have encrypted disks, session tokens for their credentials, and the security group."
  }
  assert {
    condition     = { for kind, template in aws_launch_template.ray : kind => template.iam_instance_profile[0].name } == { head = "production-ray-head", cpu = "production-ray-worker", gpu = "production-ray-worker" }
    error_message = "Only the head may launch nodes."
  }
}

run "the_head_launches_only_its_workers" {
  command = apply

  assert {
    condition = alltrue([
      for statement in data.aws_iam_policy_document.ray_head[0].statement :
      statement.sid == "See" || !contains(statement.resources, "*")
    ])
    error_message = "Only describing may be unlimited."
  }
  assert {
    condition = alltrue([
      for statement in data.aws_iam_policy_document.ray_head[0].statement :
      statement.resources == toset([aws_iam_role.ray["worker"].arn]) if contains(statement.actions, "iam:PassRole")
    ])
    error_message = "The head may give the workers' role only."
  }
  assert {
    condition = alltrue([
      for statement in data.aws_iam_policy_document.ray_head[0].statement :
      one(statement.condition).variable == "ec2:ResourceTag/ray-cluster-name" && one(statement.condition).values == tolist(["production"])
      if contains(statement.actions, "ec2:TerminateInstances")
    ])
    error_message = "The head may end nodes of its own cluster only."
  }
}
