"""Connects to a cluster from outside, by the kind of its address."""

from __future__ import annotations

from eagleray.clusters.profiles import ClusterProfile
from eagleray.clusters.remote_jobs import RemoteJobs

__all__ = ["connect"]


def connect(profile: ClusterProfile) -> RemoteJobs:
    """Return the jobs of a cluster, which answers, accepts the secret and has a version that fits.

    Args:
        profile: A cluster with a URL.

    Raises:
        UserError: If it does not.
    """
    jobs: RemoteJobs
    if profile.is_service:
        from eagleray.clusters.service_jobs import ServiceJobs

        jobs = ServiceJobs(profile)
    else:
        from eagleray.clusters.ray_jobs import RayJobs

        jobs = RayJobs(profile)
    jobs.facts()
    return jobs
