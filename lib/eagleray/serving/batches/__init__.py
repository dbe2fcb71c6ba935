"""Batch jobs that callers of the service start; each is a job of its own on the same cluster."""

from eagleray.serving.batches.batch_jobs import BatchJobs
from eagleray.serving.batches.path_policy import BatchPathPolicy
from eagleray.serving.batches.spec import BatchBody
from eagleray.serving.batches.status import BatchStatus

__all__ = ["BatchBody", "BatchJobs", "BatchPathPolicy", "BatchStatus"]
