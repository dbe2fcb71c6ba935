"""Every private or version-bound interface of Ray that Eagleray uses, a function for each.

Each function says why the public interface does not suffice. No other module uses such an
interface, so a new version of Ray is to be tested against these functions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

__all__ = [
    "LOOPBACK_OPTIONS",
    "close_replica_port",
    "delete_keys",
    "disable_progress_bars",
    "iterate_blocks",
    "job_config_without_working_folder",
    "lean_torch_trainer",
    "map_blocks",
    "put_key_if_absent",
    "read_environment_again",
    "set_job_agent_port",
    "use_whole_blocks",
]

LOOPBACK_OPTIONS = {"_node_ip_address": "127.0.0.1"}
"""Arguments of `ray.init` for a Ray on loopback; the public ones take no node address."""

_IDLE_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")


# --- Ray Core ---------------------------------------------------------------------------------


def put_key_if_absent(key: str, namespace: bytes) -> bool:
    """Put a key into the key-value store of Ray's head, and return whether it was absent.

    An actor could hold the keys too; it would be another process, of seventy megabytes. Of two
    processes that put the same key at the same time, one gets False.
    """
    from ray.experimental.internal_kv import _internal_kv_put

    return not _internal_kv_put(key, b"", False, namespace=namespace)


def delete_keys(prefix: str, namespace: bytes) -> None:
    """Delete all keys that `put_key_if_absent` has put under a prefix."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(prefix, del_by_prefix=True, namespace=namespace)


def job_config_without_working_folder() -> Any:
    """Return a Ray job whose workers import nothing from the folder that a command runs in.

    Ray puts that folder first on the path of every worker, where a user's `random.py` would hide
    Python's: workers that cannot start are started again without end. Ray leaves the folder out for
    jobs that bring a working folder, which this configuration pretends; there is no option.
    """
    from ray.job_config import JobConfig

    config = JobConfig()
    config._runtime_env_has_working_dir = functools.partial(bool, True)
    return config


def read_environment_again() -> None:
    """Have an imported Ray read its settings, token included, from the environment once more.

    Ray reads them when it is imported, which a notebook may have done before. The scheduler that it
    starts reads them then, and refuses a process that has others.
    """
    from ray import _raylet

    compiled: Any = _raylet  # a module without types
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


def set_job_agent_port(port: int) -> None:
    """Set the port of the agent that starts jobs.

    `ray start` has an option for it and `ray.init` has none; with the default port only the first
    Ray of a machine would accept jobs.
    """
    from ray._private.parameter import RayParams

    RayParams.__init__ = functools.partialmethod(
        RayParams.__init__, dashboard_agent_listen_port=port
    )


# --- Ray Data ---------------------------------------------------------------------------------


def disable_progress_bars() -> None:
    """Have Ray Data show no progress bars; its environment variable is read at import only."""
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False


def use_whole_blocks() -> None:
    """Have Ray Data neither split nor merge blocks, so that a block stays a shard."""
    from ray.data import DataContext

    DataContext.get_current().target_max_block_size = None


def map_blocks(dataset: Any, worker: type, **options: Any) -> Any:
    """Return a dataset whose blocks are mapped whole by the actors of a class.

    `map_batches` refuses GPUs without a number of rows in a batch. `map_batches_internal` is the
    same without that check; Ray Data's own `map_groups` calls it for the same reason.
    """
    return dataset.map_batches_internal(worker, batch_size=None, batch_format="pyarrow", **options)


def iterate_blocks(dataset: Any) -> Iterator[pa.Table]:
    """Run a dataset and yield its blocks; batches would take four threads of the driver's cores."""
    import ray

    for bundle in dataset.iter_internal_ref_bundles():
        yield from ray.get(bundle.block_refs)


# --- Ray Train --------------------------------------------------------------------------------


def lean_torch_trainer() -> Any:
    """Return Ray's `TorchTrainer` without helpers that have nothing to do in an embedded Ray.

    One helper cleans up after a driver that died, which ends an embedded Ray too, and waits ten
    seconds for a dashboard at the end of every training. The other distributes Ray Data's datasets,
    of which there are none. Each is a process that takes seconds to start; no option omits them.
    """
    from ray.train.torch import TorchTrainer

    class LeanTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()
            return [one for one in callbacks if type(one).__name__ not in _IDLE_CALLBACKS]

    return LeanTrainer


# --- Ray Serve --------------------------------------------------------------------------------


def close_replica_port() -> None:
    """Have a replica of Ray Serve open no port for requests from other deployments.

    It would listen on every interface and unpickle what it is sent, and no option closes it.
    Nothing here is called that way: requests come from the gateway.
    """
    from ray.serve._private import replica

    replica.add_port_to_grpc_server = lambda *_: 0
