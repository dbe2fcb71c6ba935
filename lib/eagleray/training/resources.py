"""The resources of training workers: devices, and the checks that they exist."""

from __future__ import annotations

from eagleray.core.errors import InputError
from eagleray.core.ray_session import Cluster
from eagleray.training.spec import TrainSpec

__all__ = ["require_resources", "uses_gpu", "worker_resources"]

_MAX_WORKERS_PER_CORE = 4


def uses_gpu(spec: TrainSpec, cluster: Cluster) -> bool:
    """Whether workers train on GPUs."""
    return spec.device != "cpu" and cluster.num_gpus > 0


def worker_resources(spec: TrainSpec, cluster: Cluster) -> dict[str, float]:
    """Return the Ray resources of a worker: a GPU, a core, or a fraction of a core."""
    if uses_gpu(spec, cluster):
        return {"GPU": 1}
    return {"CPU": min(1.0, cluster.num_cpus / spec.min_workers)}


def require_resources(spec: TrainSpec, cluster: Cluster) -> None:
    """Check that the workers' resources exist; Ray would wait for them without end.

    Raises:
        InputError: If there are too few; the message says how many there are.
    """
    if spec.device == "gpu" and not cluster.num_gpus:
        raise InputError(
            f"{spec.name_of('device')}: there is no GPU here; leave it out, or use cpu."
        )
    on_gpu = uses_gpu(spec, cluster)
    available = cluster.num_gpus if on_gpu else cluster.num_cpus * _MAX_WORKERS_PER_CORE
    if spec.min_workers > available:
        limit = (
            f"there are {cluster.num_gpus} GPUs"
            if on_gpu
            else f"the {cluster.num_cpus} CPU cores here take {available}"
        )
        raise InputError(f"{spec.name_of('workers')}: {limit}, and {spec.workers} were asked for.")
