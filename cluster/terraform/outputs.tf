output "cluster_name" {
  description = "EKS cluster, for `aws eks update-kubeconfig --name`."
  value       = aws_eks_cluster.this.name
}

output "cluster_endpoint" {
  description = "Address of the Kubernetes API."
  value       = aws_eks_cluster.this.endpoint
}

output "image_repository" {
  description = "Repository of the container image."
  value       = aws_ecr_repository.image.repository_url
}

output "settings" {
  description = "Settings of Eagleray that this environment decides, as environment variables."
  value = {
    EAGLERAY_ARTIFACT_ROOT = "s3://${aws_s3_bucket.data.bucket}/artifacts"
    EAGLERAY_RUNS_ROOT     = "s3://${aws_s3_bucket.data.bucket}/runs"
    EAGLERAY_S3_REGION     = local.region
  }
}

output "bucket" {
  description = "Bucket of images, results, packages and training runs."
  value       = aws_s3_bucket.data.bucket
}

output "database_host" {
  description = "Host name of PostgreSQL, which only the nodes reach."
  value       = aws_db_instance.this.address
}

output "database_secret" {
  description = "Secret in which AWS keeps the administrator's password, which it rotates."
  value       = aws_db_instance.this.master_user_secret[0].secret_arn
}
