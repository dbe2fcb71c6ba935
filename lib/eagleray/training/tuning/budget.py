"""The budget of a tuning: the number of trials, their concurrency and their resources."""

from __future__ import annotations

from dataclasses import dataclass

from eagleray.core.errors import InputError
from eagleray.core.ray_session import Cluster
from eagleray.training.resources import uses_gpu
from eagleray.training.spec import TrainSpec

__all__ = ["Budget", "require_budget", "share_cluster"]


@dataclass(frozen=True)
class Budget:
    """The budget of a tuning.

    Attributes:
        num_trials: Number of trials.
        max_concurrent: Maximum number of concurrent trials; None for as many as there is room for.
        grace_epochs: Number of epochs before a trial may be stopped; None for a quarter of them.
    """

    num_trials: int
    max_concurrent: int | None
    grace_epochs: int | None

    def grace_period(self, epochs: int) -> int:
        """Return the number of epochs before a trial may be stopped.

        The default is longer than the default warmup, in which trials cannot be told apart.
        """
        return self.grace_epochs or max(1, round(epochs / 4))


def require_budget(budget: Budget, spec: TrainSpec) -> None:
    """Check a budget, and that a trial can carry out the specification.

    Raises:
        InputError: If they do not fit; the message names the option to change.
    """
    if spec.max_workers > 1:
        raise InputError(
            f"{spec.name_of('workers')}: a trial is one process; leave it out, and give it to "
            "`eagleray train --spec` with the best specification."
        )
    if spec.folds:
        raise InputError(
            f"{spec.name_of('folds')}: trials are compared on one split; leave it out."
        )
    if budget.grace_epochs is not None and budget.grace_epochs > spec.epochs:
        raise InputError(
            f"--grace-epochs {budget.grace_epochs} is more than the {spec.epochs} epochs of a "
            "trial, so none could be stopped early."
        )


def share_cluster(
    spec: TrainSpec, budget: Budget, cluster: Cluster
) -> tuple[int, dict[str, float]]:
    """Return the number of concurrent trials, and the Ray resources of each."""
    on_gpu = uses_gpu(spec, cluster)
    room = cluster.max_gpus if on_gpu else cluster.max_cpus
    concurrent = min(budget.max_concurrent or room, room, budget.num_trials)
    cpus = max(1, min(cluster.max_cpus // concurrent, cluster.cpus_per_node))
    return concurrent, {"cpu": cpus, "gpu": 1} if on_gpu else {"cpu": cpus}
