"""The resources of training workers: devices, and the checks that they exist."""

from __future__ import annotations

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError
from eagleray.core.ray_session import Cluster, await_resources
from eagleray.training.spec import TrainSpec

__all__ = ["await_workers", "require_resources", "uses_gpu", "worker_resources"]

_MAX_WORKERS_PER_CORE = 4


def uses_gpu(spec: TrainSpec, cluster: Cluster) -> bool:
    """Whether workers train on GPUs."""
    return cluster.uses_gpus(spec.device)


def worker_resources(spec: TrainSpec, cluster: Cluster) -> dict[str, float]:
    """Return the Ray resources of a worker: a GPU, a core, or a fraction of a core."""
    if uses_gpu(spec, cluster):
        return {"GPU": 1}
    return {"CPU": min(1.0, cluster.max_cpus / spec.min_workers)}


def require_resources(spec: TrainSpec, cluster: Cluster) -> None:
    """Check that the workers' resources exist, or that the cluster can grow to them.

    Ray would wait for them without end.

    Raises:
        InputError: If there are too few; the message says how many there are.
    """
    grows = "" if cluster.limits is None else ", and the cluster does not grow to more"
    if spec.device == "gpu" and not cluster.max_gpus:
        there = "there is no GPU here" if not grows else "the cluster never has a GPU"
        raise InputError(f"{spec.name_of('device')}: {there}; leave it out, or use cpu.")
    on_gpu = uses_gpu(spec, cluster)
    available = cluster.max_gpus if on_gpu else cluster.max_cpus * _MAX_WORKERS_PER_CORE
    if spec.min_workers > available:
        limit = (
            f"there are {cluster.max_gpus} GPUs"
            if on_gpu
            else f"the {cluster.max_cpus} CPU cores here take {available}"
        )
        raise InputError(
            f"{spec.name_of('workers')}: {limit}{grows}, and {spec.workers} were asked for."
        )


def await_workers(spec: TrainSpec, cluster: Cluster, reporter: ProgressReporter) -> None:
    """Wait until a cluster that grows has the resources of the smallest number of workers."""
    if cluster.limits is not None:
        device = "with a GPU" if uses_gpu(spec, cluster) else "on CPUs"
        title = f"waiting for {spec.min_workers} workers {device}: the cluster grows"
        with reporter.status(title):
            await_resources([worker_resources(spec, cluster)] * spec.min_workers)
