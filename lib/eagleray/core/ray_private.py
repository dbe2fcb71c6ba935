"""Every private or version-bound interface of Ray that Eagleray uses, a function for each.

Each function says why the public interface does not suffice. No other module uses such an
interface, so a new version of Ray is to be tested against these functions.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
import pyarrow as pa

__all__ = [
    "LOOPBACK_OPTIONS",
    "autoscaling_config_file",
    "close_replica_port",
    "delete_keys",
    "disable_progress_bars",
    "has_key",
    "is_draining",
    "iterate_blocks",
    "job_config_without_working_folder",
    "lean_ray_data",
    "lean_torch_trainer",
    "map_blocks",
    "notice_start_at_once",
    "omit_idle_daemons",
    "post_message",
    "put_key_if_absent",
    "read_environment_again",
    "set_job_agent_port",
    "stream_blocks",
    "take_messages",
    "use_whole_blocks",
]

LOOPBACK_OPTIONS = {"_node_ip_address": "127.0.0.1"}
"""Arguments of `ray.init` for a Ray on loopback; the public ones take no node address."""

_MESSAGES = b"eagleray_messages"
_STOP_SECONDS = 5.0  # for Ray Train's controller to notice that it is stopped
_SECONDS_TO_START = 30.0  # after which Ray's own check reports that it did not
_IDLE_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")


# --- Ray Core ---------------------------------------------------------------------------------


def put_key_if_absent(key: str, namespace: bytes) -> bool:
    """Put a key into the key-value store of Ray's head, and return whether it was absent.

    An actor could hold the keys too; it would be another process, of seventy megabytes. Of two
    processes that put the same key at the same time, one gets False.
    """
    from ray.experimental.internal_kv import _internal_kv_put

    return not _internal_kv_put(key, b"", False, namespace=namespace)


def has_key(key: str, namespace: bytes) -> bool:
    """Return whether `put_key_if_absent` has put a key."""
    from ray.experimental.internal_kv import _internal_kv_exists

    return bool(_internal_kv_exists(key, namespace=namespace))


def is_draining() -> bool:
    """Return whether the node of this process is about to end, as a cloud or a signal announced.

    Ray gives such a node no new tasks, but an actor on it still gets those that it was sent before.
    """
    import ray
    from ray._private.state import state

    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()


def delete_keys(prefix: str, namespace: bytes) -> None:
    """Delete all keys that `put_key_if_absent` has put under a prefix."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(prefix, del_by_prefix=True, namespace=namespace)


def post_message(channel: str, content: bytes) -> None:
    """Put a message into the key-value store of Ray's head, where the driver takes it from.

    Ray's own queue is an actor: another process, which takes seconds to start.
    """
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(f"{channel}/{time.time_ns():020d}", content, namespace=_MESSAGES)


