# PostgreSQL for the organisation's database and MLflow's. AWS makes, keeps and rotates the
# administrator's password.

resource "aws_db_subnet_group" "this" {
  name       = var.name
  subnet_ids = values(aws_subnet.private)[*].id
}

resource "aws_db_parameter_group" "this" {
  name_prefix = "${var.name}-"
  family      = "postgres${split(".", var.database.version)[0]}"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_db_instance" "this" {
  identifier     = var.name
  engine         = "postgres"
  engine_version = var.database.version
  instance_class = var.database.instance_class
  multi_az       = var.database.standby

  db_name                       = "eagleray"
  username                      = "administrator"
  manage_master_user_password   = true
  master_user_secret_kms_key_id = aws_kms_key.this.key_id

  allocated_storage     = var.database.storage_gb
  max_allocated_storage = var.database.max_storage_gb
  storage_type          = "gp3"
  storage_encrypted     = true
  kms_key_id            = aws_kms_key.this.arn

  db_subnet_group_name   = aws_db_subnet_group.this.name
  vpc_security_group_ids = [aws_security_group.database.id]
  parameter_group_name   = aws_db_parameter_group.this.name
  publicly_accessible    = false

  backup_retention_period      = var.database.backup_days
  copy_tags_to_snapshot        = true
  auto_minor_version_upgrade   = true
  performance_insights_enabled = true
  deletion_protection          = var.protected
  skip_final_snapshot          = !var.protected
  final_snapshot_identifier    = var.protected ? "${var.name}-final" : null
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "PostgreSQL, for the nodes of the cluster"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.name}-database" }
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  for_each = merge(
    { eks = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id },
    local.ray_up ? { ray = aws_security_group.ray[0].id } : {},
  )

  security_group_id            = aws_security_group.database.id
  description                  = "PostgreSQL from the nodes of ${each.key}"
  referenced_security_group_id = each.value
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}
