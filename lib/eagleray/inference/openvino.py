"""The OpenVINO engine: the network as a graph that OpenVINO compiles for the CPU in its process.

A float network is converted from PyTorch once for each package and machine, and kept as a graph in
the cache. A quantized or imported package is such a graph itself. Compiling takes a fraction of a
second, batches may have any size, and no C++ compiler needs to be installed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from eagleray.core.errors import PackageError, UnsupportedError, UnsupportedNetworkError
from eagleray.core.system import num_usable_cores
from eagleray.inference.engine import ENGINES, Run, make_network
from eagleray.inference.plan import ExecutionPlan
from eagleray.models.graph_export import zero_inputs
from eagleray.models.network import graph_network
from eagleray.models.package import OUTLIERS_FILE, WEIGHTS_FILE, ModelPackage

__all__ = ["OpenVinoEngine", "import_openvino"]

_CONVERT_SECONDS = 5.0  # roughly, of an export and a conversion on one core, whatever the network
_SINGLE_OUTPUT = "logits"
_GRAPH = "network.xml"  # its weights lie beside it, in network.bin


class OpenVinoEngine:
    """Runs networks on CPUs, and batches of any size."""

    name = "openvino"
    runs_graphs = True

    def describe(self, device: str) -> str:
        """Return what runs a network on a device, for display."""
        return f"OpenVINO {_version()} on {device}"

    def unsupported(self, device: str) -> str | None:
        """Return why this engine does not run on a device, as a predicate; None if it does."""
        if device != "cpu":
            return "runs on CPUs only; use a CPU, or a float model with --engine eager"
        try:
            import_openvino()
        except ImportError:
            return "is not installed; install it with: pip install openvino"
        return None

    def preparation_seconds(self, package: ModelPackage, cache_folder: Path) -> float:
        """Return roughly how long `prepare` takes."""
        if package.manifest.has_graph or _graph_path(package, cache_folder).exists():
            return 0.0
        return _CONVERT_SECONDS

    def prepare(self, package: ModelPackage, plan: ExecutionPlan, cache_folder: Path) -> Run:
        """Load a package's graph, after converting the network if need be, and compile it.

        Raises:
            UnsupportedNetworkError: If the network cannot be converted.
            UnsupportedError: If the plan's device is not a CPU, or the CPU lacks the precision.
            PackageError: If the package's files do not fit each other.
        """
        fault = self.unsupported(plan.device)
        if fault is not None:
            raise UnsupportedError(f"The engine openvino {fault}.")
        graph = _read(package, cache_folder)
        try:
            compiled = _compile(graph, plan)
            _try(compiled, package)
        except RuntimeError as error:  # a kernel is missing, as of bfloat16 on an older CPU
            raise _cannot_run(package, plan, error) from error
        return _runner(compiled, package.task.network_outputs)


ENGINES.register(OpenVinoEngine.name, OpenVinoEngine())


@functools.cache
def import_openvino() -> ModuleType:
    """Import OpenVINO, which sends no telemetry then.

    OpenVINO and NNCF report each import and conversion to a server unless this package of theirs is
    missing.

    Raises:
        ImportError: If OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


@functools.cache
def _core() -> Any:
    return import_openvino().Core()


def _version() -> str:
    return str(import_openvino().__version__).split("-", 1)[0]


def _compile(graph: Any, plan: ExecutionPlan) -> Any:
    """Compile a graph for the plan's precision and numbers of threads.

    A stream runs one pass at a time. Its threads are not bound to cores, because other processes of
    the machine would bind theirs to the same ones.
    """
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if plan.precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": plan.num_callers * (plan.num_threads or num_usable_cores()),
        "NUM_STREAMS": plan.num_callers,
        "ENABLE_CPU_PINNING": False,
    }
    return _core().compile_model(graph, "CPU", options)


def _try(compiled: Any, package: ModelPackage) -> None:
    """Run a pass of one image, as OpenVINO may find only then that it has no kernel for this CPU.

    Raises:
        RuntimeError: If it has none.
    """
    inputs = [tensor.numpy() for tensor in zero_inputs(package, 1)]
    compiled.create_infer_request().infer(inputs, share_inputs=True)