def take_messages(channel: str) -> list[bytes]:
    """Remove the messages of a channel from the key-value store, and return them in order."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list

    contents = []
    for key in sorted(_internal_kv_list(f"{channel}/", namespace=_MESSAGES)):
        contents.append(_internal_kv_get(key, namespace=_MESSAGES))
        _internal_kv_del(key, namespace=_MESSAGES)
    return contents


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


def omit_idle_daemons(*, log_monitor: bool) -> None:
    """Have `ray.init` start no process of which an embedded Ray makes no use.

    These are the dashboard, which it starts with `include_dashboard=False` too, the autoscaler and
    the monitor that sends the workers' output to the driver. They take two seconds of a core, and
    no option omits them.

    Args:
        log_monitor: Whether the driver shows the workers' output.
    """
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    RayParams.__init__ = functools.partialmethod(
        RayParams.__init__, no_monitor=True, include_log_monitor=log_monitor
    )
    Node.start_api_server = lambda *_, **__: None


@functools.cache
def notice_start_at_once() -> None:
    """Have `ray.init` notice within 20 ms that its Ray has started.

    Its own way looks once a second, which is a second too late for most.
    """
    from ray._private import services
    from ray._private.state import GlobalState

    look_once_a_second = services.get_node

    def get_node(gcs_address: str, node_id: str) -> Any:
        state = GlobalState()
        state._initialize_global_state(services._get_gcs_client_options(gcs_address))
        deadline = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < deadline:
            if any(node["NodeID"] == node_id and node["Alive"] for node in state.node_table()):
                break
            time.sleep(0.02)
        return look_once_a_second(gcs_address, node_id)

    services.get_node = get_node


def autoscaling_config_file() -> str | None:
    """Return the file that tells the autoscaler of this Ray which nodes it may add, if it is here.

    Ray does not report them: its interface for that is filled in by no autoscaler of the open
    version. The autoscaler's process has the file on its command line.
    """
    import ray

    address = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    option = "--autoscaling-config="
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if address in words and any(word.endswith("monitor.py") for word in words):
            files = [word.removeprefix(option) for word in words if word.startswith(option)]
            return next(filter(None, files), None)
    return None


# --- Ray Data ---------------------------------------------------------------------------------


def disable_progress_bars() -> None:
    """Have Ray Data show no progress bars; its environment variable is read at import only."""
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False


@contextlib.contextmanager
def lean_ray_data() -> Iterator[None]:
    """Have Ray Data start no actors of which an embedded Ray makes no use, as long as it runs.

    One counts for the dashboard and the metrics, which there are none of; a dataset waits for it to
    start. The other asks an autoscaler for nodes. Each imports Ray Data, which takes a second of a
    core, and no option omits them.
    """
    import ray
    from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution import streaming_executor
    from ray.data._internal.execution.interfaces import ExecutionResources
    from ray.data._internal.stats import _StatsManager as StatsManager

    class FixedCluster(ClusterAutoscaler):  # type: ignore[misc]
        """This machine, which does not grow."""

        def try_trigger_scaling(self) -> None:
            pass

        def on_executor_shutdown(self) -> None:
            pass

        def get_total_resources(self) -> Any:
            return ExecutionResources.from_resource_dict(ray.cluster_resources())

    def nothing(*_: Any, **__: Any) -> None:
        pass

    patches: list[tuple[Any, str, Any]] = [
        (streaming_executor, "create_cluster_autoscaler", lambda *_, **__: FixedCluster()),
        (StatsManager, "gen_dataset_id_from_stats_actor", lambda: uuid.uuid4().hex),
        (StatsManager, "register_dataset_to_stats_actor", nothing),
        (StatsManager, "update_execution_metrics", nothing),
    ]
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, staticmethod(value))
    try:
        yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)


def use_whole_blocks() -> None:
    """Have Ray Data neither split nor merge blocks, so that a block stays a shard."""
    from ray.data import DataContext

    DataContext.get_current().target_max_block_size = None


def stream_blocks(blocks: Iterator[pa.Table], *, num_blocks: int, max_waiting: int) -> Any:
    """Return a dataset whose blocks are made only when its first operator is about to take them.

    `from_blocks` puts all blocks into the object store before anything runs, and keeps them there
    and in the driver: a million blocks take gigabytes. A data source of its own would run as a task
    on a core of the cluster. The dataset also keeps no statistics of each block.

    Args:
        blocks: Makes the blocks; it may end early.
        num_blocks: Number of blocks unless it ends early.
        max_waiting: Number of blocks that wait for the first operator.
    """
    from ray.data import DataContext, Dataset
    from ray.data._internal.logical.interfaces import LogicalPlan
    from ray.data._internal.stats import DatasetStats

    context = DataContext.get_current().copy()
    source = _source_of_blocks()(blocks, num_blocks, max_waiting)
    return Dataset(LogicalPlan(source, context), context, DatasetStats(metadata={}, parent=None))


@functools.cache
def _source_of_blocks() -> Any:
    """Return the class of a dataset's source that makes its blocks one by one.

    The first call adds it to the operators that Ray Data's planner knows.
    """
    from ray.data._internal.logical.interfaces import LogicalOperator, SourceOperator
    from ray.data._internal.planner.planner import Planner

    class BlockSource(LogicalOperator, SourceOperator):  # type: ignore[misc]
        def __init__(self, blocks: Iterator[pa.Table], num_blocks: int, max_waiting: int) -> None:
            super().__init__()
            values = {"blocks": blocks, "num_blocks": num_blocks, "max_waiting": max_waiting}
            for name, value in values.items():  # the base class is frozen
                object.__setattr__(self, name, value)

        def output_data(self) -> None:
            return None

    streamed = _streamed_blocks()
    plan = {BlockSource: lambda source, _, context: streamed(source, context)}
    Planner._DEFAULT_PLAN_FNS = {**plan, **Planner._DEFAULT_PLAN_FNS}
    return BlockSource


def _streamed_blocks() -> Any:
    """Return the class of Ray Data's operator that does what `_source_of_blocks` describes."""
    import ray
    from ray.data._internal.execution.interfaces import BlockEntry, PhysicalOperator, RefBundle
    from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
    from ray.data.block import BlockMetadataWithSchema

    class StreamedBlocks(InputDataBuffer):  # type: ignore[misc]
        """Ray Data's buffer of inputs, but with few of them in it."""

        def __init__(self, source: Any, context: Any) -> None:
            PhysicalOperator.__init__(self, "Input", [], context)
            self._source, self._num_made = source, 0
            self._next: pa.Table | None = None
            self._estimated_num_output_bundles = source.num_blocks

        def start(self, options: Any, block_ref_counter: Any) -> None:
            PhysicalOperator.start(self, options, block_ref_counter)
            for operator in _operators_after(self):  # which keep statistics of each block
                operator._output_blocks_stats = collections.deque(maxlen=1)

        def has_execution_finished(self) -> bool:
            return bool(self._is_execution_marked_finished)

        def has_next(self) -> bool:
            taken = self._output_dependencies[0]._metrics.num_inputs_received
            if self._num_made - taken >= self._source.max_waiting:
                return False
            if self._next is None and not self._is_execution_marked_finished:
                self._next = next(self._source.blocks, None)
                if self._next is None:
                    self.mark_execution_finished()
            return self._next is not None

        def _get_next_inner(self) -> Any:
            block, self._next = self._next, None
            self._num_made += 1
            metadata = BlockMetadataWithSchema.from_block(block)
            entry = BlockEntry(ray.put(block), metadata)
            # Not owned: a block that is needed again, after a node is lost, is still there.
            bundle = RefBundle([entry], owns_blocks=False, schema=metadata.schema)
            self._metrics.on_input_received(bundle)
            return bundle

    return StreamedBlocks


