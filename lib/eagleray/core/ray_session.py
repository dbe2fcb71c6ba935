"""The Ray that a command runs on: one of its own on this machine, or a cluster that is named.

A Ray of one's own is started by the command, bound to loopback, guarded by a token that dies with
it, silent unless asked, and stopped when the command ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from eagleray.core.environment import ray_temporary_folder, set_user_variables
from eagleray.core.errors import JobFailedError, UserError
from eagleray.core.ray_errors import first_line
from eagleray.core.ray_private import (
    LOOPBACK_OPTIONS,
    disable_progress_bars,
    job_config_without_working_folder,
    set_job_agent_port,
)
from eagleray.core.settings import Settings
from eagleray.core.system import free_port

__all__ = ["BATCH_SLOT", "Cluster", "ray_session"]

BATCH_SLOT = "eagleray_batch"
"""The resource of Ray that a batch job of the service holds while it runs."""

_SECONDS_TO_END = 3.0  # of workers, once their Ray is gone
_A_YEAR = 365 * 24 * 3600  # in seconds


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a job may use.

    Attributes:
        num_cpus: CPU cores that Ray schedules.
        num_gpus: GPUs that Ray schedules.
        num_nodes: Machines.
        embedded: Whether the command started this Ray itself.
    """

    num_cpus: int
    num_gpus: int
    embedded: bool
    num_nodes: int = 1

    @property
    def cpus_per_node(self) -> int:
        """CPU cores of a node, where all have as many."""
        return max(1, self.num_cpus // max(1, self.num_nodes))


@contextlib.contextmanager
def ray_session(
    settings: Settings,
    *,
    address: str | None = None,
    verbose: bool = False,
    max_concurrent_batches: int = 0,
) -> Iterator[Cluster]:
    """Join a named cluster, or start a Ray for the time of the `with` block.

    Args:
        settings: Names the cluster when `address` does not.
        address: A Ray address such as `auto` or `ray://head:10001`.
        verbose: Let Ray and its workers write to the terminal.
        max_concurrent_batches: Number of jobs claiming a `BATCH_SLOT` that run at the same time
            on a Ray of the command's own, which then serves Ray's Jobs API on loopback, with the
            token; 0 for none.

    Raises:
        UserError: The named cluster does not answer, or the temporary folder is not fit for Ray.
        JobFailedError: No Ray starts on this machine.
    """
    address = address or settings.ray_address
    set_user_variables(settings.home_folder)
    _prepare_environment(embedded=address is None, verbose=verbose)
    import ray

    already_there = ray.is_initialized()
    if not already_there:
        _start(address, verbose=verbose, max_concurrent_batches=max_concurrent_batches)
    _quiet_ray_data(verbose=verbose)
    try:
        resources = ray.cluster_resources()
        yield Cluster(
            num_cpus=max(1, int(resources.get("CPU", 1))),
            num_gpus=int(resources.get("GPU", 0)),
            embedded=address is None,
            num_nodes=sum(node["Alive"] for node in ray.nodes()),
        )
    finally:
        if not already_there:
            started = _started_by_raylet() if address is None else []
            ray.shutdown()
            _end_what_is_left(started)


def _prepare_environment(*, embedded: bool, verbose: bool) -> None:
    """Set what Ray reads from the environment when it is imported and started."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # An interrupted tuning ends; Ray Tune would return what it has, as if that were all.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one writes even when told not to
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths stay what they were
    # Seconds between looks at the workers of a training: one that died is noticed within them.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Seconds that a group waits for its places. A node that has just died still counts when they
    # are chosen, and they are chosen anew only when this is over.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    # Workers inherit it. Without it each of a worker's many reading threads keeps freed memory.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    if not verbose:
        os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        # Ray prints to our standard output when a worker dies; jobs expect that and go on.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if embedded:
        os.environ["RAY_TMPDIR"] = ray_temporary_folder()
        # What a dashboard would show, and a Ray of one's own has none: two hundredths of a core.
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        os.environ.setdefault("RAY_event_stats", "0")
        # It watches for nodes that a cloud takes back; this machine is the only one.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Everything on loopback. Ray has this switch for the firewalls of other systems; here it
        # keeps a Ray of one's own off the network, which an address of 127.0.0.1 alone does not.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Whoever reaches a Ray cluster can run code on it, so even loopback asks for a token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _start(address: str | None, *, verbose: bool, max_concurrent_batches: int) -> None:
    import ray

    logging.getLogger("ray").setLevel(logging.INFO if verbose else logging.ERROR)
    common = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "configure_logging": verbose,
        "job_config": job_config_without_working_folder(),
    }
    if address is None:
        if max_concurrent_batches:
            # A job waits for its slot as long as it takes; Ray gives up after 15 minutes.
            os.environ.setdefault("RAY_JOB_START_TIMEOUT_SECONDS", str(_A_YEAR))
            set_job_agent_port(free_port())
        try:
            ray.init(
                address="local",
                include_dashboard=bool(max_concurrent_batches),  # the server of jobs lives in it
                dashboard_host="127.0.0.1",
                resources={BATCH_SLOT: max_concurrent_batches} if max_concurrent_batches else None,
                **LOOPBACK_OPTIONS,
                **common,
            )
        except Exception as error:  # Ray has no narrower one for a start that takes too long
            raise JobFailedError(
                f"Ray does not start on this machine ({first_line(error)}); see whether memory, "
                "disk and processor have room for it, and run the command again; its own logs are "
                f"in {os.environ['RAY_TMPDIR']}/ray/session_latest/logs."
            ) from error
        return
    try:
        ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The Ray cluster at {address!r} does not answer ({first_line(error)}); check the "
            "address, and that RAY_AUTH_TOKEN holds the cluster's token."
        ) from error


def _started_by_raylet() -> list[psutil.Process]:
    """Return the workers of a Ray of one's own, and what they started."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "raylet":
                found += child.children(recursive=True)
    return found


def _end_what_is_left(processes: list[psutil.Process]) -> None:
    """End workers that outlive their Ray.

    A worker can lock itself while it exits, in the destructor of its core: it has left Ray by then,
    nobody ends it, and it would hold its gigabyte until the machine is restarted.
    """
    _, left = psutil.wait_procs(processes, timeout=_SECONDS_TO_END)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_SECONDS_TO_END)


def _quiet_ray_data(*, verbose: bool) -> None:
    if verbose:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials have rows of their own
    disable_progress_bars()
