"""Connects a command to a Ray cluster, or starts an embedded Ray on this machine for its duration.

An embedded Ray is bound to loopback, guarded by a random token, silent unless asked to be verbose,
and stopped when the command ends, also if it is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil

from eagleray.core import orphans
from eagleray.core.cluster_address import require_node_address
from eagleray.core.environment import ray_temporary_folder, set_user_variables
from eagleray.core.errors import JobFailedError, UserError
from eagleray.core.node_types import ClusterLimits, find_limits
from eagleray.core.ray_errors import first_line
from eagleray.core.ray_private import (
    LOOPBACK_OPTIONS,
    disable_progress_bars,
    job_config_without_working_folder,
    lean_ray_data,
    notice_start_at_once,
    omit_idle_daemons,
    read_environment_again,
    set_job_agent_port,
)
from eagleray.core.settings import Settings
from eagleray.core.system import free_port
from eagleray.core.types import DeviceChoice

__all__ = ["Cluster", "await_resources", "ray_session"]

_WORKER_EXIT_SECONDS = 0.3  # for workers that are killed to end
# Environment variable by which the processes of an embedded Ray are known.
_OWNER = "EAGLERAY_RAY_OWNER"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The resources of a Ray cluster.

    Attributes:
        num_cpus: Number of CPU cores that Ray schedules.
        num_gpus: Number of GPUs that Ray schedules.
        embedded: Whether this process has started this Ray itself.
        num_nodes: Number of machines.
        limits: What it could ever have; None if it does not grow.
    """

    num_cpus: int
    num_gpus: int
    embedded: bool
    num_nodes: int = 1
    limits: ClusterLimits | None = None

    @property
    def cpus_per_node(self) -> int:
        """Number of CPU cores of a node: on average, or of the nodes that are added."""
        if self.limits is not None:
            return self.limits.cpus_per_node
        return max(1, self.num_cpus // max(1, self.num_nodes))

    @property
    def max_cpus(self) -> int:
        """Number of CPU cores that it could ever have."""
        return self.num_cpus if self.limits is None else max(self.num_cpus, self.limits.max_cpus)

    @property
    def max_gpus(self) -> int:
        """Number of GPUs that it could ever have."""
        return self.num_gpus if self.limits is None else max(self.num_gpus, self.limits.max_gpus)

    def uses_gpus(self, device: DeviceChoice) -> bool:
        """Whether a job runs on GPUs.

        Left to choose, it takes GPUs that are there, and has some added only if nothing is there.
        """
        if device == "auto":
            is_empty = self.limits is not None and self.num_cpus == 0
            return bool(self.num_gpus or (is_empty and self.max_gpus))
        return device == "gpu"

    def counted_again(self) -> Cluster:
        """Return the cluster as it is by now."""
        return self if self.limits is None else _count(self.limits, embedded=self.embedded)


def _count(limits: ClusterLimits | None, *, embedded: bool) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    return Cluster(
        num_cpus=max(0 if limits else 1, int(resources.get("CPU", 0))),
        num_gpus=int(resources.get("GPU", 0)),
        embedded=embedded,
        num_nodes=sum(node["Alive"] for node in ray.nodes()),
        limits=limits,
    )


def await_resources(bundles: Sequence[Mapping[str, float]]) -> None:
    """Wait until the cluster has free resources, for which its autoscaler adds nodes.

    They are asked for by a placement group, which ends with the wait. A request of Ray's autoscaler
    would be one for the whole cluster, which the next job replaces.

    Args:
        bundles: Ray resources of each worker.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    group = placement_group([dict(bundle) for bundle in bundles])
    try:
        ray.get(group.ready())
    finally:
        remove_placement_group(group)


@contextlib.contextmanager
def ray_session(
    settings: Settings,
    *,
    address: str | None = None,
    verbose: bool = False,
    with_job_server: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
    preload: Sequence[str] = (),
) -> Iterator[Cluster]:
    """Connect to a named cluster, or start an embedded Ray for the time of the block.

    Args:
        settings: The settings, which name the cluster if `address` is None.
        address: The address of a Ray cluster, such as `auto`.
        verbose: Let Ray and its workers write to the terminal.
        with_job_server: Whether a Ray of the command's own serves Ray's Jobs API on loopback, with
            the token.
        meanwhile: Called in a thread while Ray starts, such as to import modules.
        preload: Modules that the workers of an embedded Ray import as soon as they start.

    Raises:
        UserError: If the named cluster does not answer or its address is a URL, or Ray cannot use
            the temporary folder.
        JobFailedError: If Ray does not start on this machine.
    """
    address = address or settings.ray_address
    if address is not None:
        require_node_address(address)
    set_user_variables(settings.home_folder)
    was_initialized = _is_initialized()
    starts_own = address is None and not was_initialized
    _prepare_environment(embedded=starts_own, verbose=verbose)
    if starts_own and preload:
        os.environ["RAY_preload_python_modules"] = ",".join(preload)  # noqa: SIM112
    import ray

    with (
        _end_orphans() if starts_own else contextlib.nullcontext(),
        ThreadPoolExecutor(1) as thread,
    ):
        doing = thread.submit(meanwhile)
        if not was_initialized:
            read_environment_again()
            _start(
                address,
                verbose=verbose,
                with_job_server=with_job_server,
                extensions=settings.extensions,
            )
        os.environ.pop(_OWNER, None)  # what else this process starts is not of its Ray
        try:
            doing.result()
            _quiet_ray_libraries(verbose=verbose)
            embedded = address is None and any(_own_raylets())
            limits = None if embedded else find_limits(settings.node_types)
            with lean_ray_data() if starts_own else contextlib.nullcontext():
                yield _count(limits, embedded=embedded)
        finally:
            if not was_initialized:
                workers = _raylet_descendants() if address is None else []
                ray.shutdown()
                _kill_remaining(workers)


@contextlib.contextmanager
def _end_orphans() -> Iterator[None]:
    """Have a process end an embedded Ray that is started in the block if this process is killed."""
    os.environ[_OWNER] = secrets.token_hex(8)
    command = [sys.executable, "-I", "-S", orphans.__file__, _OWNER, os.environ[_OWNER]]
    # Its own session: an interrupt at the terminal is for this process.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        try:
            yield
        finally:
            os.environ.pop(_OWNER, None)


def _is_initialized() -> bool:
    """Whether this process is connected to a Ray; it need not be imported for that."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _prepare_environment(*, embedded: bool, verbose: bool) -> None:
    """Set the environment variables that Ray reads at import and start."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # An interrupted tuning ends; Ray Tune would return its partial results as complete.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output cannot be turned off
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths stay valid
    # Ray Train's controller runs in this process, whose logging is not Ray's.
    os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
    # Seconds between health checks of training workers.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Seconds that a worker group waits for its resources. A node that has just died may be chosen,
    # and other nodes are chosen only after this time.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    # Workers inherit it. Without it each reading thread of a worker would keep freed memory.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    if not verbose:
        os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        # Ray prints to standard output when a worker dies, from which jobs recover.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if embedded:
        os.environ["RAY_TMPDIR"] = ray_temporary_folder()
        # Metrics for a dashboard, which an embedded Ray does not have, take 2 % of a core.
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        os.environ.setdefault("RAY_event_stats", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        # The watcher is for nodes that a cloud preempts.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Binds every server to loopback, which the node address 127.0.0.1 alone does not. Ray has
        # this switch for the firewalls of other systems.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # A Ray cluster runs the code of every client, so a token is required even on loopback.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _start(address: str | None, *, verbose: bool, with_job_server: bool, extensions: str) -> None:
    import ray

    logging.getLogger("ray").setLevel(logging.INFO if verbose else logging.ERROR)
    common: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "configure_logging": verbose,
        "job_config": job_config_without_working_folder(),
    }
    if address is None:
        if with_job_server:
            set_job_agent_port(free_port())
        else:
            omit_idle_daemons(log_monitor=verbose)
        notice_start_at_once()
        try:
            ray.init(
                address="local",
                include_dashboard=with_job_server,  # it contains the server of the Jobs API
                dashboard_host="127.0.0.1",
                **LOOPBACK_OPTIONS,
                **common,
            )
        except Exception as error:  # Ray raises no narrower one if its start times out
            raise JobFailedError(
                f"Ray does not start on this machine ({first_line(error)}); see whether memory, "
                "disk and processor have room for it, and run the command again; its own logs are "
                f"in {os.environ['RAY_TMPDIR']}/ray/session_latest/logs."
            ) from error
        return
    if extensions:  # workers of an embedded Ray inherit it
        common["runtime_env"] = {"env_vars": {"EAGLERAY_EXTENSIONS": extensions}}
    try:
        ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The Ray cluster at {address!r} does not answer ({first_line(error)}); check the "
            "address, and that RAY_AUTH_TOKEN holds the cluster's token."
        ) from error


def _raylet_descendants() -> list[psutil.Process]:
    """Return the workers of an embedded Ray, and their own child processes."""
    found = []
    for raylet in _own_raylets():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += raylet.children(recursive=True)
    return found


def _own_raylets() -> Iterator[psutil.Process]:
    """Yield the schedulers of a Ray that this process has started."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "raylet":
                yield child


def _kill_remaining(processes: list[psutil.Process]) -> None:
    """Kill workers that outlive their Ray.

    They free their modules, which takes a second, or deadlock in the destructor of their core
    worker. Ray no longer knows them then, and they would keep their memory.
    """
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_WORKER_EXIT_SECONDS)


def _quiet_ray_libraries(*, verbose: bool) -> None:
    if verbose:
        return
    disable_progress_bars()  # first: importing Ray Data sets its log level
    # What a worker raised is read from the error, and said in one sentence.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # Failed trials are rows of the table of trials.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