def _operators_after(operator: Any) -> Iterator[Any]:
    for following in operator.output_dependencies:
        yield following
        yield from _operators_after(following)


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


def lean_torch_trainer(*, embedded: bool) -> Any:
    """Return Ray's `TorchTrainer` without processes that it can do without.

    Each takes seconds to start, and no option omits them. The controller runs in this process,
    which Ray's own would not outlive, and Ctrl-C interrupts this process; Ray's own handler ends it
    with exit code 1, before anything is recorded. One helper cleans up after a driver that died,
    which Ray does itself, and waits ten seconds for a dashboard at the end of every training.
    Another distributes Ray Data's datasets, of which there are none. In an embedded Ray no
    autoscaler is asked for resources, and workers inherit the driver's environment from their Ray,
    so that idle ones can be reused.

    Args:
        embedded: Whether this process has started the Ray.
    """
    import ray
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    class LeanWorkerGroup(WorkerGroup):  # type: ignore[misc]
        @staticmethod
        def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
            if embedded:
                return dict(custom_runtime_env)
            return WorkerGroup._get_worker_runtime_env(custom_runtime_env)

        def _init_train_context_on_workers(
            self, workers: Any, sync_actor: Any, train_context_args: Any
        ) -> None:
            # As Ray's own, but for the handle of the controller's actor, which there is none of.
            calls = [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[rank] for name, values in train_context_args.items()},
                )
                for rank, worker in enumerate(workers)
            ]
            ray.get(calls)
            self._decorate_worker_log_file_paths(workers)

    class LeanController(TrainController):  # type: ignore[misc]
        worker_group_cls = LeanWorkerGroup

    class LeanPolicy(FixedScalingPolicy):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class LeanTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()
            return [one for one in callbacks if type(one).__name__ not in _IDLE_CALLBACKS]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            if embedded and type(arguments["scaling_policy"]) is FixedScalingPolicy:
                arguments["scaling_policy"] = LeanPolicy(self.scaling_config)
            controller = LeanController(**arguments)
            _run_controller(controller)
            return controller.get_result()

    return LeanTrainer


def _run_controller(controller: Any) -> None:
    """Run a controller of Ray Train to its end in a thread; an interrupt stops its workers.

    A thread, as a notebook has a running event loop in its main thread.
    """
    loop = asyncio.new_event_loop()
    task = loop.create_task(controller.run())
    ended = threading.Event()

    def run() -> None:
        loop.run_until_complete(asyncio.wait([task]))
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        ended.wait()
    except BaseException:
        loop.call_soon_threadsafe(task.cancel)
        if ended.wait(_STOP_SECONDS) and controller.get_worker_group() is not None:
            controller.get_worker_group().abort()
        raise
    task.result()


# --- Ray Serve --------------------------------------------------------------------------------


def close_replica_port() -> None:
    """Have a replica of Ray Serve open no port for requests from other deployments.

    It would listen on every interface and unpickle what it is sent, and no option closes it.
    Nothing here is called that way: requests come from the gateway.
    """
    from ray.serve._private import replica

    replica.add_port_to_grpc_server = lambda *_: 0