def _cannot_run(
    package: ModelPackage, plan: ExecutionPlan, error: RuntimeError
) -> UnsupportedError:
    remedy = (
        "use a version that is not quantized, with --engine eager"
        if package.manifest.quantization is not None
        else "use --engine eager"
    )
    if plan.precision == "bfloat16":
        remedy += ", or another --precision"
    return UnsupportedError(
        f"The engine openvino cannot run {package.manifest.architecture.name} in {plan.precision} "
        f"on this CPU ({_first_line(error)}); {remedy}."
    )


def _runner(compiled: Any, known: Collection[str]) -> Run:
    """Return a function that runs a compiled graph; each thread has buffers of its own.

    Args:
        compiled: The compiled graph.
        known: Names of outputs that the task expects.
    """
    local = threading.local()
    # An output has more names where OpenVINO has left out an operator that changes nothing.
    names = [
        next((name for name in known if name in output.names), output.any_name)
        for output in compiled.outputs
    ]

    def infer(arrays: Sequence[npt.NDArray[Any]]) -> list[Tensor]:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        results = local.request.infer(arrays, share_inputs=True)  # the results are copies
        return [torch.from_numpy(result) for result in results.values()]

    def run(*inputs: Tensor) -> Any:
        arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in inputs]
        outputs = _infer_each(infer, arrays) if _takes_one(compiled) else infer(arrays)
        return outputs[0] if names == [_SINGLE_OUTPUT] else dict(zip(names, outputs, strict=True))

    return run


def _takes_one(compiled: Any) -> bool:
    """Whether a compiled graph takes one image at a time, as some of other programs do."""
    length = compiled.inputs[0].partial_shape[0]
    return bool(length.is_static)


def _infer_each(
    infer: Callable[[Sequence[npt.NDArray[Any]]], list[Tensor]],
    arrays: Sequence[npt.NDArray[Any]],
) -> list[Tensor]:
    """Return the outputs of a batch from passes of one image each."""
    rows = [infer([array[row : row + 1] for array in arrays]) for row in range(len(arrays[0]))]
    return [torch.cat(parts) for parts in zip(*rows, strict=True)]


# --- graphs -----------------------------------------------------------------------------------


def _read(package: ModelPackage, cache_folder: Path) -> Any:
    """Return a package's graph: its own, or one from the cache, converted if it is missing."""
    graph = package.graph
    if graph is not None:
        try:
            return _core().read_model(graph)
        except RuntimeError as error:
            raise PackageError(
                f"Model {package.manifest.name!r} has a graph that OpenVINO cannot read "
                f"({_first_line(error)})."
            ) from error
    path = _graph_path(package, cache_folder)
    with contextlib.suppress(OSError):
        with FileLock(path.parent.with_suffix(".lock")):
            if not path.exists():
                _save(_convert(package), path)
        return _core().read_model(path)
    return _convert(package)  # the cache cannot be written


def _graph_path(package: ModelPackage, cache_folder: Path) -> Path:
    """Return the cache file of a package's converted network."""
    manifest = package.manifest
    parts = (
        manifest.files.get(WEIGHTS_FILE, ""),
        manifest.architecture.model_dump_json(),
        manifest.contract_digest,
        torch.__version__,
        _version(),
        *([manifest.files[OUTLIERS_FILE]] if OUTLIERS_FILE in manifest.files else []),
    )
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return cache_folder / "openvino" / key / _GRAPH


def _convert(package: ModelPackage) -> Any:
    """Convert a package's network, which takes batches of any size then.

    Raises:
        UnsupportedNetworkError: If the network cannot be converted.
    """
    plan = ExecutionPlan("cpu", "float32", batch_size=2)
    names = list(package.task.network_outputs)
    network = graph_network(make_network(package.build_network(), package, plan), names)
    inputs = zero_inputs(package, plan.batch_size)
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)
            )
            graph = import_openvino().convert_model(program)
    except Exception as error:  # both raise errors of many kinds
        raise UnsupportedNetworkError(
            f"OpenVINO cannot run {package.manifest.architecture.name} ({_first_line(error)}); use "
            "--engine eager."
        ) from error
    if names == [_SINGLE_OUTPUT]:
        with torch.no_grad():
            outputs = network(*inputs)
        names = names if isinstance(outputs, Tensor) else list(outputs)
    for output, name in zip(graph.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    return graph


def _save(graph: Any, path: Path) -> None:
    """Write a graph with its weights into the cache, whole or not at all."""
    temporary = Path(tempfile.mkdtemp(dir=path.parent.parent))
    try:
        import_openvino().save_model(graph, temporary / _GRAPH, compress_to_fp16=False)
        temporary.replace(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
