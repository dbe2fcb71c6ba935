variable "name" {
  description = "Name of the environment. All resources are named after it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name must have 2 to 20 lower-case letters, digits and hyphens, and start with a letter."
  }
}

variable "protected" {
  description = "Whether the database, the bucket and the images survive `terraform destroy`."
  type        = bool
  default     = true
}

variable "operator_cidrs" {
  description = "Networks of the operators: they reach the Kubernetes API, and the nodes of `ray up` by SSH. Empty: nobody outside the VPC does, and nothing for `ray up` is created."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.operator_cidrs : can(cidrnetmask(cidr))])
    error_message = "operator_cidrs must be IPv4 networks, such as 198.51.100.7/32."
  }
  validation {
    condition     = alltrue([for cidr in var.operator_cidrs : try(tonumber(split("/", cidr)[1]) >= 16, false)])
    error_message = "operator_cidrs must be networks of /16 or smaller: the Internet is not an operator."
  }
}

variable "vpc_cidr" {
  description = "Addresses of the VPC, a /16 network. Peered environments need different ones."
  type        = string
  default     = "10.20.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.vpc_cidr)) && endswith(var.vpc_cidr, "/16")
    error_message = "vpc_cidr must be an IPv4 network of size /16, such as 10.20.0.0/16."
  }
}

variable "zones" {
  description = "Number of availability zones. The more, the more spot capacity there is to choose from."
  type        = number
  default     = 3

  validation {
    condition     = var.zones >= 2 && var.zones <= 4
    error_message = "zones must be 2 to 4; EKS and RDS need two."
  }
}

variable "nat_per_zone" {
  description = "Whether each zone has its own NAT gateway. One for all costs less, and leaves with its zone."
  type        = bool
  default     = false
}

variable "kubernetes_version" {
  description = "Kubernetes version of the EKS cluster."
  type        = string
  default     = "1.33"
}

variable "node_groups" {
  description = "EKS node groups. All but `system` start with no node; spot groups list several instance types of one size, from which EKS chooses by capacity."
  type = map(object({
    instance_types = list(string)
    spot           = optional(bool, false)
    gpu            = optional(bool, false)
    min_size       = optional(number, 0)
    max_size       = number
    disk_gb        = optional(number, 100)
  }))
  default = {
    system     = { instance_types = ["m7i.xlarge"], min_size = 2, max_size = 4 }
    cpu-spot   = { instance_types = ["c7i.4xlarge", "c7a.4xlarge", "c6i.4xlarge", "c6a.4xlarge"], spot = true, max_size = 50 }
    cpu-demand = { instance_types = ["c7i.4xlarge"], max_size = 50 }
    gpu-spot   = { instance_types = ["g6.4xlarge", "g5.4xlarge"], spot = true, gpu = true, max_size = 8, disk_gb = 200 }
    gpu-demand = { instance_types = ["g6.4xlarge"], gpu = true, max_size = 8, disk_gb = 200 }
  }

  validation {
    condition     = contains(keys(var.node_groups), "system")
    error_message = "node_groups must have a group named system, where Ray's heads and the controllers run."
  }
  validation {
    condition     = !try(var.node_groups["system"].spot, false) && try(var.node_groups["system"].min_size, 0) >= 1
    error_message = "The node group system must be on demand and have at least one node: heads do not survive a spot interruption."
  }
}

variable "workload_namespace" {
  description = "Kubernetes namespace of Eagleray's service accounts."
  type        = string
  default     = "eagleray"
}

variable "database" {
  description = "RDS for PostgreSQL: instance class, storage in GB and its limit, whether a standby runs in another zone, and days of backups."
  type = object({
    instance_class = optional(string, "db.t4g.medium")
    version        = optional(string, "17")
    storage_gb     = optional(number, 20)
    max_storage_gb = optional(number, 200)
    standby        = optional(bool, true)
    backup_days    = optional(number, 14)
  })
  default = {}

  validation {
    condition     = var.database.backup_days >= 1 && var.database.backup_days <= 35
    error_message = "database.backup_days must be 1 to 35."
  }
}

variable "noncurrent_days" {
  description = "Days for which overwritten and deleted objects of the bucket can be restored."
  type        = number
  default     = 30
}

variable "ray_images" {
  description = "Machine images of `ray up`, as SSM parameters that AWS and Canonical publish: Ubuntu 24.04, without and with NVIDIA's driver."
  type        = object({ cpu = string, gpu = string })
  default = {
    cpu = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    gpu = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
  }
}
